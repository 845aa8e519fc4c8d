"""The cells of filled tables as values: the rows of a DataFrame, from which CSV and JSON come."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lewel_bench.results.fill import FilledTable
from lewel_bench.results.table import epochs

if TYPE_CHECKING:
    from pandas import DataFrame

PLACE = ("table", "suite", "comparable", "row", "label", "column")  # of a cell
TYPES = {
    **dict.fromkeys(("published", "mean", "std", "trial_std", "delta"), "float64"),
    "epochs": "Int64",
}


def frame(tables: Sequence[FilledTable]) -> "DataFrame":
    """The cells of `tables` in reading order, a row a cell: its PLACE, then the fields of `cells`.
    What a cell lacks is NaN or None; numbers are unrounded, in its `unit`."""
    from pandas import DataFrame

    return DataFrame([cell for filled in tables for cell in cells(filled)]).astype(TYPES)


def cells(filled: FilledTable) -> Iterator[dict[str, Any]]:
    """The cells of a table that the paper or a run can fill, in reading order.

    `row` and `column` are ids, `label` the row's name. `published` is the paper's value, `origin`
    where it is from (table.ORIGINS). `mean`, `std` and `n` of `wanted` are over seeds, `trial_std`
    over trials of the same backbone; `delta` is mean - published. `keys` are the records behind the
    mean, `reasons` say why a cell is failed, stale or missing, `incomparable` why its number cannot
    be compared with the paper's; the rest is as in `fill.Entry` and `table.Column`.
    """
    for (row_id, column_id), entry in filled.entries.items():
        row, column = filled.table.row(row_id), filled.table.column(column_id)
        protocol = row.protocols.get(column.eval)
        yield {
            "table": filled.table.id,
            "suite": filled.suite,
            "comparable": filled.comparable,
            "row": row.id,
            "label": row.label,
            "column": column.id,
            "recipe": row.family(column),
            "published": entry.published,
            "best_published": entry.best_published,
            "origin": entry.origin,
            "mean": entry.mean,
            "best": entry.best,
            "std": entry.std,
            "trial_std": entry.trial_std,
            "n": entry.n,
            "wanted": entry.wanted,
            "delta": entry.delta,
            "state": entry.state,
            "verdict": entry.verdict,
            "keys": list(entry.keys),
            "epochs": epochs(row, column),
            "eval": column.eval,
            "protocol": protocol,
            "engine": filled.engines.get(protocol or ""),
            "setting": entry.setting,
            "where": list(entry.where),
            "incomparable": list(entry.incomparable),
            "caveats": list(entry.caveats),
            "metric": column.metric,
            "unit": column.unit,
            "note": entry.note,
            "reasons": list(entry.reasons),
            "elsewhere": list(entry.elsewhere),
        }
