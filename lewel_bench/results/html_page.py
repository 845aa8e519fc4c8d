"""FilledTable tables as one HTML page that needs nothing else; every text is escaped."""

import html
from collections.abc import Iterable, Sequence

from lewel_bench.results.fill import FilledTable
from lewel_bench.results.table_layout import Block, Cell, sheet, title
from lewel_bench.value import printable

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


def escape(text: str) -> str:
    """A text as HTML shows it, in an attribute too."""
    return html.escape(printable(text, keep="\n"))


def page(tables: Sequence[FilledTable]) -> str:
    """A whole HTML document with `tables`, one after another."""
    titles = "; ".join(map(title, tables))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            f"<title>{escape(titles)}</title>",
            f"<style>\n{STYLE}</style>",
            *map(section, tables),
            "</html>\n",
        ]
    )


def section(filled: FilledTable) -> str:
    """One table and its notes as a <section>; a value tells on hover what is behind it."""
    drawn = sheet(filled)
    lead = len(drawn.header) - len(filled.table.columns)
    heads = [f"<th>{escape(text)}</th>" for text in drawn.header[:lead]]
    heads += [f'<th class="value">{escape(text)}</th>' for text in drawn.header[lead:]]
    lines = [
        f'<section id="table{escape(filled.table.id)}">',
        "<table>",
        f"<caption><b>{escape(drawn.title)}.</b> {escape(drawn.caption)}</caption>",
        f"<thead><tr>{''.join(heads)}</tr></thead>",
    ]
    for block in drawn.blocks:
        lines += ["<tbody>", *_rows(block), "</tbody>"]
    lines.append("</table>")
    lines += _list("ul", (*drawn.remarks, *drawn.problems)) + _list("ol", drawn.notes)
    return "\n".join([*lines, "</section>"])


def _rows(block: Block) -> Iterable[str]:
    span = len(block.lines)
    lead = "".join(f'<th rowspan="{span}">{escape(text)}</th>' for text in block.lead)
    for i, line in enumerate(block.lines):
        cells = "".join(map(_cell, line.cells))
        yield f"<tr>{'' if i else lead}<th>{escape(line.name)}</th>{cells}</tr>"


def _cell(cell: Cell) -> str:
    about = f' title="{escape(cell.about)}"' if cell.about else ""
    return f"<td{about}>{cell.drawn(escape, '<b>{}</b>')}</td>"


def _list(kind: str, texts: Sequence[str]) -> list[str]:
    items = (f"<li>{escape(text)}</li>" for text in texts)
    return [f'<{kind} class="notes">', *items, f"</{kind}>"] if texts else []
