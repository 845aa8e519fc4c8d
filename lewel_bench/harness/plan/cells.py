"""What a command line asks for, as cells: recipes, each with the protocols to run on it; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.recipes import FAMILIES, RECIPES, family
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
class Selection:
    """What a command line asks for; empty means no restriction."""

    methods: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    tables: tuple[str, ...] = ()
    evals: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    settings: tuple[tuple[str, Any], ...] = ()


def protocols(selection: Selection, suite: Suite) -> list[str]:
    """The protocols that a selection runs in a suite."""
    return list(dict.fromkeys(name for _, evals in cells(selection, suite) for name in evals))


def cells(selection: Selection, suite: Suite) -> list[tuple[Recipe, tuple[str, ...]]]:
    """Recipes in the order asked for, each with the protocols to run on it: those asked for, else
    those by which the paper judges it, as far as the suite has a scale for them."""
    if selection.tables:
        wanted = _of_tables(selection, suite)
    else:
        wanted = {
            recipe.name: evaluations(recipe.name, selection.evals, suite)
            for recipe in _recipes(selection.methods, selection.epochs)
        }
    if not wanted:
        raise ValueError(_nothing(selection, suite))
    return [(RECIPES[name], tuple(protocols)) for name, protocols in wanted.items()]


def tables(names: Sequence[str]) -> list[Table]:
    """The tables of these numbers; `all` is every one. Raises ValueError for another name."""
    known = (*TABLES, "all")
    if odd := [name for name in names if name not in known]:
        raise ValueError(unknown("table", odd[0], known))
    return [load(name) for name in (TABLES if "all" in names else names)]


def _of_tables(selection: Selection, suite: Suite) -> dict[str, list[str]]:
    """The recipes of the cells, by name, each with the protocols to run on it."""
    _lengths(selection.epochs)
    only = set(allowed(selection.methods)) if selection.methods else None
    wanted: dict[str, list[str]] = {}
    for table in tables(selection.tables):
        for row, column in table.cells():
            name, protocol = recipe_name(row, column), row.protocols.get(column.eval)
            if name is None or (only is not None and name not in only):
                continue
            if selection.epochs and RECIPES[name].epochs not in selection.epochs:
                continue
            if protocol and not selection.evals and not _has_scale(suite, protocol):
                continue
            protocols = wanted.setdefault(name, [])
            if protocol and protocol not in protocols:
                protocols.append(protocol)
    if selection.evals:
        return {name: _protocols(name, selection.evals) for name in wanted}
    return wanted


def _has_scale(suite: Suite, protocol: str) -> bool:
    return suite.comparable or protocol in suite.protocols


def _nothing(selection: Selection, suite: Suite) -> str:
    if not selection.tables:
        return (
            "nothing is selected: name a method (--method lewel_m --epochs 200) or a table "
            "(--table 1), and see `lewel-bench ls recipes`"
        )
    named = "table" if len(selection.tables) == 1 else "tables"
    lengths = f" at {', '.join(map(str, selection.epochs))} epochs" if selection.epochs else ""
    methods = f" of {', '.join(selection.methods)}" if selection.methods else ""
    scale = "" if suite.comparable else f" for which the suite {suite.name} has a scale"
    return (
        f"nothing is selected: {named} {', '.join(selection.tables)}: no cell{methods}{lengths}"
        f"{scale}. What has no row there is run without --table"
    )


def _recipes(methods: Sequence[str], lengths: Sequence[int]) -> list[Recipe]:
    found = []
    for method in methods:
        names = allowed([method])
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


def allowed(methods: Sequence[str]) -> list[str]:
    """The recipes of families or single recipes, whatever their length."""
    return [name for m in methods for name in FAMILIES.get(_known(m), [m])]


def _known(method: str) -> str:
    if method not in FAMILIES and method not in RECIPES:
        known = {**FAMILIES, **RECIPES} if method.endswith("ep") else FAMILIES
        raise ValueError(unknown("method", method, list(known)))
    return method


def probe(recipe: str) -> str:
    """The linear protocol that the paper reads a recipe with, on the data of its pre-training."""
    name = PROBES.get(family(recipe)) or PROBES.get(RECIPES[recipe].method, "linear_lars")
    return f"{name}_in100" if RECIPES[recipe].data == "imagenet100" else name


@cache
def of_paper(recipe: str) -> list[str]:
    """The protocols by which the paper's tables judge a recipe; of one that none has, linear."""
    return list(
        dict.fromkeys(
            row.protocols[column.eval]
            for table in map(load, TABLES)
            for row, column in table.cells()
            if column.eval in row.protocols and recipe_name(row, column) == recipe
        )
    ) or [probe(recipe)]


def evaluations(recipe: str, asked: Sequence[str], suite: Suite) -> list[str]:
    """The protocols for a backbone that stands for `recipe` (empty: for none of the paper's): those
    asked for, else those by which the paper judges it, as far as the suite has a scale for them."""
    if asked:
        return _protocols(recipe, asked)
    names = of_paper(recipe) if recipe else _protocols(recipe, ("linear", "semi", "voc", "coco"))
    return [n for n in names if _has_scale(suite, n)]


def _protocols(recipe: str, evals: Sequence[str]) -> list[str]:
    names: list[str] = []
    for one in evals:
        if one == "linear":
            names.append(probe(recipe) if recipe else "linear_lars")
        elif one in EVALS:
            names += EVALS[one]
        elif one in PROTOCOLS:
            names.append(one)
        else:
            raise ValueError(unknown("evaluation", one, ["linear", *EVALS, *PROTOCOLS]))
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
