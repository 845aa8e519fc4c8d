"""What a command line asks for: recipes, each with the protocols to run on it; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lewel_bench.evals.protocol import Protocol
from lewel_bench.harness.plan.catalog import Catalog, ScaledCatalog
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.recipes import RECIPES, family
from lewel_bench.results.table import TABLES, Column, Row, Table, epochs, load
from lewel_bench.value import unknown

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
EVALS = {
    "semi": ("semi_1pct", "semi_10pct"),
    "voc": ("voc07_det_c4", "voc12_seg_fcn_d8"),
    "coco": ("coco_c4_1x", "coco_fpn_1x"),
    "none": (),
}


@dataclass(frozen=True)
class Query:
    """What a command line names; empty means no restriction."""

    methods: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    tables: tuple[str, ...] = ()
    evals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """What to compute in a suite: recipes, each with the protocols to run on it, by seed; all at
    the suite's scale, with the settings of the command line applied."""

    suite: str
    seeds: tuple[int, ...]
    evaluations: tuple[tuple[Recipe, tuple[Protocol, ...]], ...]


def select(query: Query, scaled: ScaledCatalog, seeds: tuple[int, ...] = (0,)) -> Selection:
    """The selection of a command line. Raises ValueError for names that do not exist, and for
    settings that are not allowed or that nothing selected reads."""
    named = named_evaluations(query, scaled.catalog, scaled.suite)
    scaled.check_settings({name for names in named.values() for name in names})
    pairs = (
        (scaled.recipe(recipe), tuple(map(scaled.protocol, names)))
        for recipe, names in named.items()
    )
    return Selection(scaled.suite.name, seeds, tuple(pairs))


def named_evaluations(query: Query, catalog: Catalog, suite: Suite) -> dict[str, list[str]]:
    """The names of recipes in the order asked for, each with those of the protocols to run on it:
    those asked for, else those by which the paper judges it, as far as the suite has a scale for
    them. Raises ValueError where nothing is selected."""
    if query.tables:
        wanted = _of_tables(query, catalog, suite)
    else:
        wanted = {
            recipe.name: evaluations(recipe, query.evals, catalog, suite)
            for recipe in _recipes(query.methods, query.epochs, catalog)
        }
    if not wanted:
        raise ValueError(_nothing_selected_message(query, suite))
    return wanted


def tables(names: Sequence[str]) -> list[Table]:
    """The tables of these numbers; `all` is every one. Raises ValueError for another name."""
    known = (*TABLES, "all")
    if odd := [name for name in names if name not in known]:
        raise ValueError(unknown("table", odd[0], known))
    return [load(name) for name in (TABLES if "all" in names else names)]


def _of_tables(query: Query, catalog: Catalog, suite: Suite) -> dict[str, list[str]]:
    """The recipes of the cells, by name, each with the protocols to run on it."""
    _check_epochs(query.epochs, catalog)
    only = set(recipe_names(query.methods, catalog)) if query.methods else None
    wanted: dict[str, list[str]] = {}
    for table in tables(query.tables):
        for row, column in table.cells():
            name, protocol = recipe_name(row, column), row.protocols.get(column.eval)
            if name is None or (only is not None and name not in only):
                continue
            if query.epochs and catalog.recipes[name].epochs not in query.epochs:
                continue
            if protocol and not query.evals and not _has_scale(suite, protocol):
                continue
            protocols = wanted.setdefault(name, [])
            if protocol and protocol not in protocols:
                protocols.append(protocol)
    if query.evals:
        recipes = (catalog.recipes[name] for name in wanted)
        return {recipe.name: _protocols(recipe, query.evals, catalog) for recipe in recipes}
    return wanted


def _has_scale(suite: Suite, protocol: str) -> bool:
    return suite.comparable or protocol in suite.protocols


def _nothing_selected_message(query: Query, suite: Suite) -> str:
    if not query.tables:
        return (
            "nothing is selected: name a method (--method lewel_m --epochs 200) or a table "
            "(--table 1), and see `lewel-bench ls recipes`"
        )
    named = "table" if len(query.tables) == 1 else "tables"
    lengths = f" at {', '.join(map(str, query.epochs))} epochs" if query.epochs else ""
    methods = f" of {', '.join(query.methods)}" if query.methods else ""
    scale = "" if suite.comparable else f" for which the suite {suite.name} has a scale"
    return (
        f"nothing is selected: {named} {', '.join(query.tables)}: no cell{methods}{lengths}"
        f"{scale}. To run a recipe that is in no table, leave out --table"
    )


