"""A filled table as lines of texts, which the terminal, Markdown, LaTeX and HTML draw alike.

`sheet` has a block of up to four lines for each row of the paper: published, measured, difference,
verdict. `compact` has one line for each row with a measurement.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lewel_bench.results.cell_text import BLANK, NEUTRAL, SIGNS, Cell, CellTexts
from lewel_bench.results.fill import Entry, FilledTable
from lewel_bench.results.table import Column, Row

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Line:
    """One line of a block: its name, and one cell for each column of the table."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """One row of the paper: the texts of the leading columns, and its lines."""

    row: str
    lead: tuple[str, ...]
    lines: tuple[Line, ...]

    def rows(self) -> list[tuple[Cell, ...]]:
        """Its lines as cells under the sheet's header; the lead stands on the first line only."""
        blank = ("",) * len(self.lead)
        return [
            (*map(Cell, blank if i else self.lead), Cell(line.name), *line.cells)
            for i, line in enumerate(self.lines)
        ]


@dataclass(frozen=True)
class Sheet:
    """A table to be drawn. `header` names the leading columns, the line names, the columns;
    `remarks` come below, then `notes` (numbered from 1 as the cells refer to them: "[1]"), then
    `problems` (why cells are failed, stale or missing, and what is another number elsewhere)."""

    title: str
    caption: str
    header: tuple[str, ...]
    blocks: tuple[Block, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def frame(self, draw: Callable[[Cell], str]) -> "DataFrame":
        """Its lines as texts, a cell as `draw` writes it; the header names the columns."""
        from pandas import DataFrame

        rows = [list(map(draw, cells)) for block in self.blocks for cells in block.rows()]
        return DataFrame(rows, columns=[draw(Cell(name)) for name in self.header], dtype="object")


def title(filled: FilledTable) -> str:
    """The title of a table's sheet."""
    return f"Table {filled.table.id}. {headline(filled)} (suite {filled.suite})"


def headline(filled: FilledTable) -> str:
    """What a table shows: the paper's title, or on what was measured where that is something
    else."""
    if filled.as_published:
        return filled.table.title
    if not filled.where:
        return f"No measurements. Published: {filled.table.title}"
    return f"Measured: {'; '.join(filled.where)}. Published: {filled.table.title}"


def sheet(filled: FilledTable) -> Sheet:
    """`filled` as texts to be drawn, with all that it has."""
    texts = CellTexts(filled)
    return _sheet(filled, texts, (_lines(filled, row, texts) for row in filled.table.rows))


def compact(filled: FilledTable, everything: bool = False) -> Sheet:
    """`filled` with a line for each row: measured value, sign of the verdict and published value in
    one cell. Rows and columns without a measurement are folded, unless there is none at all or
    `everything` is wanted; notes are those on the rest."""
    measured = [id for id, entry in filled.entries.items() if entry.mean is not None]
    shown = filled
    if measured and not everything:
        shown = _only(filled, {row for row, _ in measured}, {column for _, column in measured})
    texts = CellTexts(shown)
    lines = (
        (Line("", tuple(texts.compact(*cell) for cell in _cells(shown, row))),)
        for row in shown.table.rows
    )
    verdicts = {shown.entries[id].verdict for id in measured}
    signs = (f"; {sign} {verdict}" for verdict, sign in SIGNS.items() if verdict in verdicts)
    legend = f"In a cell: measured ± std (seeds) {NEUTRAL} published{''.join(signs)}."
    drawn = _sheet(shown, texts, lines)
    remarks = (*_folded(filled, shown), legend, *drawn.remarks)
    return replace(drawn, title=title(filled), remarks=remarks)


def _sheet(filled: FilledTable, texts: CellTexts, lines: Iterable[tuple[Line, ...]]) -> Sheet:
    table = filled.table
    by_row = any(row.epochs for row in table.rows)
    lead = ("Method", "Epochs") if by_row else ("Method",)
    orientation = (
        f"Suite {filled.suite}: the paper's values are shown for orientation only. They were not "
        "measured on this suite's data, backbone and schedule, so there is no difference and no "
        "verdict.",
    )
    return Sheet(
        title=title(filled),
        caption=table.caption if filled.as_published else f"The paper's caption: {table.caption}",
        header=(*lead, "", *(f"{column.label} ({column.unit})" for column in table.columns)),
        blocks=tuple(
            Block(row.id, (row.label, str(row.epochs or BLANK))[: len(lead)], of_row)
            for row, of_row in zip(table.rows, lines, strict=True)
        ),
        remarks=(
            *(() if filled.comparable else orientation),
            *texts.legend(),
            *(f"Engine of {name}: {engine}." for name, engine in filled.engines.items()),
            *table.remarks,
        ),
        notes=texts.notes,
        problems=_problems(filled),
    )


def _lines(filled: FilledTable, row: Row, texts: CellTexts) -> tuple[Line, ...]:
    cells = _cells(filled, row)
    aside = "" if filled.comparable else " (orientation)"
    draw = {f"published{aside}": texts.published}
    if any(entry and entry.state for _, entry in cells):
        draw["measured"] = texts.measured
        if filled.comparable:
            draw["difference"] = texts.difference
        draw["verdict"] = texts.verdict
    return tuple(Line(name, tuple(draw[name](*cell) for cell in cells)) for name in draw)


def _cells(filled: FilledTable, row: Row) -> list[tuple[Column, Entry | None]]:
    return [(column, filled.entries.get((row.id, column.id))) for column in filled.table.columns]


def _only(filled: FilledTable, rows: set[str], columns: set[str]) -> FilledTable:
    """The part of a table that has these rows and columns."""
    parts = {
        "rows": tuple(row for row in filled.table.rows if row.id in rows),
        "columns": tuple(column for column in filled.table.columns if column.id in columns),
    }
    entries = {
        id: entry for id, entry in filled.entries.items() if id[0] in rows and id[1] in columns
    }
    return replace(filled, table=filled.table.model_copy(update=parts), entries=entries)


def _folded(filled: FilledTable, shown: FilledTable) -> list[str]:
    """What is left out of a table, and the states of those cells that are more than missing."""
    left_out = {
        "row": len(filled.table.rows) - len(shown.table.rows),
        "column": len(filled.table.columns) - len(shown.table.columns),
    }
    counts = [f"{n} {name}{'s' * (n != 1)}" for name, n in left_out.items() if n]
    entries = (entry for id, entry in filled.entries.items() if id not in shown.entries)
    states = Counter(entry.state for entry in entries)
    busy = [f"{n} {state}" for state, n in states.items() if state not in (None, "missing")]
    cells = f" ({', '.join(busy)})" if busy else ""
    return [f"{' and '.join(counts)} without a measurement{cells}: --all"] if counts else []


def _problems(filled: FilledTable) -> tuple[str, ...]:
    # One line for each row and reason: a failed run empties several columns.
    texts: dict[tuple[str, str], list[str]] = {}
    for (row, column), entry in filled.entries.items():
        for reason in (*entry.reasons, *entry.elsewhere):
            texts.setdefault((row, reason), []).append(column)
    return tuple(f"{row} ({', '.join(ids)}): {reason}" for (row, reason), ids in texts.items())
