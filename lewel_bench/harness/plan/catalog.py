"""The recipes and protocols that a command knows: the package's own and those of the user.

A `Catalog` never changes; adding an entry gives another. A `ScaledCatalog` is one as a command sees
it: at the scale of a suite, with the settings of --set, --refit, --lrs and --engine applied.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from lewel_bench.evals.protocol import Protocol
from lewel_bench.evals.protocols import ENGINES, PROTOCOLS
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.pretrain.methods import arguments
from lewel_bench.pretrain.recipe import Recipe, change
from lewel_bench.pretrain.recipes import FAMILIES, RECIPES, family
from lewel_bench.value import unknown

NAMES = ("name", "label", "source", "published_lr")  # fields that no result depends on


@dataclass(frozen=True)
class Catalog:
    """Recipes and protocols by name."""

    recipes: Mapping[str, Recipe]
    protocols: Mapping[str, Protocol]

    @cached_property
    def families(self) -> Mapping[str, Sequence[str]]:
        """The names of the recipes of each family."""
        names: dict[str, list[str]] = {}
        for name in self.recipes:
            names.setdefault(family(name), []).append(name)
        return MappingProxyType(names)

    def with_recipe(self, recipe: Recipe) -> "Catalog":
        """This catalogue with a recipe more, or in place of the one of its name."""
        recipes = MappingProxyType({**self.recipes, recipe.name: recipe})
        return replace(self, recipes=recipes)

    def with_protocol(self, protocol: Protocol) -> "Catalog":
        """This catalogue with a protocol more."""
        return replace(
            self, protocols=MappingProxyType({**self.protocols, protocol.name: protocol})
        )

    def own_recipes(self) -> list[Recipe]:
        """The recipes of the user's own."""
        return [recipe for name, recipe in self.recipes.items() if not is_packaged(family(name))]


PACKAGED = Catalog(RECIPES, PROTOCOLS)


def is_packaged(name: str) -> bool:
    """Whether a family or recipe comes with this package."""
    return name in FAMILIES or name in RECIPES


class ScaledCatalog:
    """A catalogue at the scale of `suite`, with `settings` applied: dotted fields of recipes, and
    of protocols after their name, with the values."""

    def __init__(
        self, catalog: Catalog, suite: Suite, settings: Iterable[tuple[str, Any]] = ()
    ) -> None:
        self.catalog, self.suite, self.settings = catalog, suite, dict(settings)
        self._recipes: dict[str, Recipe] = {}
        self._protocols: dict[str, Protocol] = {}

    def recipe(self, name: str) -> Recipe:
        """A recipe. Raises ValueError for settings that it cannot have."""
        if name not in self._recipes:
            own = {k: v for k, v in self.settings.items() if not self._protocol_of(k)}
            scaled: Recipe = change(self.suite.recipe(self.catalog.recipes[name]), own)
            arguments(scaled)  # raises ValueError for those that the method cannot have
            self._recipes[name] = scaled
        return self._recipes[name]

    def protocol(self, name: str) -> Protocol:
        """A protocol. Raises ValueError for settings that it cannot have."""
        if name not in self._protocols:
            own = {
                key.removeprefix(f"{name}."): value
                for key, value in self.settings.items()
                if self._protocol_of(key) == name
            }
            try:
                scaled = change(self.suite.protocol(name, self.catalog.protocols[name]), own)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            self._protocols[name] = scaled
        return self._protocols[name]

    def settings_of_recipes(self) -> list[str]:
        """The settings that change recipes."""
        return [key for key in self.settings if not self._protocol_of(key)]

    def check_settings(self, protocols: Collection[str], *, recipes: bool = True) -> None:
        """Raise ValueError for a setting that none of these protocols reads, nor a recipe where
        `recipes` are pre-trained."""
        known = self.catalog.protocols
        for key in self.settings:
            first, _, rest = key.partition(".")
            if first in Recipe.model_fields and not recipes:
                raise ValueError(
                    f"--set {key}: an imported checkpoint has no recipe to change; a protocol's "
                    f"field is --set PROTOCOL.FIELD=VALUE"
                )
            if (rest if first in known else first) in ("", *NAMES):
                raise ValueError(
                    f"--set {key}: this field does not affect results; name one that does"
                )
            if first in known and first not in protocols:
                raise ValueError(
                    f"--set {key}: {first} is not among the selected protocols "
                    f"({', '.join(sorted(protocols)) or 'none'})"
                )
            if first not in known and first not in Recipe.model_fields:
                raise ValueError(unknown("setting", first, [*Recipe.model_fields, *known]))

    def _protocol_of(self, key: str) -> str:
        """The protocol that a setting changes; empty for a setting of recipes."""
        first = key.split(".")[0]
        return first if first in self.catalog.protocols else ""


def chosen_settings(
    protocols: Iterable[Protocol],
    *,
    refit: bool = False,
    lrs: Sequence[float] = (),
    engines: Sequence[str] = (),
) -> list[tuple[str, Any]]:
    """The settings that --refit, --lrs and --engine stand for. Raises ValueError for an option that
    none of the protocols has a use for."""
    protocols = list(protocols)
    chosen: list[tuple[str, Any]] = []

    def choose(unused: str, **asked: Any) -> None:
        settings = [
            (f"{protocol.name}.{field}", value)
            for protocol in protocols
            for field, value in protocol.choices(**asked).items()
        ]
        if not settings:
            raise ValueError(unused)
        chosen.extend(settings)

    if refit:
        choose("--refit: select a linear probe, detection or segmentation", refit=True)
    if lrs:
        choose("--lrs: no detection or segmentation is selected, and only these use it", lrs=lrs)
    for engine in engines:
        if engine not in ENGINES:
            raise ValueError(unknown("engine", engine, ENGINES))
        choose(f"--engine {engine}: no selected evaluation runs on it", engine=engine)
    return chosen
