"""Which recipe and which protocols fill a cell of the paper's tables, and names that stand for
several of them; pure."""

from collections.abc import Sequence
from functools import cache

from lewel_bench.harness.plan.catalog import Catalog
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


def tables(names: Sequence[str]) -> list[Table]:
    """The tables of these numbers; `all` is every one. Raises ValueError for another name."""
    known = (*TABLES, "all")
    if odd := [name for name in names if name not in known]:
        raise ValueError(unknown("table", odd[0], known))
    return [load(name) for name in (TABLES if "all" in names else names)]


def has_scale(suite: Suite, protocol: str) -> bool:
    """Whether a suite says how a protocol is scaled."""
    return suite.comparable or protocol in suite.protocols


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
        return protocol_names(recipe, asked, catalog)
    if recipe:
        names = of_paper(recipe)
    else:
        names = protocol_names(None, ("linear", "semi", "voc", "coco"), catalog)
    return [name for name in names if has_scale(suite, name)]


def protocol_names(recipe: Recipe | None, evals: Sequence[str], catalog: Catalog) -> list[str]:
    """The protocols that evaluations (linear, semi, ... or protocols) stand for on a backbone of
    `recipe`. Raises ValueError for a name that does not exist."""
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