def _recipes(methods: Sequence[str], epochs: Sequence[int], catalog: Catalog) -> list[Recipe]:
    """The recipes of methods. Raises ValueError where one has no recipe of these `epochs`, or
    several and none is chosen."""
    selected = []
    for method in methods:
        recipes = [catalog.recipes[name] for name in recipe_names([method], catalog)]
        matching = [recipe for recipe in recipes if not epochs or recipe.epochs in epochs]
        known_epochs = ", ".join(str(recipe.epochs) for recipe in recipes)
        if {recipe.epochs for recipe in matching} < set(epochs) or not matching:
            raise ValueError(
                f"{method} has no recipe of {', '.join(map(str, epochs))} epochs. "
                f"Known: {known_epochs}. For another length, use the nearest and add "
                f"--set epochs=N"
            )
        if not epochs and method in catalog.families and len(matching) > 1:
            raise ValueError(f"{method} has recipes of {known_epochs} epochs: choose with --epochs")
        selected += matching
    return selected


def _check_epochs(epochs: Sequence[int], catalog: Catalog) -> None:
    known = sorted({recipe.epochs for recipe in catalog.recipes.values()})
    for count in epochs:
        if count not in known:
            shown = ", ".join(map(str, known))
            raise ValueError(f"no recipe has {count} epochs. Known: {shown}")


def recipe_names(methods: Sequence[str], catalog: Catalog) -> list[str]:
    """The recipes of families or single recipes, whatever their length. Raises ValueError for a
    name that is neither."""
    names: list[str] = []
    for method in methods:
        if method not in catalog.families and method not in catalog.recipes:
            families, recipes = catalog.families, catalog.recipes
            known = [*families, *recipes] if method.endswith("ep") else list(families)
            raise ValueError(unknown("method", method, known))
        names += catalog.families.get(method, [method])
    return names


def probe(recipe: Recipe) -> str:
    """The linear protocol that the paper reads a recipe with, on the data of its pre-training."""
    name = PROBES.get(family(recipe.name)) or PROBES.get(recipe.method, "linear_lars")
    return f"{name}_in100" if recipe.data == "imagenet100" else name


def of_paper(recipe: Recipe) -> list[str]:
    """The protocols by which the paper's tables judge a recipe; of one that none has, linear."""
    return list(_protocols_in_tables(recipe.name)) or [probe(recipe)]


@cache
def _protocols_in_tables(recipe: str) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            row.protocols[column.eval]
            for table in map(load, TABLES)
            for row, column in table.cells()
            if column.eval in row.protocols and recipe_name(row, column) == recipe
        )
    )


def evaluations(
    recipe: Recipe | None, asked: Sequence[str], catalog: Catalog, suite: Suite
) -> list[str]:
    """The protocols for a backbone that corresponds to `recipe` (None: to none of the paper's):
    those asked for, else those by which the paper judges it, as far as the suite has a scale for
    them. Raises ValueError for names that do not exist."""
    if asked:
        return _protocols(recipe, asked, catalog)
    if recipe:
        names = of_paper(recipe)
    else:
        names = _protocols(None, ("linear", "semi", "voc", "coco"), catalog)
    return [name for name in names if _has_scale(suite, name)]


def _protocols(recipe: Recipe | None, evals: Sequence[str], catalog: Catalog) -> list[str]:
    names: list[str] = []
    for name in evals:
        if name == "linear":
            names.append(probe(recipe) if recipe else "linear_lars")
        elif name in EVALS:
            names += EVALS[name]
        elif name in catalog.protocols:
            names.append(name)
        else:
            raise ValueError(unknown("evaluation", name, ["linear", *EVALS, *catalog.protocols]))
    return list(dict.fromkeys(names))


def recipe_name(row: Row, column: Column) -> str | None:
    """The recipe that fills a cell, or None where nothing can."""
    return _as_long(row.family(column), row, column)


def baseline_name(row: Row, column: Column) -> str | None:
    """The recipe that the overhead in a cell is over, or None for a row without a baseline."""
    return _as_long(row.baseline, row, column)


def _as_long(family: str | None, row: Row, column: Column) -> str | None:
    name = f"{family}_{epochs(row, column)}ep"
    return name if name in RECIPES else None
