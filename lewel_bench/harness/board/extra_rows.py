"""Rows that are not in the paper: a label and a backbone, for `table --with`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lewel_bench.files import read_json
from lewel_bench.harness.plan import cells
from lewel_bench.harness.plan.catalog import Catalog
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.harness.rundir import SPEC
from lewel_bench.pretrain.recipe import Backbone, Recipe
from lewel_bench.results.store import Store
from lewel_bench.results.table import PRETRAIN, Column, Row, Table
from lewel_bench.value import unknown

UNKNOWN = "unknown"  # in a row's id, for the epochs of a pre-training


@dataclass(frozen=True)
class Extra:
    """A backbone whose numbers are to stand beside the paper's: the name by which it is asked for,
    the row's label, and the key of an imported one (empty: it is that of a recipe of the user's,
    another with each seed). `recipe` is the recipe of the paper's that it stands for (empty:
    none), `epochs` its length where that is known."""

    name: str
    label: str
    key: str
    recipe: str = ""
    epochs: int | None = None


def find(store: Store, names: Sequence[str], catalog: Catalog) -> list[Extra]:
    """The imported checkpoints, and recipes of the user's own, of these names; the name of a family
    stands for all its recipes. Raises ValueError naming the nearest."""
    known = beside(store, catalog) if names else {}
    found: dict[str, Extra] = {}
    for name in names:
        several = [n for n in catalog.families.get(name, ()) if n in known] or [name]
        for one in several:
            if one not in known:
                if not known:
                    raise ValueError(
                        f"--with {name}: under {store.root} there is no imported checkpoint "
                        f"(lewel-bench eval --checkpoint FILE --name {name}) and no method of your "
                        "own (lewel-bench run --method ./my_method.py:recipe)"
                    )
                raise ValueError(unknown("checkpoint or recipe", name, known))
            found[one] = known[one]
    return list(found.values())


def beside(store: Store, catalog: Catalog) -> dict[str, Extra]:
    """Every backbone here that can stand beside the paper's, by name."""
    return {**own(catalog), **imported(store, catalog)}


def own(catalog: Catalog) -> dict[str, Extra]:
    """The recipes of the user's own that are known here, by name."""
    return {
        recipe.name: Extra(recipe.name, f"{recipe.label} (own)", "", epochs=recipe.epochs)
        for recipe in catalog.own_recipes()
    }


def imported(store: Store, catalog: Catalog) -> dict[str, Extra]:
    """Every imported checkpoint under a root, by name. Those that share one, as after a merge, or
    have a recipe's, are told apart by their keys."""
    said = {key: labels(store, key) for key, one in store.records.items() if one.kind == "import"}
    names = {key: str(one.get("name") or store.records[key].name) for key, one in said.items()}
    shared = Counter([*names.values(), *catalog.families, *catalog.recipes])
    found = {}
    for key, name in names.items():
        record = store.records[key]
        if shared[name] > 1:
            name = f"{name}-{key[:6]}"
        recipe = str(said[key].get("as") or "")
        recipe = recipe if recipe in catalog.recipes else ""  # one of another lab's own
        doubt = "; proof failed" if record.warnings else ""
        label = f"{name} (imported, weights {record.spec.get('tensors', '')[:8]}{doubt})"
        length = catalog.recipes[recipe].epochs if recipe else said[key].get("epochs")
        found[name] = Extra(name, label, key, recipe, length)
    return found


def alike(backbone: Backbone, recipe: Recipe, suite: Suite) -> bool:
    """Whether published values of a recipe may stand beside numbers of a backbone. At another scale
    than the paper's they are no more than an orientation, beside any."""
    wanted = recipe.backbone
    usual = {"stride": wanted.stride, "mean": wanted.mean}  # the same network otherwise
    return not suite.comparable or backbone.model_copy(update=usual) == wanted


