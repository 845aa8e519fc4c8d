"""Suites: the scale at which the paper's cells are run. A suite only replaces fields."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from lewel_bench.evals.protocol import Protocol
from lewel_bench.pretrain.recipe import Backbone, Recipe, change
from lewel_bench.pretrain.recipes import family
from lewel_bench.value import Value

T = TypeVar("T")
NO_BLUR = "without blur"  # the same views, blur off: the practice for images of 32 to 64 px


class Suite(Value):
    """How the paper's recipes and protocols are scaled.

    `data` maps the paper's data sets to the suite's. `epochs` multiplies the epochs of a
    pre-training, its warm-up included. With a `batch` of its own the learning rate follows
    linearly, times `lr`. `lr` and `recipes` are by family, or else by the longest beginning of its
    name (`lewel_b` for `lewel_b_d64_in100`); `recipes` and `protocols` (by name) are further
    settings. `precision` replaces the recipes' where it is set. `remarks` stand below the tables
    they are for, by number. `comparable` says whether its numbers can be held against the paper's.
    """

    name: str
    label: str
    source: str
    comparable: bool = False
    data: dict[str, str] = {}
    backbone: Backbone | None = None
    image_size: int | None = None
    precision: Literal["fp32"] | None = None
    epochs: float = 1.0
    batch: int | None = None
    lr: dict[str, float] = {}
    recipes: dict[str, dict[str, Any]] = {}
    protocols: dict[str, dict[str, Any]] = {}
    remarks: dict[str, str] = {}

    def dataset(self, name: str) -> str:
        """The suite's data set for one of the paper's."""
        return self.data.get(name, name)

    def recipe(self, recipe: Recipe) -> Recipe:
        """`recipe` at this suite's scale; the identity for `paper`."""
        if self.comparable:
            return recipe
        batch = self.batch or recipe.batch
        lr = recipe.optimizer.lr / recipe.batch * batch * _own(recipe, self.lr, 1.0)
        settings: dict[str, Any] = {
            "data": self.dataset(recipe.data),
            "image_size": self.image_size or recipe.image_size,
            "backbone": (self.backbone or recipe.backbone).model_dump(),
            "epochs": max(1, round(recipe.epochs * self.epochs)),
            "batch": batch,
            # as many images share statistics as in the recipe, or the whole of a smaller batch
            "bn_group": recipe.bn_group and min(batch, recipe.bn_group),
            "optimizer.lr": float(f"{lr:.6g}"),
            "schedule.warmup_epochs": recipe.schedule.warmup_epochs * self.epochs,
            "precision": self.precision or recipe.precision,
        }
        for dotted, value in _own(recipe, self.recipes, {}).items():
            settings[dotted] = f"{recipe.augment}_no_blur" if value == NO_BLUR else value
        scaled: Recipe = change(recipe, settings)
        return scaled

    def protocol(self, name: str, protocol: Protocol) -> Protocol:
        """`protocol` at this suite's scale; the identity for `paper`."""
        if self.comparable:
            return protocol
        settings = {"data": self.dataset(protocol.data), **self.protocols.get(name, {})}
        scaled: Protocol = change(protocol, settings)
        return scaled


def _own(recipe: Recipe, table: Mapping[str, T], otherwise: T) -> T:
    """What `table` has for the recipe's family or the longest beginning of it, else its method."""
    name = family(recipe.name)
    while name not in table and "_" in name:
        name = name.rsplit("_", 1)[0]
    return table.get(name, table.get(recipe.method, otherwise))
