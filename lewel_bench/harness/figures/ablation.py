"""Figures 3a and 3b from the records."""

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.plan import cells
from lewel_bench.results.figures import figure
from lewel_bench.results.figures.chart import Chart, Panel, Series, Unmeasured
from lewel_bench.results.fill import FilledTable


def ablation(board: Board, id: str) -> tuple[Chart, str]:
    """Figure 3a or 3b with what is measured of it, and the command that computes the rest (empty:
    there is none). Raises Unmeasured with that command where nothing is measured."""
    quoted = figure.load(id)
    filled = board.fill(quoted.table())
    command, lacking = _missing(board, quoted, filled)
    measured = {name for (_, name), entry in filled.entries.items() if entry.mean is not None}
    if not measured:
        why = f"Compute it with: {command}"
        if not command:  # no run can fill a point
            why = next((text for e in filled.entries.values() for text in e.reasons), "")
        raise Unmeasured(
            f"no point of Figure {id} is measured in suite {board.suite.name} under {board.root}. "
            f"{why}"
        )
    notes = [
        f"[{i}] The paper: ‘{statement.text}’." for i, statement in enumerate(quoted.statements, 1)
    ]
    notes.append(
        f"{quoted.source} prints no numbers, and none is read off it; the grid points are "
        f"lewel-bench's. {_published(quoted, filled.as_published)}"
    )
    entries = filled.entries.values()
    caveats = dict.fromkeys(
        f"At {entry.row}: {text}." for entry in entries for text in entry.caveats
    )
    elsewhere = dict.fromkeys(text for entry in entries for text in entry.elsewhere)
    chart = Chart(
        title=f"Figure {id}. {quoted.title}; suite {board.suite.name}",
        panels=tuple(
            _quantity(quoted, filled, column) for column in quoted.columns if column.id in measured
        ),
        notes=(*notes, *quoted.remarks, *lacking, *caveats, *elsewhere),
    )
    return chart, command


def _quantity(quoted: figure.Figure, filled: FilledTable, of: figure.Quantity) -> Panel:
    points = [(p.x, filled.entries.get((f"{p.x:g}", of.id))) for p in quoted.points]
    measured = [(x, entry, entry.mean) for x, entry in points if entry and entry.mean is not None]
    series = [
        Series(
            label="measured: mean ± standard deviation over n seeds",
            x=tuple(x for x, _, _ in measured),
            y=tuple(mean for _, _, mean in measured),
            spread=tuple(entry.std or 0.0 for _, entry, _ in measured),
            texts=tuple(f"n={entry.n}" for _, entry, _ in measured),
        )
    ]
    for published in quoted.published:
        if filled.as_published and of.id in published.values:
            label = f"published: {published.source}"
            series.append(Series(label, (published.x,), (published.values[of.id],), kind="marks"))
    return Panel(
        title=of.label,
        x_label=quoted.axis,
        y_label=f"{of.label} (%)",
        series=tuple(series),
        scale=quoted.scale,
        ticks=tuple(p.x for p in quoted.points),
        spans=tuple(
            (*statement.span, f"[{i}]") for i, statement in enumerate(quoted.statements, 1)
        ),
    )


def _published(quoted: figure.Figure, comparable: bool) -> str:
    labels = {column.id: column.label for column in quoted.columns}
    values = "; ".join(
        f"{', '.join(f'{labels[k]} {v:g}' for k, v in published.values.items())} "
        f"at {published.x:g} ({published.source})"
        for published in quoted.published
    )
    where = "" if comparable else ", not drawn because the measurements are not comparable"
    return f"For the same runs, the tables print {values}{where}."


def _missing(board: Board, quoted: figure.Figure, filled: FilledTable) -> tuple[str, list[str]]:
    """The commands that compute what a figure lacks, one a seed, and that in words; empty where it
    has all."""
    wanted: dict[int, tuple[dict[str, None], dict[str, None]]] = {}  # recipes, protocols, by seed
    missing = []
    for quantity in quoted.columns:
        column = filled.table.column(quantity.id)
        labels = []
        for row in filled.table.rows:
            entry = filled.entries.get((row.id, quantity.id))
            if entry is not None and entry.state == "done":
                continue
            labels.append(row.label)
            name = cells.recipe_name(row, column)
            for slot in entry.slots if entry and name else ():
                if slot.state != "done":
                    recipes, protocols = wanted.setdefault(slot.seed, ({}, {}))
                    recipes[str(name)], protocols[quantity.protocol] = None, None
        if labels:
            missing.append(f"{quantity.label} at {', '.join(labels)}")
    if not missing:
        return "", []
    commands = [board.command_of([*r], [*p], seed) for seed, (r, p) in sorted(wanted.items())]
    return " && ".join(commands), [f"Not measured (with all seeds): {'; '.join(missing)}."]
