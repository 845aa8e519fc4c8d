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
    known = all_extras(store, catalog) if names else {}
    extras: dict[str, Extra] = {}
    for name in names:
        names_of_rows = [n for n in catalog.families.get(name, ()) if n in known] or [name]
        for recipe in names_of_rows:
            if recipe not in known:
                if not known:
                    raise ValueError(
                        f"--with {name}: under {store.root} there is no imported checkpoint "
                        f"(lewel-bench eval --checkpoint FILE --name {name}) and no method of your "
                        "own (lewel-bench run --method ./my_method.py:recipe)"
                    )
                raise ValueError(unknown("checkpoint or recipe", name, known))
            extras[recipe] = known[recipe]
    return list(extras.values())


def all_extras(store: Store, catalog: Catalog) -> dict[str, Extra]:
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
    labels_by_key = {
        key: labels(store, key) for key, record in store.records.items() if record.kind == "import"
    }
    names = {
        key: str(label.get("name") or store.records[key].name)
        for key, label in labels_by_key.items()
    }
    shared = Counter([*names.values(), *catalog.families, *catalog.recipes])
    rows_by_name = {}
    for key, name in names.items():
        record = store.records[key]
        if shared[name] > 1:
            name = f"{name}-{key[:6]}"
        recipe = str(labels_by_key[key].get("as") or "")
        recipe = recipe if recipe in catalog.recipes else ""  # one of another lab's own
        doubt = "; sanity check failed" if record.warnings else ""
        label = f"{name} (imported, weights {record.spec.get('tensors', '')[:8]}{doubt})"
        length = catalog.recipes[recipe].epochs if recipe else labels_by_key[key].get("epochs")
        rows_by_name[name] = Extra(name, label, key, recipe, length)
    return rows_by_name


def alike(backbone: Backbone, recipe: Recipe, suite: Suite) -> bool:
    """Whether published values of a recipe may stand beside numbers of a backbone. At another scale
    than the paper's they are no more than an orientation, beside any."""
    wanted = recipe.backbone
    usual = {"stride": wanted.stride, "mean": wanted.mean}  # the same network otherwise
    return not suite.comparable or backbone.model_copy(update=usual) == wanted


def standing(store: Store, suite: Suite, extra: Extra, catalog: Catalog) -> Extra:
    """An extra without the recipe that it stands for where that has another backbone."""
    if not (extra.key and extra.recipe):
        return extra
    backbone = Backbone.model_validate(store.records[extra.key].spec["backbone"])
    return (
        extra
        if alike(backbone, catalog.recipes[extra.recipe], suite)
        else replace(extra, recipe="")
    )


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
                f"The length of {extra.name}'s pre-training is unknown (eval --epochs N): its "
                "values appear in the columns of every length."
            )
        elif lengths and extra.epochs not in (None, *lengths):
            remarks.append(
                f"{extra.name} is pre-trained for {extra.epochs} epochs: this table has no column "
                "of that length."
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
        related = [row for row in rows if any(_is(extra, row, c) for c in quoted.columns)]
        model = (related or rows)[-1]
        evals = dict.fromkeys(c.eval for c in quoted.columns if c.eval != PRETRAIN)
        known = {
            name: list(
                dict.fromkeys(r.protocols[name] for r in related or rows if name in r.protocols)
            )
            for name in evals
        }
        protocols = {
            name: next((p for p in values if evaluated(extra, p)), values[0])
            for name, values in known.items()
            if values
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
        own = [c.id for c in quoted.columns if related and _is(extra, model, c)]
        length = (str(extra.epochs or UNKNOWN),) if model.epochs else ()
        yield (
            model,
            Row(
                id=":".join((*prefix, extra.name, *length)),
                label=extra.label,
                block=model.block,
                recipes=dict.fromkeys(filled, extra.name),
                epochs=extra.epochs if model.epochs else None,
                origin=model.origin if related else "none",
                protocols=protocols,
                values={id: value for id, value in model.values.items() if id in own},
                origins={id: origin for id, origin in model.origins.items() if id in own},
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
