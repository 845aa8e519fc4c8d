"""A filled table as a neutral sheet of texts, which the terminal, Markdown, LaTeX and HTML draw
alike.

Each row of the paper is a block of up to four lines: published, measured, difference, verdict.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lewel_bench.results.fill import Entry, FilledTable
from lewel_bench.results.table import ORIGINS, Column, Row

BLANK = "–"
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"  # Unicode has no raised q


@dataclass(frozen=True)
class Cell:
    """What stands in one place: a value, bold where it is the `best`, what follows it, and what
    is to be told `about` it where there is room."""

    value: str
    rest: str = ""
    best: bool = False
    about: str = ""

    def __str__(self) -> str:
        return self.value + self.rest

    def drawn(self, escape: Callable[[str], str], bold: str) -> str:
        """Its text in a language: `escape` makes a text harmless, `bold` is such as "**{}**"."""
        value = escape(self.value)
        return (bold.format(value) if self.best else value) + escape(self.rest)


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
    """`filled` as texts to be drawn."""
    table = filled.table
    entries = filled.entries.values()
    notes = list(dict.fromkeys(entry.note for entry in entries if entry.note))
    notes += dict.fromkeys(text for entry in entries for text in _about_numbers(filled, entry))
    marks = _marks(filled)
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
        blocks=tuple(_block(filled, row, by_row, notes, marks) for row in table.rows),
        remarks=(
            *(() if filled.comparable else orientation),
            *_legend(marks),
            *(f"Engine of {name}: {engine}." for name, engine in filled.engines.items()),
            *table.remarks,
        ),
        notes=tuple(notes),
        problems=_problems(filled),
    )


def _marks(filled: FilledTable) -> dict[tuple[str, str], str]:
    """The mark of a column's measured values by setting, where the column mixes several."""
    mixed = {column.id: filled.mixed(column.id) for column in filled.table.columns}
    settings = list(dict.fromkeys(setting for group in mixed.values() for setting in group))
    return {
        (column, setting): _letter(settings.index(setting))
        for column, group in mixed.items()
        for setting in group
    }


def _letter(index: int) -> str:
    more, last = divmod(index, len(LETTERS))
    return (_letter(more - 1) if more else "") + LETTERS[last]


def _legend(marks: dict[tuple[str, str], str]) -> tuple[str, ...]:
    named = dict.fromkeys(f"{mark} {setting}" for (_, setting), mark in marks.items())
    return (f"Some columns mix measurement settings: {'; '.join(named)}.",) if named else ()


def _block(
    filled: FilledTable, row: Row, by_row: bool, notes: list[str], marks: dict[tuple[str, str], str]
) -> Block:
    lead = (row.label, str(row.epochs or BLANK)) if by_row else (row.label,)
    cells = [(column, filled.entries.get((row.id, column.id))) for column in filled.table.columns]
    aside = "" if filled.comparable else " (orientation)"
    lines = [
        Line(
            f"published{aside}", tuple(_published(column, entry, notes) for column, entry in cells)
        )
    ]
    if any(entry and entry.state for _, entry in cells):
        measured = tuple(_measured(column, entry, marks, notes) for column, entry in cells)
        lines.append(Line("measured", measured))
        if filled.comparable:
            lines.append(Line("difference", tuple(_difference(column, e) for column, e in cells)))
        lines.append(Line("verdict", tuple(_verdict(filled, e, notes) for _, e in cells)))
    return Block(row.id, lead, tuple(lines))


def _published(column: Column, entry: Entry | None, notes: list[str]) -> Cell:
    if entry is None or entry.published is None:
        return Cell(BLANK)
    mark = f" [{notes.index(entry.note) + 1}]" if entry.note else ""
    about = "; ".join(filter(None, (ORIGINS[entry.origin], entry.note)))
    return Cell(f"{entry.published:.{column.digits}f}", mark, entry.best_published, about)


def _about_numbers(filled: FilledTable, entry: Entry) -> list[str]:
    """The notes on a measured number: its caveats, and why it cannot be compared (which is said
    once for the whole of a table where nothing can)."""
    why = [_incomparable(entry)] if entry.incomparable and filled.comparable else []
    return [*entry.caveats, *why]


def _incomparable(entry: Entry) -> str:
    return f"Not comparable: {'; '.join(entry.incomparable)}."


def _measured(
    column: Column, entry: Entry | None, marks: dict[tuple[str, str], str], notes: list[str]
) -> Cell:
    if entry is None or entry.mean is None:
        return Cell(BLANK)
    spread = "" if entry.std is None else f" ± {entry.std:.{column.digits}f}"
    seeds = f"{entry.n}" if entry.n == entry.wanted else f"{entry.n} of {entry.wanted}"
    trials = "" if entry.trial_std is None else f", trials ± {entry.trial_std:.{column.digits}f}"
    mark = marks.get((column.id, entry.setting), "")
    noted = "".join(f" [{notes.index(text) + 1}]" for text in entry.caveats)
    rest = f"{spread} ({seeds}{trials}){mark}{noted}"
    records = f"records {', '.join(entry.keys)}"
    behind = (entry.setting, *entry.where, records, *entry.caveats, *entry.elsewhere)
    about = "; ".join(filter(None, behind))
    mean = f"{entry.mean:.{column.digits}f}".replace("-", "−")
    return Cell(mean, rest, entry.best, about)


def _difference(column: Column, entry: Entry | None) -> Cell:
    if entry is None or entry.delta is None:
        return Cell(BLANK)
    return Cell(signed(entry.delta, column.digits))


def signed(value: float, digits: int) -> str:
    """A difference with its sign, which a rounded zero has not."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def _verdict(filled: FilledTable, entry: Entry | None, notes: list[str]) -> Cell:
    if entry is None or entry.state is None:
        return Cell(BLANK)
    state = f"; {entry.state}" if entry.state not in ("done", entry.verdict) else ""
    mark = ""
    if entry.incomparable and filled.comparable:
        mark = f" [{notes.index(_incomparable(entry)) + 1}]"
    about = "; ".join((*entry.reasons, *entry.incomparable))
    return Cell(f"{entry.verdict}{state}", mark, about=about)


def _problems(filled: FilledTable) -> tuple[str, ...]:
    # One line for each row and reason: a failed run empties several columns.
    texts: dict[tuple[str, str], list[str]] = {}
    for (row, column), entry in filled.entries.items():
        for reason in (*entry.reasons, *entry.elsewhere):
            texts.setdefault((row, reason), []).append(column)
    return tuple(f"{row} ({', '.join(ids)}): {reason}" for (row, reason), ids in texts.items())
