"""`lewel-bench figure`: what the records and logs under a root show, as charts."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench.evals.grid import edge_warning
from lewel_bench.harness import cells
from lewel_bench.harness.status import EVENTS
from lewel_bench.harness.tables import Board
from lewel_bench.pretrain.files import write_atomically
from lewel_bench.results import draw, figure, table
from lewel_bench.results.chart import Chart, Panel, Series
from lewel_bench.results.fill import Filled
from lewel_bench.results.record import Record
from lewel_bench.value import unknown

if TYPE_CHECKING:
    from lewel_bench.harness.cli import Context

Curve = tuple[str, str]  # its name, and what its places are: "epoch" or "step"

# the order of the panels; what else a log has follows
CURVES = ("loss", "knn_top1", "train_loss", "feature_std", "map_entropy", "aligned_gap_cosine")
CHOICE = (
    "The candidate best on held-out training images is chosen; what it has on the images that are "
    "reported decides nothing."
)
NO_CURVE = (
    "step",
    "steps",
    "epoch",
    "epochs",
    "time",
    "seed",
    "images_per_s",
    "data_wait",
    "lr",
    "factor",
)


class Missing(ValueError):
    """What a figure would show is not there; the message says how to get it."""


def make(arguments: argparse.Namespace, context: "Context", board: Callable[[], Board]) -> Path:
    """Draw the figure that a command line asks for; where it is now."""
    name = arguments.figure
    which = {"5": "run", "lr": "cell"}.get(name)
    of = getattr(arguments, which) if which else "-".join(getattr(arguments, "keys", []))
    safe = re.sub(r"[^\w.-]+", "-", Path(of).name)
    out = Path(arguments.out or f"figure-{name}{'-' if safe else ''}{safe}.svg")
    format = draw.format_of(out)
    if name == "5":
        from lewel_bench.harness import maps

        content = maps.figure(arguments, context, format)
    elif name == "lr":
        content = draw.draw(rates(board(), arguments.cell), format)
    elif name == "curves":
        content = draw.draw(curves(board(), arguments.keys), format)
    else:
        chart, command = ablation(board(), name)
        content = draw.draw(chart, format)
        if command:
            print(f"not all of it is measured; fill with: {command}", file=sys.stderr)
    write_atomically(out, content)
    return out


def ablation(board: Board, id: str) -> tuple[Chart, str]:
    """Figure 3a or 3b with what is measured of it, and the command that computes the rest (empty:
    there is none). Raises Missing with that command where nothing is measured."""
    quoted = figure.load(id)
    filled = board.fill(quoted.table())
    command, lacking = _missing(board, quoted, filled)
    measured = {name for (_, name), entry in filled.entries.items() if entry.mean is not None}
    if not measured:
        raise Missing(
            f"no point of Figure {id} is measured in suite {board.suite.name} under {board.root}. "
            f"Compute it with: {command}"
        )
    notes = [f"[{i}] The paper: ‘{one.text}’." for i, one in enumerate(quoted.said, 1)]
    notes.append(
        f"{quoted.source} prints no numbers and none is read off it; the points of the grid are "
        f"ours. {_published(quoted, board.suite.comparable)}"
    )
    chart = Chart(
        title=f"Figure {id}. {quoted.title}; suite {board.suite.name}",
        panels=tuple(
            _quantity(board, quoted, filled, one) for one in quoted.columns if one.id in measured
        ),
        notes=(*notes, *quoted.remarks, *lacking),
    )
    return chart, command


def _quantity(board: Board, quoted: figure.Figure, filled: Filled, of: figure.Quantity) -> Panel:
    points = [(p.x, filled.entries[f"{p.x:g}", of.id]) for p in quoted.points]
    found = [(x, one, one.mean) for x, one in points if one.mean is not None]
    series = [
        Series(
            label="measured: mean ± standard deviation over n seeds",
            x=tuple(x for x, _, _ in found),
            y=tuple(mean for _, _, mean in found),
            spread=tuple(one.std or 0.0 for _, one, _ in found),
            texts=tuple(f"n={one.n}" for _, one, _ in found),
        )
    ]
    for one in quoted.published:
        if board.suite.comparable and of.id in one.values:
            label = f"published: {one.source}"
            series.append(Series(label, (one.x,), (one.values[of.id],), kind="marks"))
    return Panel(
        title=of.label,
        x_label=quoted.axis,
        y_label=f"{of.label} (%)",
        series=tuple(series),
        scale=quoted.scale,
        ticks=tuple(p.x for p in quoted.points),
        spans=tuple((*one.span, f"[{i}]") for i, one in enumerate(quoted.said, 1)),
    )


def _published(quoted: figure.Figure, comparable: bool) -> str:
    labels = {one.id: one.label for one in quoted.columns}
    said = "; ".join(
        f"{', '.join(f'{labels[k]} {v:g}' for k, v in one.values.items())} at {one.x:g} "
        f"({one.source})"
        for one in quoted.published
    )
    where = "" if comparable else ", not drawn as this suite is not the paper's scale"
    return f"Of the same runs its tables print {said}{where}."


def _missing(board: Board, quoted: figure.Figure, filled: Filled) -> tuple[str, list[str]]:
    """The command that computes what a figure lacks, and that in words; empty where it has all."""
    recipes: dict[str, None] = {}
    protocols: dict[str, None] = {}
    said = []
    for one in quoted.columns:
        column = filled.table.column(one.id)
        rows = [
            row
            for row in filled.table.rows
            if (entry := filled.entries.get((row.id, one.id))) is None or entry.state != "done"
        ]
        if rows:
            recipes |= dict.fromkeys(filter(None, (cells.recipe_name(r, column) for r in rows)))
            protocols[one.protocol] = None
            said.append(f"{one.label} at {', '.join(row.label for row in rows)}")
    if not said:
        return "", []
    return (
        board.command_of(list(recipes), list(protocols)),
        [f"Not (or not with all seeds) measured: {'; '.join(said)}."],
    )


def rates(board: Board, cell: str) -> Chart:
    """The search behind a cell: its metric against the learning rate, one panel a seed. Raises
    ValueError for what is no cell of a search, Missing where it has no record yet."""
    table_id, row_id, column_id = table.parse_cell(cell)
    quoted = table.load(table_id)
    row, column = quoted.row(row_id), quoted.column(column_id)
    if cells.recipe_name(row, column) is None or column.eval not in row.protocols:
        raise ValueError(f"{cell}: no learning rate is searched for it")
    slots = [slot for slot in board.slots(row, column) if slot.trial == 0]
    done = [(slot.seed, board.store.records[slot.key]) for slot in slots if slot.state == "done"]
    if not done:
        raise Missing(f"{cell} is {slots[0].state}. Compute it with: {slots[0].command}")
    found = [
        _search(row, column, seed, one, grid)
        for seed, one in done
        if len(grid := _candidates(one)) > 1
    ]
    if not found:
        protocol = row.protocols[column.eval]
        raise Missing(f"{cell}: {protocol} had one candidate, so no learning rate was searched")
    notes = [note for _, notes in found for note in notes]
    return Chart(
        title=f"{row.label}, {column.label} (Table {table_id}): the search; suite "
        f"{board.suite.name}",
        panels=tuple(panel for panel, _ in found),
        notes=(CHOICE, *notes),
    )


def _candidates(result: Record) -> list[dict[str, Any]]:
    """The candidates of a search. An outcome is free JSON, and may be another lab's: those without
    a number for each setting that was chosen are left out."""
    return [
        one
        for one in result.outcome.get("grid", ())
        if all(type(one.get(name)) in (int, float) for name in result.outcome["chosen"])
    ]


def _search(
    row: table.Row,
    column: table.Column,
    seed: int,
    result: Record,
    grid: Sequence[Mapping[str, Any]],
) -> tuple[Panel, list[str]]:
    chosen = result.outcome["chosen"]
    values = {name: sorted({one[name] for one in grid}) for name in chosen}
    along = max(values, key=lambda name: len(values[name]))
    others = [name for name in chosen if name != along and len(values[name]) > 1]
    select = f"select_{column.metric}"
    series = []
    for metric, images in ((select, "held-out images"), (column.metric, "reported images")):
        seen = [one for one in grid if one.get(metric) is not None]
        seen.sort(key=lambda one: (*(one[name] for name in others), one[along]))
        for key, group in groupby(seen, key=lambda one: [one[name] for name in others]):
            of = "".join(f", {_words(n)} {v:g}" for n, v in zip(others, key, strict=True))
            x, y = zip(*((one[along], one[metric]) for one in group), strict=True)
            series.append(Series(f"{images}{of}", x, y))
    best = [one for one in grid if all(one[name] == chosen[name] for name in chosen)]
    series += [
        Series("chosen", (one[along],), (one[select],), kind="star")
        for one in best
        if select in one
    ]
    edges = [edge_warning(_words(name), chosen[name], values[name]) for name in chosen]
    gone = [f"{one[along]:g}" for one in grid if one.get(column.metric) is None]
    title = f"{row.label}, {column.label}, seed {seed}"
    notes = [f"{title}: {edge}." for edge in edges if edge]
    if gone:
        notes.append(f"{title}: diverged or stopped early at {_words(along)} {', '.join(gone)}.")
    panel = Panel(
        title=f"{title} ({result.key})",
        x_label=_words(along),
        y_label=f"{column.metric} ({column.unit})",
        series=tuple(series),
        scale="log",
        ticks=tuple(values[along]),
    )
    return panel, notes


def _words(name: str) -> str:
    return name.replace("_", " ")


def curves(board: Board, keys: Sequence[str], only: Container[str] | None = None) -> Chart:
    """What the logs of runs say over time, one panel a quantity, or `only` some. Raises ValueError
    for an unknown key, Missing where no log has a number."""
    found: dict[Curve, list[Series]] = {}
    for key in dict.fromkeys(keys):
        if key not in board.states:
            raise ValueError(unknown("key", key, board.states))
        state = board.states[key]
        record = board.store.records.get(key)
        grid = record.outcome.get("grid", ()) if record else ()
        for curve, candidate, points in logged(board.root / key / EVENTS):
            label = f"{state.name}, seed {state.seed} ({key})"
            if candidate is not None:
                which = f"lr {grid[candidate]['lr']:g}" if grid else f"candidate {candidate + 1}"
                label = f"{label}, {which}"
            x, y = zip(*points, strict=True)
            found.setdefault(curve, []).append(Series(label, x, y))
    found = {curve: series for curve, series in found.items() if only is None or curve[0] in only}
    if not found:
        names = ", ".join(f"{key} ({board.states[key].state})" for key in keys)
        raise Missing(
            f"nothing over time is logged for {names}. A run writes it: see lewel-bench status for "
            "the runs that have started, and table N --missing for the commands of the others"
        )
    order = [*CURVES, *sorted({name for name, _ in found} - {*CURVES})]
    return Chart(
        title=f"Over time: {', '.join(dict.fromkeys(board.states[key].name for key in keys))}",
        panels=tuple(
            Panel("", axis, _words(name), tuple(found[name, axis]))
            for name in order
            for axis in ("epoch", "step")
            if (name, axis) in found
        ),
    )


def logged(path: Path) -> list[tuple[Curve, int | None, list[tuple[float, float]]]]:
    """What an events.jsonl says over time: quantities, which of several candidates (None: there is
    one) and (place, value) in order. A place is an epoch, or a step where no epoch was logged.

    What an interrupted run did again counts as it came out the last time.
    """
    found: dict[tuple[Curve, int | None], list[tuple[float, float]]] = {}
    for event in _events(path):
        if event.get("event") not in ("step", "epoch", "monitor", "evaluated"):
            continue
        axis = "epoch" if "epoch" in event else "step"
        if type(event.get(axis)) not in (int, float):
            continue
        split = f"{event['split']} " if "split" in event else ""
        for name, value in event.items():
            several = isinstance(value, list) and len(value) > 1
            for i, one in enumerate(value if isinstance(value, list) else [value]):
                # bool is an int, and no quantity
                if name in NO_CURVE or type(one) not in (int, float):
                    continue
                points = found.setdefault(((split + name, axis), i if several else None), [])
                while points and points[-1][0] >= event[axis]:
                    points.pop()
                points.append((event[axis], one))
    return [(curve, candidate, points) for (curve, candidate), points in found.items()]


def _events(path: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # half-written by a process that was killed
        if isinstance(event, dict):
            yield event
