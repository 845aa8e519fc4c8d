"""The report: tables, claims, figures, coverage and cost as one HTML file, complete in itself.

Whatever comes from a record (names, commands, warnings) is escaped here, or travels as JSON that
`web/report.js` sets as text. A content security policy forbids every script but that one.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewel_bench.results.cell_details import behind
from lewel_bench.results.cell_text import BLANK, Cell
from lewel_bench.results.claims.judge import ClaimResult
from lewel_bench.results.claims.output import section
from lewel_bench.results.figures.chart import Chart
from lewel_bench.results.figures.draw import inline
from lewel_bench.results.fill import FilledTable
from lewel_bench.results.formats import escape, hover, html_text
from lewel_bench.results.layout import sheet
from lewel_bench.results.measured_cost import GIB
from lewel_bench.results.record import Record
from lewel_bench.results.table import Column, Row

WEB = Path(__file__).parent / "web"
MARK = '<meta name="generator" content="lewel-bench report">'
LOOKS = {"reproduced": "good", "inconclusive": "fair", "differs": "bad"}  # of a verdict
STATES = ("done", "part", "running", "queued", "failed", "stale", "missing")


@dataclass(frozen=True)
class Cost:
    """What jobs of one name took: their number, device-hours, seconds per epoch and the most memory
    of a device in bytes (None: not of this kind, or not measured)."""

    kind: str
    name: str
    jobs: int
    device_hours: float
    seconds_per_epoch: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Report:
    """What is reported. `records` are those behind the tables; `logs` the keys of those that have a
    log; `root` is the address of the run root from the report's place, ending in "/"; `options`
    follow `lewel-bench explain CELL` to show the same numbers. `problems` are said at the top."""

    suite: str
    scale: str
    comparable: bool
    tables: Sequence[FilledTable]
    records: Mapping[str, Record]
    logs: frozenset[str]
    root: str
    options: str
    figures: Sequence[tuple[str, Chart]]
    costs: Sequence[Cost]
    claims: Sequence[ClaimResult] = ()
    problems: Sequence[str] = ()


def report(of: Report) -> str:
    """The whole HTML document; the same text for the same content."""
    script = (WEB / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = behind(of.tables, of.records, of.logs, of.root, of.options)
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            MARK,
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>LEWEL, measured: suite {escape(of.suite)}</title>",
            f"<style>\n{(WEB / 'report.css').read_text('utf-8')}</style>",
            *_head(of),
            "<main>",
            *(_table(filled) for filled in of.tables),
            *(section(of.claims) if of.claims else ()),
            *_figures(of.figures),
            *_coverage(of.tables),
            *_costs(of.costs),
            "</main>",
            "<dialog><div></div></dialog>",
            f'<script type="application/json" id="data">{_json(data)}</script>',
            f"<script>{script}</script>",
            "</html>\n",
        ]
    )


def _head(of: Report) -> Iterator[str]:
    states = _states(of.tables)
    verdicts = Counter(e.verdict for t in of.tables for e in t.entries.values() if e.state)
    hours = sum(cost.device_hours for cost in of.costs)
    newest = max((record.finished for record in of.records.values()), default=None)
    yield "<header><h1>Learning Where to Learn, measured</h1>"
    yield (
        '<p class="soft">The tables of LEWEL (CVPR 2022, <a href="https://arxiv.org/abs/2203.14898">'
        f"arXiv 2203.14898</a>) next to what lewel-bench measured. Suite {escape(of.suite)}: "
        f"{escape(of.scale)}.</p>"
    )
    if not of.comparable:
        yield (
            '<p class="warn">Nothing here was measured at the paper’s scale: the paper’s values '
            "are shown for orientation only, without a difference or a verdict.</p>"
        )
    yield from (f'<p class="warn">{escape(problem)}</p>' for problem in of.problems)
    yield (
        '<p class="soft">In a cell: measured mean ± standard deviation (seeds); the paper’s value; '
        "difference and verdict. Click a cell for its details, a header to sort.</p>"
    )
    cards = [
        (f"{states['done']} of {sum(states.values())}", "cells measured with all their seeds"),
        *((str(verdicts[v]), v) for v in ("reproduced", "inconclusive", "differs") if verdicts[v]),
        (f"{len(of.records):,}", "records behind them"),
        (f"{hours:,.3g}", "device-hours"),
        *([(f"{newest:%Y-%m-%d}", "newest record")] if newest else []),
    ]
    shown = "".join(
        f"<div><b>{escape(n)}</b><span>{escape(what)}</span></div>" for n, what in cards
    )
    yield f'<div class="cards">{shown}</div></header>'
    places = [(f"table{t.table.id}", f"Table {t.table.id}") for t in of.tables]
    places += [("claims", "Claims")] if of.claims else []
    places += [("figures", "Figures")] if of.figures else []
    places += [("coverage", "Coverage"), ("cost", "Cost")]
    links = " ".join(f'<a href="#{escape(id)}">{escape(name)}</a>' for id, name in places)
    choices = "".join(f"<option>{escape(verdict)}</option>" for verdict in sorted(verdicts))
    yield (
        f'<nav><div>{links}<form name="filter"><input type="search" name="words" '
        'placeholder="Filter rows" aria-label="Show only rows with these words">'
        '<select name="verdict" aria-label="Show only rows with this verdict">'
        f'<option value="">any verdict</option>{choices}</select></form></div></nav>'
    )


def _table(filled: FilledTable) -> str:
    drawn = sheet(filled)
    lead = drawn.header[: len(drawn.header) - len(filled.table.columns) - 1]
    heads = "".join(
        f"<th data-sort{' data-text' if i == 0 else ''}><button>{escape(name)}</button></th>"
        for i, name in enumerate(lead)
    )
    heads += "".join(
        f'<th class="value" data-sort><button>{escape(name)}</button></th>'
        for name in drawn.header[len(lead) + 1 :]
    )
    lines = [
        f'<section class="table" id="table{escape(filled.table.id)}">',
        f"<h2>{escape(drawn.title)}</h2>",
        f'<p class="soft">{escape(drawn.caption)}</p>',
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>',
    ]
    for place, (row, block) in enumerate(zip(filled.table.rows, drawn.blocks, strict=True)):
        words = escape(" ".join((row.id, *block.lead, row.block)).lower())
        lines.append(f'<tr data-place="{place}" data-words="{words}">{_lead(row, block.lead)}')
        by_column = zip(*(line.cells for line in block.lines), strict=True)
        for column, cells in zip(filled.table.columns, by_column, strict=True):
            lines.append(_cell(filled, row, column, cells))
        lines.append("</tr>")
    lines.append("</tbody></table></div>")
    for kind, texts in (("ul", (*drawn.remarks, *drawn.problems)), ("ol", drawn.notes)):
        if texts:
            items = "".join(f"<li>{escape(text)}</li>" for text in texts)
            lines.append(f'<{kind} class="notes">{items}</{kind}>')
    return "\n".join([*lines, "</section>"])


def _lead(row: Row, lead: Sequence[str]) -> str:
    block = f" <small>{escape(row.block)}</small>" if row.block else ""
    first = f'<th data-value="{escape(lead[0])}">{escape(lead[0])}{block}</th>'
    rest = (f'<td data-value="{row.epochs or ""}">{escape(text)}</td>' for text in lead[1:])
    return first + "".join(rest)


def _cell(filled: FilledTable, row: Row, column: Column, cells: Sequence[Cell]) -> str:
    """One place of a table; `cells` are the published value and, of rows that can be measured, the
    measured value, difference and verdict."""
    entry = filled.entries.get((row.id, column.id))
    if entry is None:
        return f'<td class="cell">{BLANK}</td>'
    published = f"<small{hover(cells[0])}>paper {html_text(cells[0])}</small>"
    number = " ".join(
        f'data-{name}="{value!r}"'
        for name, value in (("value", entry.mean), ("paper", entry.published))
        if value is not None
    )
    if entry.state is None:
        return f'<td class="cell" {number}>{published}</td>'
    measured, verdict = cells[1], cells[-1]
    look = LOOKS.get(entry.verdict, "") if entry.mean is not None else "none"
    shown = html_text(measured) if entry.mean is not None else escape(str(verdict))
    delta = f"{escape(str(cells[2]))} " if entry.delta is not None else ""
    below = (
        f'<small>{delta}<span class="chip"{hover(verdict)}>{escape(str(verdict))}</span></small>'
    )
    return (
        f'<td class="cell {look}" {number} data-verdict="{escape(entry.verdict)}" '
        f'data-id="{escape(filled.cell(entry))}">'
        f"<button{hover(measured if measured.about else verdict)}>{shown}</button>"
        f"{published if entry.published is not None else ''}"
        f"{below if entry.mean is not None else ''}</td>"
    )


def _figures(figures: Sequence[tuple[str, Chart]]) -> Iterator[str]:
    if not figures:
        return
    yield '<section id="figures"><h2>Figures</h2>'
    for id, chart in figures:
        notes = "".join(f"<li>{escape(note)}</li>" for note in chart.notes)
        yield f'<figure id="{escape(id)}"><h3>{escape(chart.title)}</h3>{inline(chart)}'
        yield f'<figcaption><ul class="notes">{notes}</ul></figcaption></figure>'
    yield "</section>"


def _states(tables: Iterable[FilledTable]) -> Counter[str]:
    """How many cells that a run can fill are in each of STATES; part: with some of their seeds."""
    counts = Counter(dict.fromkeys(STATES, 0))
    for filled in tables:
        for entry in filled.entries.values():
            if entry.state is not None:
                part = entry.state != "done" and entry.n
                counts["part" if part else entry.state] += 1
    return counts


def _coverage(tables: Sequence[FilledTable]) -> Iterator[str]:
    yield '<section id="coverage"><h2>Coverage</h2>'
    yield (
        '<p class="soft">Cells that a run can fill. Measured: every planned seed has '
        "a record; partial: some seeds have one. Click a cell for the command that fills it, "
        "or run <code>lewel-bench table N --missing</code>.</p>"
    )
    rows = [(f"Table {table.table.id}", _states([table])) for table in tables]
    rows.append(("all", _states(tables)))
    lines = []
    for name, states in rows:
        bar = "".join(
            f'<i class="{kind}" style="flex:{states[kind]}"></i>' for kind in ("done", "part")
        )
        rest = sum(states.values()) - states["done"] - states["part"]
        bar = f'<span class="bar">{bar}<span style="flex:{rest}"></span></span>'
        lines.append((escape(name), bar, *(str(states[state] or BLANK) for state in STATES)))
    header = ("table", "", "measured", "in part", *STATES[2:])
    yield f"{_plain(header, lines)}</section>"


def _costs(costs: Sequence[Cost]) -> Iterator[str]:
    yield '<section id="cost"><h2>Cost</h2>'
    yield (
        '<p class="soft">Time spent by the suite’s jobs in the run root, without interruptions. '
        "A device is a GPU, or a process on a CPU.</p>"
    )
    lines = [
        (
            escape(cost.kind),
            escape(cost.name),
            f"{cost.jobs:,}",
            f"{cost.device_hours:,.3g}",
            BLANK if cost.seconds_per_epoch is None else f"{cost.seconds_per_epoch:,.4g}",
            BLANK if cost.memory is None else f"{cost.memory / GIB:.2f}",
        )
        for cost in costs
    ]
    total = sum(cost.device_hours for cost in costs)
    jobs = sum(cost.jobs for cost in costs)
    lines.append(("all", "", f"{jobs:,}", f"{total:,.3g}", BLANK, BLANK))
    header = ("", "name", "jobs", "device-hours", "seconds per epoch", "peak memory (GiB)")
    yield f"{_plain(header, lines)}</section>"


def _plain(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of HTML texts: two leading columns, then numbers."""
    head = "".join(
        f"<th{' class=value' if i > 1 else ''}>{name}</th>" for i, name in enumerate(header)
    )
    body = "\n".join(
        f'<tr><th>{line[0]}</th><td class="name">{line[1]}</td>'
        f"{''.join(f'<td>{text}</td>' for text in line[2:])}</tr>"
        for line in lines
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _json(data: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
