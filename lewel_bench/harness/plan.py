"""From a selection of methods and tables to jobs with keys; pure, no I/O.

A cell of a table needs a recipe and a protocol. A cell becomes jobs: `pretrain`, then for a
protocol that searches its learning rate in one pass a `final`, else one `search` a candidate and a
`final` that chooses among them. Jobs with the same key are the same job.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lewel_bench.evals.protocol import Protocol, Semi
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.harness.suite import Suite
from lewel_bench.pretrain.methods import LATER, arguments, check
from lewel_bench.pretrain.recipe import Recipe, change
from lewel_bench.pretrain.recipes import FAMILIES, RECIPES, family
from lewel_bench.pretrain.views import AUGMENTS
from lewel_bench.results import record
from lewel_bench.results.table import Column, Row, epochs, load
from lewel_bench.value import Value, unknown

# Section 4.1: LEWEL_M is probed with LARS, LEWEL_B with SGD; each baseline as its LEWEL, but the
# original BYOL as SimSiam's paper, which the table cites, probed it. By family, else by method.
PROBES = {
    "byol_original": "linear_lars",
    "lewel_m": "linear_lars",
    "moco_v2": "linear_lars",
    "lewel_b": "linear_sgd",
    "byol": "linear_sgd",
    "instdisc": "linear_lars",
    "pcl": "linear_lars",
    "densecl": "linear_lars",
    "resim": "linear_lars",
    "pixpro": "linear_lars",
    "simclr": "linear_lars",
    "simsiam": "linear_lars",
    "swav": "linear_lars",
    "barlow_twins": "linear_sgd",
    "supervised": "linear_sgd",
}
EVALS = {"semi": ("semi_1pct", "semi_10pct"), "none": ()}
DEFAULT_EVALS = ("linear", "semi")


class Dataset(Value):
    """A data set as this site has it. `id` stands for its content in keys."""

    name: str
    id: str
    root: str
    classes: str | None = None  # a file that lists the classes to use, one a line
    lists: dict[str, str] = {}  # protocol name -> file that lists its labelled subset


class Job(Value):
    """One unit of work; `identity` is all that determines its result."""

    kind: Literal["pretrain", "search", "final"]
    name: str
    recipe_name: str
    suite: str
    seed: int
    data: Dataset
    recipe: Recipe | None = None
    protocol: Protocol | None = None
    upstream: str | None = None  # key of the pre-training that is evaluated
    needs: tuple[str, ...] = ()
    lr: tuple[float, float] | None = None  # of a search: backbone and head
    key: str = ""

    def identity(self) -> dict[str, Any]:
        """What the key is made of."""
        if self.recipe:
            return {"kind": self.kind, "seed": self.seed, **of_recipe(self.recipe, self.data)}
        assert self.protocol is not None
        what = of_protocol(self.protocol, self.data, self.lr)
        return {"kind": self.kind, "seed": self.seed, "upstream": self.upstream, **what}


def of_recipe(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """A recipe's part of an identity; the id of the data stands for its name.

    Defaults of the method count as if they were written, and the views with what they do, so a
    default that changes is another run and one that is written out is not.
    """
    settings = recipe.identity()
    settings.pop("data")
    defaults = {name: default for name, (_, default) in arguments(recipe.method).items()}
    later = LATER.get(recipe.method, {})
    settings["args"] = {
        name: value
        for name, value in {**defaults, **recipe.args}.items()
        if name not in later or value != later[name]
    }
    views = AUGMENTS[recipe.augment]
    settings["augment"] = [view.identity() for view in views]
    return {"recipe": settings, "data": data.id}


def of_protocol(
    protocol: Protocol, data: Dataset, lr: tuple[float, float] | None = None
) -> dict[str, Any]:
    """A protocol's part of an identity; that of one candidate does not depend on the others."""
    settings = protocol.identity(lr) if isinstance(protocol, Semi) else protocol.identity()
    settings.pop("data")
    return {"protocol": settings, "data": data.id}


@dataclass(frozen=True)
class Selection:
    """What a command line asks for; empty means no restriction."""

    methods: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    tables: tuple[str, ...] = ()
    evals: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    settings: tuple[tuple[str, Any], ...] = ()


