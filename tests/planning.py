"""Plans from names and settings, as a command line gives them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from lewel_bench.evals.dataset import Dataset
from lewel_bench.harness.plan import plan
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog, ScaledCatalog
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.harness.plan.workspace import Workspace
from lewel_bench.harness.request import Evals, Selection, Where
from lewel_bench.pretrain.recipe import Recipe

Datasets = Callable[[str, str], Dataset]
Settings = Iterable[tuple[str, Any]]


def jobs(
    suite: Suite, dataset: Datasets, *, settings: Settings = (), seeds: tuple[int, ...] = (0,),
    catalog: Catalog = PACKAGED, evals: tuple[str, ...] = (), **selection: Any,
) -> list[Job]:  # fmt: skip
    """The jobs of a selection, such as method=("lewel_m",), epochs=(200,), and of `evals`."""
    workspace = Workspace(
        Where(set=tuple(settings)), Site(), Path(), suite, cast(Any, dataset), catalog
    )
    return plan.plan(Selection(**selection), Evals(evals=evals, seeds=seeds), workspace)


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
