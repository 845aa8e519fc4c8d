"""What a person sees: tables, lists and progress. The only file that imports rich."""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from textwrap import wrap
from typing import Any, Literal, TextIO

from rich.box import HEAVY_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)
from rich.table import Table

from lewel_bench.pretrain.report import Report
from lewel_bench.results.cell_text import Cell
from lewel_bench.results.layout import Sheet
from lewel_bench.terminal import unescaped
from lewel_bench.value import printable

PLAIN_EVERY_S = 60.0
UNBOUND = 10_000  # columns of a terminal
FEW = 300  # rows; rich takes half a second for a thousand

STYLES = {
    "done": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "red",
    "missing": "yellow",
    "stale": "magenta",
    "reproduced": "green",
    "inconclusive": "yellow",
    "differs": "red",
}


def console() -> Console:
    """Standard output; as wide as the content needs when it is not a terminal."""
    return _console(sys.stdout, None if sys.stdout.isatty() else 200)


def _console(stream: TextIO, width: int | None = None) -> Console:
    """A console on a standard stream, whose own colours pass."""
    return Console(file=unescaped(stream), width=width, highlight=False)


def escape(text: str) -> str:
    """A text for rich that neither its markup nor a control character changes."""
    return escape_markup(printable(text, keep="\n"))