def plan(selection: Selection, suite: Suite, dataset: Callable[[str, str], Dataset]) -> list[Job]:
    """The jobs of a selection in dependency order, each key once.

    Raises ValueError for names that do not exist and settings that are not allowed.
    """
    jobs: dict[str, Job] = {}
    cells = _cells(selection)
    _used(selection.settings, {name for _, evals in cells for name in evals})
    for recipe, evals in cells:
        for seed in selection.seeds:
            for job in chain(recipe, evals, seed, suite, dataset, selection.settings):
                jobs.setdefault(job.key, job)
    order = {"pretrain": 0, "search": 1, "final": 2}
    names = list(dict.fromkeys(job.recipe_name for job in jobs.values()))
    # one method after another, so that a table fills row by row
    return sorted(jobs.values(), key=lambda j: (j.seed, names.index(j.recipe_name), order[j.kind]))


def chain(
    recipe: Recipe,
    evals: Sequence[str],
    seed: int,
    suite: Suite,
    dataset: Callable[[str, str], Dataset],
    settings: Iterable[tuple[str, Any]] = (),
) -> list[Job]:
    """The pre-training of `recipe` and everything that evaluates it, at the suite's scale."""
    scaled = scale_recipe(recipe, suite, settings)
    pretrain = _keyed(
        kind="pretrain",
        name=recipe.name,
        recipe_name=recipe.name,
        suite=suite.name,
        seed=seed,
        data=dataset(scaled.data, "pretrain"),
        recipe=scaled,
    )
    jobs = [pretrain]
    for name in evals:
        protocol = scale_protocol(name, suite, settings)
        data = dataset(protocol.data, protocol.runner)
        jobs += _evaluation(protocol, pretrain, suite, data)
    return jobs


def refit(linear: Iterable[str]) -> list[tuple[str, Any]]:
    """The settings that `--refit` stands for."""
    return [(f"{name}.refit", True) for name in linear]


def scale_recipe(recipe: Recipe, suite: Suite, settings: Iterable[tuple[str, Any]]) -> Recipe:
    """`recipe` at the suite's scale, with the settings that are its own."""
    own = {k: v for k, v in settings if k.split(".")[0] not in PROTOCOLS}
    scaled: Recipe = change(suite.recipe(recipe), own)
    check(scaled)
    return scaled


def scale_protocol(name: str, suite: Suite, settings: Iterable[tuple[str, Any]]) -> Protocol:
    """Protocol `name` at the suite's scale, with the settings that begin with its name."""
    prefix = f"{name}."
    own = {k.removeprefix(prefix): v for k, v in settings if k.startswith(prefix)}
    scaled: Protocol = change(suite.protocol(name, PROTOCOLS[name]), own)
    return scaled


def protocols(selection: Selection) -> list[str]:
    """The protocols that a selection runs."""
    return list(dict.fromkeys(name for _, evals in _cells(selection) for name in evals))


NAMES = ("name", "label", "source", "published_lr")  # what no result depends on


def _used(settings: Iterable[tuple[str, Any]], protocols: set[str]) -> None:
    """Raise ValueError for a setting that nothing selected would read."""
    for dotted, _ in settings:
        first, _, rest = dotted.partition(".")
        if (rest if first in PROTOCOLS else first) in ("", *NAMES):
            raise ValueError(f"--set {dotted}: name a field that a result depends on")
        if first in PROTOCOLS and first not in protocols:
            raise ValueError(
                f"--set {dotted}: {first} is not among the selected protocols "
                f"({', '.join(sorted(protocols)) or 'none'})"
            )
        if first not in PROTOCOLS and first not in Recipe.model_fields:
            raise ValueError(unknown("setting", first, [*Recipe.model_fields, *PROTOCOLS]))


def _evaluation(protocol: Protocol, pretrain: Job, suite: Suite, data: Dataset) -> list[Job]:
    common: dict[str, Any] = {
        "recipe_name": pretrain.recipe_name,
        "suite": suite.name,
        "seed": pretrain.seed,
        "data": data,
        "protocol": protocol,
        "upstream": pretrain.key,
    }
    name = f"{protocol.name} of {pretrain.recipe_name}"
    if not isinstance(protocol, Semi):
        return [_keyed(kind="final", name=name, needs=(pretrain.key,), **common)]
    searches = [
        _keyed(
            kind="search",
            name=f"{name}, lr {backbone:g}/{head:g}",
            needs=(pretrain.key,),
            lr=(backbone, head),
            **common,
        )
        for backbone, head in protocol.grid()
    ]
    needs = tuple(job.key for job in searches)
    return [*searches, _keyed(kind="final", name=name, needs=needs, **common)]


