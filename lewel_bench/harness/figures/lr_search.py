"""The search behind a cell, as a chart: its metric against the rate, and what was chosen."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lewel_bench.evals.grid import edge_warning
from lewel_bench.harness.board.board import Board
from lewel_bench.results import table
from lewel_bench.results.curves import is_number
from lewel_bench.results.figures.chart import Chart, Panel, Series, Unmeasured, words
from lewel_bench.results.record import Record

CHOICE = (
    "The candidate that is best on held-out training images is chosen; its value on the reported "
    "images does not matter for the choice."
)


def search(board: Board, cell: str) -> Chart:
    """The search behind a cell: its metric against the learning rate, one panel a seed. Raises
    ValueError for what is no cell of a search, Unmeasured where it has no record yet."""
    quoted, row, column = board.cell(cell)
    if board.recipe_name(row, column) is None or column.eval not in row.protocols:
        raise ValueError(f"{cell}: no learning rate is searched for it")
    slots = [slot for slot in board.slots(row, column) if slot.trial == 0]
    done = [(slot.seed, board.store.records[slot.key]) for slot in slots if slot.state == "done"]
    if not done:
        raise Unmeasured(f"{cell} is {slots[0].state}. Compute it with: {slots[0].command}")
    searched = [
        _search(row, column, seed, entry, grid)
        for seed, entry in done
        if len(grid := _candidates(entry)) > 1
    ]
    if not searched:
        protocol = row.protocols[column.eval]
        raise Unmeasured(f"{cell}: {protocol} had one candidate, so no learning rate was searched")
    notes = [note for _, notes in searched for note in notes]
    return Chart(
        title=f"{row.label}, {column.label} (Table {quoted.id}): the search; suite "
        f"{board.suite.name}",
        panels=tuple(panel for panel, _ in searched),
        notes=(CHOICE, *notes),
    )


def _candidates(result: Record) -> list[dict[str, Any]]:
    """The candidates of a search. An outcome is free JSON, and may be another lab's: those without
    a number for each setting that was chosen are left out."""
    chosen = result.outcome.get("chosen")
    if not chosen or not isinstance(chosen, dict):
        return []
    grid = [
        candidate for candidate in result.outcome.get("grid") or () if isinstance(candidate, dict)
    ]
    return [
        candidate for candidate in grid if all(is_number(candidate.get(name)) for name in chosen)
    ]


def _search(
    row: table.Row,
    column: table.Column,
    seed: int,
    result: Record,
    grid: Sequence[Mapping[str, Any]],
) -> tuple[Panel, list[str]]:
    chosen = result.outcome["chosen"]
    values = {name: sorted({candidate[name] for candidate in grid}) for name in chosen}
    along = max(values, key=lambda name: len(values[name]))
    others = [name for name in chosen if name != along and len(values[name]) > 1]
    select = f"select_{column.metric}"
    series = []
    for metric, images in ((select, "held-out images"), (column.metric, "reported images")):
        seen = [candidate for candidate in grid if is_number(candidate.get(metric))]
        seen.sort(key=lambda candidate: (*(candidate[name] for name in others), candidate[along]))
        for key, group in groupby(seen, key=lambda candidate: [candidate[name] for name in others]):
            of = "".join(f", {words(n)} {v:g}" for n, v in zip(others, key, strict=True))
            x, y = zip(*((candidate[along], candidate[metric]) for candidate in group), strict=True)
            series.append(Series(f"{images}{of}", x, y))
    best = [
        candidate for candidate in grid if all(candidate[name] == chosen[name] for name in chosen)
    ]
    series += [
        Series("chosen", (candidate[along],), (candidate[select],), kind="star")
        for candidate in best
        if is_number(candidate.get(select))
    ]
    edges = [edge_warning(words(name), chosen[name], values[name]) for name in chosen]
    diverged = [
        f"{candidate[along]:g}" for candidate in grid if not is_number(candidate.get(column.metric))
    ]
    title = f"{row.label}, {column.label}, seed {seed}"
    notes = [f"{title}: {edge}." for edge in edges if edge]
    if diverged:
        notes.append(f"{title}: diverged or stopped early at {words(along)} {', '.join(diverged)}.")
    panel = Panel(
        title=f"{title} ({result.key})",
        x_label=words(along),
        y_label=f"{column.metric} ({column.unit})",
        series=tuple(series),
        scale="log",
        ticks=tuple(values[along]),
    )
    return panel, notes