def show_list(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a simple table; in a pipe, or where there are many rows, a line a row; where a terminal
    is too narrow for that, a line a cell."""
    rows = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    if not sys.stdout.isatty() or len(rows) > FEW:
        lines = [columns, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[f"[{STYLES[c]}]{c}[/]" if c in STYLES else escape(c) for c in row])
    out = console()
    if _fit(table, [columns, *rows], out.width):
        out.print(table)
    else:
        _show_stacked(columns, rows, out.width)


def _show_stacked(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> None:
    """Print each row as its cells, one below the other, with the names of their columns."""
    names = max(map(len, columns))
    for row in rows:
        for name, cell in zip(columns, row, strict=True):
            room = max(1, width - names - 2)
            lines = wrap(cell, room, break_long_words=False, break_on_hyphens=False)
            for i, text in enumerate(lines):
                print(f"{'' if i else name:{names}}  {text}")
        print()


class RunView:
    """All running jobs and the run as a whole: bars on a terminal, else a plain line a minute."""

    def __init__(self) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[numbers]}"),
            console=_console(sys.stderr),
        )
        self.total: TaskID | None = None

    def __enter__(self) -> "RunView":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars.live.is_started:
            self.bars.stop()

    def start(self, name: str) -> Report:
        """What the events of a job that starts are passed to."""
        return Bar(name, self.bars) if sys.stderr.isatty() else plain(name)

    def advance(self, done: int, total: int, left_s: float | None) -> None:
        """Show how many jobs are done, and the seconds left as far as they are known."""
        if not sys.stderr.isatty() and not done:
            return
        left = "" if left_s is None else f"about {timedelta(seconds=round(left_s))} left"
        if not sys.stderr.isatty():
            line = f"{done} of {total} jobs done" + (f", {left}" if left and done < total else "")
            print(line, file=sys.stderr, flush=True)
            return
        if self.total is None:
            self.total = self.bars.add_task("jobs", total=total, left="", numbers="")
        self.bars.update(self.total, completed=done, total=total, left=left)


def plain(label: str) -> Report:
    """A report that prints a line a minute and whatever happens once."""
    last = 0.0

    def report(event: str, /, **fields: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if event in ("step", "epoch"):
            if now - last < PLAIN_EVERY_S:
                return
            last = now
        print(printable(f"{label}: {line(event, fields)}"), file=sys.stderr, flush=True)

    return report


def line(event: str, fields: dict[str, Any]) -> str:
    """One event as a line of text."""
    if event == "start":
        return f"{fields['kind']} starts (seed {fields['seed']})"
    if event == "warning":
        return f"warning: {fields['message']}"
    if event == "step":
        return f"step {fields['step']}/{fields['steps']}{_numbers(fields)}"
    if event == "epoch":
        return f"epoch {fields['epoch']}/{fields['epochs']}"
    shown = ", ".join(f"{k} {_short(v)}" for k, v in fields.items() if not isinstance(v, list))
    return f"{event} {shown}".rstrip()


def _numbers(fields: dict[str, Any]) -> str:
    names = {"loss": "loss", "lr": "lr", "images_per_s": "images/s"}
    return "".join(f", {_short(fields[k])} {label}" for k, label in names.items() if k in fields)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Bar:
    """A job's progress bar among `bars`, with ETA, images/s, loss and lr."""

    def __init__(self, label: str, bars: Progress) -> None:
        self.label, self.bars = label, bars
        self.task: TaskID | None = None

    def __call__(self, event: str, /, **fields: Any) -> None:
        """Move the bar on a step; print everything else above it."""
        if event in ("done", "stopped", "failed") and self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None
        if event == "step":
            if self.task is None:
                self.bars.start()
                label, total = escape(self.label), fields["steps"]
                self.task = self.bars.add_task(label, total=total, left="", numbers="")
            (shown,) = (task for task in self.bars.tasks if task.id == self.task)
            seconds = shown.time_remaining
            self.bars.update(
                self.task,
                completed=fields["step"],
                total=fields["steps"],
                left=str(timedelta(seconds=round(seconds))) if seconds else "",
                numbers=_numbers(fields).lstrip(", "),
            )
        elif event != "epoch":  # a bar moves by steps
            self.bars.console.print(printable(f"{self.label}: {line(event, fields)}"), markup=False)


def show_table(drawn: Sheet) -> None:
    """Print a table of the paper with what was measured, in parts where a terminal is narrow."""
    numbers = len(drawn.blocks[0].lines[0].cells)
    named = any(line.name for block in drawn.blocks for line in block.lines)
    lead = [i for i in range(len(drawn.header) - numbers) if drawn.header[i] or named]
    room = console().width if sys.stdout.isatty() else UNBOUND
    rows = [[str(cell) for cell in row] for block in drawn.blocks for row in block.rows()]
    lines = [drawn.header, *rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    parts: list[list[int]] = [[]]
    for column in range(len(drawn.header) - numbers, len(drawn.header)):
        places = (*lead, *parts[-1], column)
        if parts[-1] and sum(widths[i] for i in places) + _gaps(len(places), named) > room:
            parts.append([])
        parts[-1].append(column)
    for columns in parts:
        table = _part(drawn, lead, columns, named)
        title = drawn.title + (", continued" if columns is not parts[0] else "")
        texts = [[line[i] for i in (*lead, *columns)] for line in lines]
        if width := _fit(table, texts, room):
            table.title = escape(title)
            _console(sys.stdout, width).print(table)
        else:
            print(title, end="\n\n")
            _show_stacked(texts[0], texts[1:], room)
    out = console()
    for text in (*drawn.remarks, *drawn.problems):
        out.print(printable(f"- {text}", keep="\n"), markup=False)
    for i, note in enumerate(drawn.notes, 1):
        out.print(printable(f"[{i}] {note}", keep="\n"), markup=False)


def _part(drawn: Sheet, lead: Sequence[int], columns: Sequence[int], ruled: bool) -> Table:
    """The leading columns and some others."""
    table = Table(title_justify="left", box=HEAVY_HEAD if ruled else None, pad_edge=False)
    for i in (*lead, *columns):
        justify: Literal["left", "right"] = "right" if i in columns else "left"
        table.add_column(escape(drawn.header[i]), justify=justify, overflow="fold")
    for block in drawn.blocks:
        for cells in block.rows():
            table.add_row(*(_coloured(cells[i]) for i in (*lead, *columns)))
        table.add_section()
    return table


def _coloured(cell: Cell) -> str:
    text = cell.drawn(escape, "[bold]{}[/]")
    return f"[{STYLES[cell.look]}]{text}[/]" if cell.look in STYLES else text


def _fit(table: Table, lines: Sequence[Sequence[str]], width: int) -> int:
    """The width of a table of these lines where it fits into `width` with no word cut: its columns
    share what is left beside their longest words as they need it. 0 where it does not fit."""
    columns = list(zip(*lines, strict=True))
    whole = [max(map(cell_len, cells)) for cells in columns]
    words = [max(map(cell_len, " ".join(cells).split()), default=0) for cells in columns]
    gaps = _gaps(len(columns), table.box is not None)
    spare = width - gaps - sum(words)
    if spare < 0:
        return 0
    wanted = sum(whole) - sum(words)
    for column, most, least in zip(table.columns, whole, words, strict=True):
        share = (most - least) * min(spare, wanted) // max(1, wanted)
        column.width = least + share
    return gaps + sum(column.width or 0 for column in table.columns)


def _gaps(columns: int, ruled: bool) -> int:
    """How many places of a line are between the columns of a table and, if `ruled`, around them."""
    return 3 * columns - 1 if ruled else 2 * columns - 2


def watch(show: Callable[[], int], every_s: float = 5.0) -> int:
    """Clear the terminal and call `show` every `every_s` seconds, until Ctrl-C."""
    while True:
        if sys.stdout.isatty():
            unescaped(sys.stdout).write("\033[H\033[J")
        show()
        sys.stdout.flush()
        time.sleep(every_s)
