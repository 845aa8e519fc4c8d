"""A filled table as Markdown, CSV, LaTeX, HTML or JSON; CSV and JSON hold unrounded numbers."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lewel_bench.results.fill import FilledTable
from lewel_bench.results.html_page import page
from lewel_bench.results.table import ORIGINS, Column, Row, epochs
from lewel_bench.results.table_layout import LETTERS, Cell, headline, sheet
from lewel_bench.value import json_text, printable, unknown


def markdown(filled: FilledTable) -> str:
    """A GitHub-flavoured Markdown table with its notes."""
    drawn = sheet(filled)
    width = len(drawn.header) - len(filled.table.columns)
    rule = ["---"] * width + ["---:"] * len(filled.table.columns)
    lines = [f"**{md(drawn.title)}**", "", md(drawn.caption), ""]
    lines += [_md_row(map(Cell, drawn.header)), f"| {' | '.join(rule)} |"]
    lines += [_md_row(cells) for block in drawn.blocks for cells in block.rows()]
    for texts in (drawn.remarks, drawn.problems):
        lines += ["", *(f"- {md(text)}" for text in texts)] if texts else []
    if drawn.notes:
        lines += ["", *(f"{i}. {md(note)}" for i, note in enumerate(drawn.notes, 1))]
    return "\n".join(lines) + "\n"


def _md_row(cells: Iterable[Cell]) -> str:
    return f"| {' | '.join(cell.drawn(md, '**{}**') for cell in cells)} |"


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
    columns = len(filled.table.columns)
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering\footnotesize",
        rf"\caption{{{_tex(_named(filled))}. {_tex(drawn.caption)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{",
        rf"\begin{{tabular}}{{{'l' * (len(drawn.header) - columns)}{'r' * columns}}}",
        r"\toprule",
        _tex_row(map(Cell, drawn.header)),
    ]
    for block in drawn.blocks:
        lines += [r"\midrule", *(_tex_row(cells) for cells in block.rows())]
    lines += [r"\bottomrule", r"\end{tabular}", "}", r"\end{table}"]
    notes = [f"[{i}] {note}" for i, note in enumerate(drawn.notes, 1)]
    below = [*drawn.remarks, *drawn.problems, *notes]
    head = [rf"\par\noindent Notes on Table {_tex(filled.table.id)}:"] if below else []
    return (
        "\n".join([*lines, *head, *(rf"\par{{\footnotesize {_tex(x)}\par}}" for x in below)]) + "\n"
    )


def _named(filled: FilledTable) -> str:
    """A title without a number in front, as LaTeX has its own."""
    return f"{headline(filled)} (Table {filled.table.id} of the paper, suite {filled.suite})"


def _tex_row(cells: Iterable[Cell]) -> str:
    return " & ".join(cell.drawn(_tex, r"\textbf{{{}}}") for cell in cells) + r" \\"


def as_csv(tables: Sequence[FilledTable]) -> str:
    """One line a cell of all tables, with one header; numbers unrounded, lists joined by spaces
    (texts: "; "). No text is a formula to a spreadsheet."""
    lines = []
    for filled in tables:
        place = {"table": filled.table.id, "suite": filled.suite, "comparable": filled.comparable}
        for (row_id, column_id), entry in filled.entries.items():
            row, column = filled.table.row(row_id), filled.table.column(column_id)
            names = {"row": row.id, "label": row.label, "column": column.id}
            cell = _cell(filled, row, column)
            cell |= {"keys": " ".join(entry.keys), "reasons": "; ".join(entry.reasons)}
            for name in ("where", "incomparable", "caveats", "elsewhere"):
                cell[name] = "; ".join(getattr(entry, name))
            lines.append(place | names | cell)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


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
    rows = []
    for row in filled.table.rows:
        cells = {
            column.id: _cell(filled, row, column)
            for column in filled.table.columns
            if (row.id, column.id) in filled.entries
        }
        rows.append({"id": row.id, "label": row.label, "recipe": row.recipe, "cells": cells})
    drawn = sheet(filled)
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
        "remarks": list(drawn.remarks),
        "rows": rows,
    }


def _cell(filled: FilledTable, row: Row, column: Column) -> dict[str, Any]:
    entry, protocol = filled.entries[row.id, column.id], row.protocols.get(column.eval)
    return {
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
