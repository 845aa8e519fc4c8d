"""Filled tables as Markdown, LaTeX, HTML, CSV or JSON; CSV and JSON hold unrounded numbers."""

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

from lewel_bench.results import cells
from lewel_bench.results.cell_text import LETTERS, Cell
from lewel_bench.results.fill import FilledTable
from lewel_bench.results.layout import headline, sheet, title
from lewel_bench.results.table import ORIGINS
from lewel_bench.value import json_text, printable, unknown

STYLE = """\
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #111; background: #fff }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .5em }
th, td { padding: .15em .6em; text-align: right; vertical-align: top; white-space: nowrap }
th { font-weight: normal; text-align: left }
thead th { border-top: 2px solid; border-bottom: 1px solid }
thead th.value { text-align: right }
tbody { border-bottom: 1px solid #999 }
tbody:last-child { border-bottom: 2px solid }
td[title] { cursor: help }
.notes { max-width: 60em; font-size: 90% }
"""


def markdown(filled: FilledTable) -> str:
    """A GitHub-flavoured Markdown table with its notes."""
    drawn = sheet(filled)
    grid = drawn.frame(lambda cell: cell.drawn(md, "**{}**"))
    numbers = len(filled.table.columns)
    rule = ["---"] * (grid.shape[1] - numbers) + ["---:"] * numbers
    lines = [f"**{md(drawn.title)}**", "", md(drawn.caption), ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (grid.columns, rule, *grid.to_numpy())]
    for texts in (drawn.remarks, drawn.problems):
        lines += ["", *(f"- {md(text)}" for text in texts)] if texts else []
    if drawn.notes:
        lines += ["", *(f"{i}. {md(note)}" for i, note in enumerate(drawn.notes, 1))]
    return "\n".join(lines) + "\n"


def md(text: str) -> str:
    """A text as Markdown shows it, in a table too: no markup, no HTML, no links."""
    text = printable(text.replace("\n", " "))
    for special in "\\`*_|<~":
        text = text.replace(special, "\\" + special)
    return text.replace("](", "]\\(")


def md_code(text: str) -> str:
    """A text as a code span of Markdown, in a table too."""
    text = printable(text.replace("\n", " ")).replace("|", "\\|")
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


LATEX = {
    **{special: "\\" + special for special in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", '"': "''", "`": r"\textasciigrave{}"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "†": r"$^\dagger$"},
    **{"β": r"$\beta$", "τ": r"$\tau$", "≥": r"$\geq$", "≤": r"$\leq$", "≈": r"$\approx$"},
    **{"λ": r"$\lambda$"},
    **dict(
        zip(LETTERS, (f"$^{{{letter}}}$" for letter in "abcdefghijklmnoprstuvwxyz"), strict=True)
    ),
    **{"[": "{[}", "]": "{]}", "\n": " "},  # a row that begins with [ would be read as \\[length]
}


def _tex(text: str) -> str:
    text = printable(text, keep="\n")
    return "".join(LATEX.get(letter, letter) for letter in text)


def latex(filled: FilledTable) -> str:
    """A LaTeX table for the packages booktabs and graphicx, shrunk where it is wider than the line,
    and its notes below, which may go on on the next page; every text is escaped."""
    drawn = sheet(filled)
    grid = drawn.frame(lambda cell: cell.drawn(_tex, r"\textbf{{{}}}"))
    numbers = len(filled.table.columns)
    header, *rows = [rf"{' & '.join(cells)} \\" for cells in (grid.columns, *grid.to_numpy())]
    # LaTeX has a number of its own in front of the title
    name = f"{headline(filled)} (Table {filled.table.id} of the paper, suite {filled.suite})"
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering\footnotesize",
        rf"\caption{{{_tex(name)}. {_tex(drawn.caption)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{",
        rf"\begin{{tabular}}{{{'l' * (grid.shape[1] - numbers)}{'r' * numbers}}}",
        r"\toprule",
        header,
    ]
    for block in drawn.blocks:
        lines += [r"\midrule", *(rows.pop(0) for _ in block.lines)]
    lines += [r"\bottomrule", r"\end{tabular}", "}", r"\end{table}"]
    notes = [f"[{i}] {note}" for i, note in enumerate(drawn.notes, 1)]
    below = [*drawn.remarks, *drawn.problems, *notes]
    head = [rf"\par\noindent Notes on Table {_tex(filled.table.id)}:"] if below else []
    lines += [*head, *(rf"\par{{\footnotesize {_tex(text)}\par}}" for text in below)]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """A text as HTML shows it, in an attribute too."""
    return html.escape(printable(text, keep="\n"))


def page(tables: Sequence[FilledTable]) -> str:
    """A whole HTML document with `tables`, one after another, that needs nothing else."""
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        f"<title>{escape('; '.join(map(title, tables)))}</title>",
        f"<style>\n{STYLE}</style>",
        *map(_section, tables),
        "</html>\n",
    ]
    return "\n".join(lines)