def _keyed(**fields: Any) -> Job:
    job = Job(**fields)
    return job.model_copy(update={"key": record.key(job.identity())})


def _cells(selection: Selection) -> list[tuple[Recipe, tuple[str, ...]]]:
    """Recipes in the order asked for, each with the protocols to run on it."""
    wanted: dict[str, list[str]] = {}
    if selection.tables:
        _lengths(selection.epochs)
        allowed = set(_allowed(selection.methods)) if selection.methods else None
        for table in map(load, selection.tables):
            for row, column in table.cells():
                name = recipe_name(row, column)
                if name is None or (allowed is not None and name not in allowed):
                    continue
                if selection.epochs and RECIPES[name].epochs not in selection.epochs:
                    continue
                protocols = wanted.setdefault(name, [])
                if row.protocols[column.eval] not in protocols:
                    protocols.append(row.protocols[column.eval])
        if selection.evals:
            wanted = {n: _protocols(n, selection.evals) for n in wanted}
    else:
        for recipe in _recipes(selection.methods, selection.epochs):
            evals = selection.evals or DEFAULT_EVALS
            wanted[recipe.name] = _protocols(recipe.name, evals)
    if not wanted:
        raise ValueError(
            "nothing is selected: name a method (--method lewel_m --epochs 200) or a table "
            "(--table 1), and see `lewel-bench ls recipes`"
        )
    return [(RECIPES[name], tuple(protocols)) for name, protocols in wanted.items()]


def _recipes(methods: Sequence[str], lengths: Sequence[int]) -> list[Recipe]:
    found = []
    for method in methods:
        names = _allowed([method])
        here = [n for n in names if not lengths or RECIPES[n].epochs in lengths]
        known_epochs = ", ".join(str(RECIPES[n].epochs) for n in names)
        if {RECIPES[n].epochs for n in here} < set(lengths) or not here:
            raise ValueError(
                f"{method} has no recipe of {', '.join(map(str, lengths))} epochs. "
                f"Known: {known_epochs}. For another length take the nearest and add "
                f"--set epochs=N"
            )
        if not lengths and method in FAMILIES and len(here) > 1:
            raise ValueError(f"{method} has recipes of {known_epochs} epochs: choose with --epochs")
        found += [RECIPES[n] for n in here]
    return found


def _lengths(asked: Sequence[int]) -> None:
    known = sorted({recipe.epochs for recipe in RECIPES.values()})
    for one in asked:
        if one not in known:
            shown = ", ".join(map(str, known))
            raise ValueError(f"no recipe has {one} epochs. Known: {shown}")


def _allowed(methods: Sequence[str]) -> list[str]:
    """The recipes of families or single recipes, whatever their length."""
    return [name for m in methods for name in FAMILIES.get(_known(m), [m])]


def _known(method: str) -> str:
    if method not in FAMILIES and method not in RECIPES:
        known = {**FAMILIES, **RECIPES} if method.endswith("ep") else FAMILIES
        raise ValueError(unknown("method", method, list(known)))
    return method


def probe(recipe: str) -> str:
    """The linear protocol that the paper reads a recipe with."""
    return PROBES.get(family(recipe)) or PROBES[RECIPES[recipe].method]


def _protocols(recipe: str, evals: Sequence[str]) -> list[str]:
    names: list[str] = []
    for one in evals:
        if one == "linear":
            names.append(probe(recipe))
        elif one in EVALS:
            names += EVALS[one]
        elif one in PROTOCOLS:
            names.append(one)
        else:
            raise ValueError(unknown("evaluation", one, ["linear", *EVALS, *PROTOCOLS]))
    return list(dict.fromkeys(names))


def recipe_name(row: Row, column: Column) -> str | None:
    """The recipe that fills a cell, or None where nothing can."""
    name = f"{row.recipe}_{epochs(row, column)}ep"
    return name if name in RECIPES else None
