"""The keys of jobs by the names of recipe and protocol, as `plan.chain` has them."""

from collections.abc import Callable
from functools import cache

from lewel_bench.harness.plan import plan
from lewel_bench.harness.plan.catalog import ScaledCatalog
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.results import record


class Keys:
    """The keys of the jobs of a scaled catalogue, each made once and without its job: a table asks
    for thousands."""

    def __init__(self, scaled: ScaledCatalog, datasets: Datasets) -> None:
        self._scaled, self._datasets = scaled, datasets
        self._of_recipe = cache(self._recipe)
        self._of_protocol = cache(self._protocol)

    def pretraining(self, recipe: str, seed: int) -> str:
        """The key of the pre-training of a recipe. Raises ValueError for settings that it cannot
        have."""
        key_of: Callable[..., str] = self._of_recipe(recipe)
        return key_of(seed)

    def evaluation(self, upstream: str, protocol: str, seed: int, trial: int = 0) -> str:
        """The key of the job that gives the number of a protocol for the backbone of the job
        `upstream`."""
        key_of: Callable[..., str] = self._of_protocol(protocol, trial)
        return key_of(seed, upstream)

    def _recipe(self, name: str) -> Callable[..., str]:
        recipe = self._scaled.recipe(name)
        what = plan.of_recipe(recipe, self._datasets(recipe.data, "pretrain"))
        return record.key_by({"kind": "pretrain", **what}, "seed")

    def _protocol(self, name: str, trial: int) -> Callable[..., str]:
        protocol = self._scaled.protocol(name)
        data = self._datasets(protocol.data, protocol.runner)
        what = plan.of_protocol(protocol, data, trial=trial)
        return record.key_by({"kind": "final", **what}, "seed", "upstream")