def standing(store: Store, suite: Suite, one: Extra, catalog: Catalog) -> Extra:
    """An extra without the recipe that it stands for where that has another backbone."""
    if not (one.key and one.recipe):
        return one
    backbone = Backbone.model_validate(store.records[one.key].spec["backbone"])
    return one if alike(backbone, catalog.recipes[one.recipe], suite) else replace(one, recipe="")


def labels(store: Store, key: str) -> dict[str, Any]:
    """What a checkpoint is called, which is no part of its identity and may change."""
    return read_json(store.root / key / SPEC) or {}


def extended(
    quoted: Table, extras: Sequence[Extra], evaluated: Callable[[Extra, str], bool]
) -> Table:
    """`quoted` with a row for each extra (in Table 4 one for each detector): below the row of its
    recipe, with that row's published values and protocols, else at the end of the table. There it
    has of the table's protocols for an evaluation the first that it is `evaluated` by."""
    rows, remarks = list(quoted.rows), list(quoted.remarks)
    lengths = {column.epochs for column in quoted.columns if column.epochs}
    for extra in extras:
        for model, row in _rows(quoted, extra, evaluated):
            rows.insert(rows.index(model) + 1, row)
        if extra.epochs is None and len(lengths) > 1:
            remarks.append(
                f"The length of {extra.name}'s pre-training is not given (eval --epochs N): its "
                "values stand in the columns of every length."
            )
        elif lengths and extra.epochs not in (None, *lengths):
            remarks.append(
                f"{extra.name} is pre-trained for {extra.epochs} epochs: no column here is of that "
                "length."
            )
    # not validated anew: such a row may have no epochs
    return quoted.model_copy(update={"rows": tuple(rows), "remarks": tuple(remarks)})


def _rows(
    quoted: Table, extra: Extra, evaluated: Callable[[Extra, str], bool]
) -> Iterator[tuple[Row, Row]]:
    """The rows of one extra, each with the row of the paper that it stands below."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in quoted.rows:
        groups.setdefault(_prefix(row), []).append(row)
    for prefix, rows in groups.items():
        beside = [row for row in rows if any(_is(extra, row, c) for c in quoted.columns)]
        model = (beside or rows)[-1]
        evals = dict.fromkeys(c.eval for c in quoted.columns if c.eval != PRETRAIN)
        known = {
            name: list(
                dict.fromkeys(r.protocols[name] for r in beside or rows if name in r.protocols)
            )
            for name in evals
        }
        protocols = {
            name: next((p for p in several if evaluated(extra, p)), several[0])
            for name, several in known.items()
            if several
        }
        # what a pre-training here cost is in its record
        filled = (*protocols, *(() if extra.key else (PRETRAIN,)))
        more = [
            c.id
            for c in quoted.columns
            if c.eval in filled and extra.epochs in (None, c.epochs or extra.epochs)
        ]
        if not more:
            continue
        own = [c.id for c in quoted.columns if beside and _is(extra, model, c)]
        length = (str(extra.epochs or UNKNOWN),) if model.epochs else ()
        yield (
            model,
            Row(
                id=":".join((*prefix, extra.name, *length)),
                label=extra.label,
                block=model.block,
                recipes=dict.fromkeys(filled, extra.name),
                epochs=extra.epochs if model.epochs else None,
                origin=model.origin if beside else "none",
                protocols=protocols,
                values={id: value for id, value in model.values.items() if id in own},
                origins={id: one for id, one in model.origins.items() if id in own},
                notes={id: note for id, note in model.notes.items() if id in own},
                more=tuple(more),
            ),
        )


def _prefix(row: Row) -> tuple[str, ...]:
    """What stands before the name of the method in a row's id."""
    parts = row.id.split(":")
    return tuple(parts[: -2 if row.epochs else -1])


def _is(extra: Extra, row: Row, column: Column) -> bool:
    return bool(extra.recipe) and cells.recipe_name(row, column) == extra.recipe
