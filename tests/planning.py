"""Plans from names and settings, as a command line gives them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lewel_bench.evals.dataset import Dataset
from lewel_bench.harness.plan import cells, plan
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog, ScaledCatalog
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.pretrain.recipe import Recipe

Datasets = Callable[[str, str], Dataset]
Settings = Iterable[tuple[str, Any]]


def jobs(
    suite: Suite, dataset: Datasets, *, settings: Settings = (), seeds: tuple[int, ...] = (0,),
    catalog: Catalog = PACKAGED, **query: Any,
) -> list[Job]:  # fmt: skip
    """The jobs of a query, such as methods=("lewel_m",), epochs=(200,), evals=("linear",)."""
    scaled = ScaledCatalog(catalog, suite, settings)
    return plan.plan(cells.select(cells.Query(**query), scaled, seeds), dataset)


def chain(
    recipe: Recipe, protocols: Sequence[str], seed: int, suite: Suite, dataset: Datasets,
    settings: Settings = (),
) -> list[Job]:  # fmt: skip
    """The pre-training of a recipe and its evaluations by protocols of these names."""
    scaled = ScaledCatalog(PACKAGED.with_recipe(recipe), suite, settings)
    evaluations = map(scaled.protocol, protocols)
    return plan.chain(scaled.recipe(recipe.name), evaluations, seed, suite.name, dataset)


def pretraining(
    recipe: Recipe, seed: int, suite: Suite, dataset: Datasets, settings: Settings = ()
) -> Job:
    """The pre-training of a recipe."""
    return chain(recipe, (), seed, suite, dataset, settings)[0]