def _section(filled: FilledTable) -> str:
    """One table and its notes; a value tells on hover what is behind it."""
    drawn = sheet(filled)
    grid = drawn.frame(_td)
    lead = grid.shape[1] - len(filled.table.columns)
    heads = [f"<th>{escape(name)}</th>" for name in drawn.header[:lead]]
    heads += [f'<th class="value">{escape(name)}</th>' for name in drawn.header[lead:]]
    lines = [
        f'<section id="table{escape(filled.table.id)}">',
        "<table>",
        f"<caption><b>{escape(drawn.title)}.</b> {escape(drawn.caption)}</caption>",
        f"<thead><tr>{''.join(heads)}</tr></thead>",
    ]
    rows = iter(grid.iloc[:, lead:].agg("".join, axis=1))
    for block in drawn.blocks:
        span = len(block.lines)
        first = "".join(f'<th rowspan="{span}">{escape(text)}</th>' for text in block.lead)
        lines.append("<tbody>")
        for i, line in enumerate(block.lines):
            lines.append(f"<tr>{'' if i else first}<th>{escape(line.name)}</th>{next(rows)}</tr>")
        lines.append("</tbody>")
    lines.append("</table>")
    for kind, texts in (("ul", (*drawn.remarks, *drawn.problems)), ("ol", drawn.notes)):
        items = (f"<li>{escape(text)}</li>" for text in texts)
        lines += [f'<{kind} class="notes">', *items, f"</{kind}>"] if texts else []
    return "\n".join([*lines, "</section>"])


def _td(cell: Cell) -> str:
    return f"<td{hover(cell)}>{html_text(cell)}</td>"


def html_text(cell: Cell) -> str:
    """The text of a cell as HTML."""
    return cell.drawn(escape, "<b>{}</b>")


def hover(cell: Cell) -> str:
    """The attribute by which an element tells what is behind a cell; empty where nothing is."""
    return f' title="{escape(cell.about)}"' if cell.about else ""


def as_csv(tables: Sequence[FilledTable]) -> str:
    """One line a cell of all tables, with one header; numbers unrounded, lists joined by spaces
    (texts: "; "). No text is a formula to a spreadsheet."""
    frame = cells.frame(tables)
    frame["keys"] = frame["keys"].map(" ".join)
    for name in ("reasons", "where", "incomparable", "caveats", "elsewhere"):
        frame[name] = frame[name].map("; ".join)
    texts = frame.select_dtypes(["object", "str"]).map(_csv)
    return str(frame.assign(**texts).to_csv(index=False, lineterminator="\n"))


def _csv(value: Any) -> Any:
    """A value for a CSV file: control characters as escapes, and an apostrophe before a text that
    a spreadsheet would compute."""
    if not isinstance(value, str):
        return value
    return "'" * value.startswith(("=", "+", "-", "@")) + printable(value, keep="\n")


def as_dict(filled: FilledTable) -> dict[str, Any]:
    """What `--format json` prints, as plain data (several tables make a list of these).

    With "comparable" false, published values are for orientation only; a cell says in
    "incomparable" why its number cannot be compared with the paper's.
    """
    of_row: dict[str, dict[str, Any]] = {row.id: {} for row in filled.table.rows}
    for cell in cells.cells(filled):
        values = {name: value for name, value in cell.items() if name not in cells.PLACE}
        of_row[cell["row"]][cell["column"]] = values
    return {
        "table": filled.table.id,
        "suite": filled.suite,
        "comparable": filled.comparable,
        "title": headline(filled),
        "caption": filled.table.caption,
        "source": filled.table.source,
        "mixed": {
            c.id: list(settings) for c in filled.table.columns if (settings := filled.mixed(c.id))
        },
        "origins": ORIGINS,
        "remarks": list(sheet(filled).remarks),
        "rows": [
            {"id": row.id, "label": row.label, "recipe": row.recipe, "cells": of_row[row.id]}
            for row in filled.table.rows
        ],
    }


def as_json(tables: Sequence[FilledTable]) -> str:
    """`as_dict` as JSON text; several tables make a list."""
    loaded = [as_dict(table) for table in tables]
    content = loaded if len(loaded) > 1 else loaded[0]
    return json_text(content, allow_nan=False) + "\n"


def _each(draw: Callable[[FilledTable], str]) -> Callable[[Sequence[FilledTable]], str]:
    return lambda tables: "\n".join(map(draw, tables))


FORMATS: dict[str, Callable[[Sequence[FilledTable]], str]] = {
    "md": _each(markdown),
    "csv": as_csv,
    "latex": _each(latex),
    "html": page,
    "json": as_json,
}


def render(tables: Sequence[FilledTable], format: str) -> str:
    """Tables as one text in one of FORMATS. Raises ValueError naming the nearest format."""
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    return FORMATS[format](tables)
