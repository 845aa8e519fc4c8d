"""A filled table as a neutral sheet of texts, which the terminal, Markdown and LaTeX draw alike.

Each row of the paper is a block of up to four lines: published, measured, difference, verdict.
"""

from dataclasses import dataclass

from lewel_bench.results.fill import Entry, Filled
from lewel_bench.results.table import Column, Row

BLANK = "–"


@dataclass(frozen=True)
class Line:
    """One line of a block: its name, and one text for each column of the table."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One row of the paper: the texts of the leading columns, and its lines."""

    row: str
    lead: tuple[str, ...]
    lines: tuple[Line, ...]

    def texts(self) -> list[tuple[str, ...]]:
        """Its lines as texts under the sheet's header; the lead stands on the first line only."""
        blank = ("",) * len(self.lead)
        return [
            (*(blank if i else self.lead), line.name, *line.cells)
            for i, line in enumerate(self.lines)
        ]


@dataclass(frozen=True)
class Sheet:
    """A table to be drawn. `header` names the leading columns, the line names, the columns;
    `remarks` come below, then `notes` (numbered from 1 as the cells refer to them: "[1]"), then
    `problems` (why cells are failed, stale or missing)."""

    title: str
    caption: str
    header: tuple[str, ...]
    blocks: tuple[Block, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def sheet(filled: Filled) -> Sheet:
    """`filled` as texts to be drawn."""
    table = filled.table
    notes = list(dict.fromkeys(entry.note for entry in filled.entries.values() if entry.note))
    by_row = any(row.epochs for row in table.rows)
    lead = ("Method", "Epochs") if by_row else ("Method",)
    orientation = (
        f"Suite {filled.suite}: the paper's values are shown for orientation only. They were not "
        "measured on this suite's data, backbone and schedule: the difference is no verdict.",
    )
    return Sheet(
        title=f"Table {table.id}. {table.title} (suite {filled.suite})",
        caption=table.caption,
        header=(*lead, "", *(f"{column.label} ({column.unit})" for column in table.columns)),
        blocks=tuple(_block(filled, row, by_row, notes) for row in table.rows),
        remarks=(
            *(() if filled.comparable else orientation),
            *(f"Engine of {name}: {one}." for name, one in filled.engines.items()),
            *table.remarks,
        ),
        notes=tuple(notes),
        problems=_problems(filled),
    )


def _block(filled: Filled, row: Row, by_row: bool, notes: list[str]) -> Block:
    lead = (row.label, str(row.epochs or BLANK)) if by_row else (row.label,)
    cells = [(column, filled.entries.get((row.id, column.id))) for column in filled.table.columns]
    aside = "" if filled.comparable else " (orientation)"
    lines = [
        Line(f"published{aside}", tuple(_published(one, entry, notes) for one, entry in cells))
    ]
    if any(entry and entry.state for _, entry in cells):
        lines += [
            Line("measured", tuple(_measured(one, entry) for one, entry in cells)),
            Line(f"difference{aside}", tuple(_difference(one, entry) for one, entry in cells)),
            Line("verdict", tuple(_verdict(entry) for _, entry in cells)),
        ]
    return Block(row.id, lead, tuple(lines))


def _published(column: Column, entry: Entry | None, notes: list[str]) -> str:
    if entry is None or entry.published is None:
        return BLANK
    mark = f" [{notes.index(entry.note) + 1}]" if entry.note else ""
    return f"{entry.published:.{column.digits}f}{mark}"


def _measured(column: Column, entry: Entry | None) -> str:
    if entry is None or entry.mean is None:
        return BLANK
    spread = "" if entry.std is None else f" ± {entry.std:.{column.digits}f}"
    seeds = f"{entry.n}" if entry.n == entry.wanted else f"{entry.n} of {entry.wanted}"
    trials = "" if entry.trial_std is None else f", trials ± {entry.trial_std:.{column.digits}f}"
    return f"{entry.mean:.{column.digits}f}{spread} ({seeds}{trials})"


def _difference(column: Column, entry: Entry | None) -> str:
    if entry is None or entry.delta is None:
        return BLANK
    text = f"{entry.delta:+.{column.digits}f}".replace("-", "−")
    return text if float(text.replace("−", "-")) else text[1:]  # no sign on a rounded zero


def _verdict(entry: Entry | None) -> str:
    if entry is None or entry.state is None:
        return BLANK
    rest = entry.state not in ("done", entry.verdict)
    return f"{entry.verdict}; {entry.state}" if rest else entry.verdict


def _problems(filled: Filled) -> tuple[str, ...]:
    # One line for each row and reason: a failed run empties several columns.
    found: dict[tuple[str, str], list[str]] = {}
    for (row, column), entry in filled.entries.items():
        for reason in entry.reasons:
            found.setdefault((row, reason), []).append(column)
    return tuple(f"{row} ({', '.join(ids)}): {reason}" for (row, reason), ids in found.items())
