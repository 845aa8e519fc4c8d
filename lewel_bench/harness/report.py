"""Everything under a run root that one suite can show, as one HTML file."""

import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lewel_bench.files import write_atomically
from lewel_bench.harness.board.board import Board
from lewel_bench.harness.board.claims import judged
from lewel_bench.harness.figures.ablation import ablation
from lewel_bench.harness.figures.curves import curves
from lewel_bench.harness.figures.lr_search import search
from lewel_bench.harness.request import option_words
from lewel_bench.harness.rundir import EVENTS
from lewel_bench.results import measured_cost as cost
from lewel_bench.results import table
from lewel_bench.results.figures import figure
from lewel_bench.results.figures.chart import Chart, Unmeasured
from lewel_bench.results.fill import FilledTable
from lewel_bench.results.record import Record
from lewel_bench.results.report import MARK, Cost, Report, report
from lewel_bench.results.store import conflict_messages

SHOWN = 6  # runs, and searches, of which curves are drawn


def write(board: Board, out: Path, *, force: bool = False) -> None:
    """Write the report of a board to `out`, atomically. Raises ValueError where another file than a
    report of ours would be replaced without `force`."""
    if not force and out.exists() and not _is_report(out):
        raise ValueError(f"{out} is not a lewel-bench report: name another file, or add --force")
    write_atomically(out, report(gather(board, out.parent)))


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return MARK.encode() in file.read(1024)


def gather(board: Board, folder: Path) -> Report:
    """What a report of a board holds; links lead to its records from `folder`."""
    store = board.store
    tables = [board.filled(name) for name in table.TABLES]
    keys = _behind(board, tables)
    words = [word for group in board.options() for word in option_words(group)]
    root = os.path.relpath(board.root, folder.absolute())
    return Report(
        suite=board.suite.name,
        scale=board.suite.label,
        comparable=any(filled.comparable for filled in tables),
        tables=tables,
        records={key: store.records[key] for key in keys},
        logs=frozenset(key for key in keys if (board.root / key / EVENTS).exists()),
        root=f"{quote(root)}/" if root.startswith(".") else f"./{quote(root)}/",
        options=f" {shlex.join(words)}" if words else "",
        figures=_figures(board, tables),
        costs=_costs(board),
        claims=judged(board, tables=tables),
        problems=[
            *(f"Corrupt record, not counted: {bad}" for bad in store.bad),
            *(f"Corrupt record of a merged bundle: {bad}" for bad in store.bad_others),
            *conflict_messages(store),
        ],
    )


def _behind(board: Board, tables: Iterable[FilledTable]) -> list[str]:
    """The keys of the records in the tables' cells and of those that they rest on, sorted."""
    keys_shown: set[str] = set()
    ahead = [
        key
        for filled in tables
        for entry in filled.entries.values()
        for slot in entry.slots
        if slot.state == "done"
        for key in (slot.key, slot.baseline)
    ]
    while ahead:
        key = ahead.pop()
        if key not in keys_shown and key in board.store.records:
            keys_shown.add(key)
            ahead += board.store.records[key].upstream
    return sorted(keys_shown)


def _figures(board: Board, tables: Iterable[FilledTable]) -> list[tuple[str, Chart]]:
    """Figures 3a and 3b, and of Table 1's first cells the searches and the runs behind them."""
    charts = {f"figure{id}": _drawn(_ablation, board, id) for id in figure.FIGURES}
    done = {
        f"table1:{row}:{column}": entry.slots[0].key
        for filled in tables
        if filled.table.id == "1"
        for (row, column), entry in filled.entries.items()
        if column.endswith("top1") and entry.slots and entry.slots[0].state == "done"
    }
    runs = list(
        dict.fromkeys(up for key in done.values() for up in board.store.records[key].upstream)
    )
    if runs:
        charts["curves"] = _drawn(curves, board, runs[:SHOWN], ("loss", "knn_top1"))
    searches = [chart for cell in list(done)[:SHOWN] if (chart := _drawn(search, board, cell))]
    if searches:
        charts["searches"] = Chart(
            f"The searches behind the first {len(searches)} cells of Table 1",
            tuple(panel for chart in searches for panel in chart.panels[:1]),
            tuple(dict.fromkeys(note for chart in searches for note in chart.notes)),
        )
    return [(id, chart) for id, chart in charts.items() if chart]


def _ablation(board: Board, id: str) -> Chart:
    chart, _ = ablation(board, id)
    return chart


def _drawn(draw: Callable[..., Chart], *arguments: Any) -> Chart | None:
    """A chart, or None where nothing of it is measured: the report leaves it out."""
    try:
        return draw(*arguments)
    except Unmeasured:
        return None


def _costs(board: Board) -> list[Cost]:
    """What the suite's jobs took, by kind and name of what they do."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for key, record in board.store.records.items():
        if record.kind != "import" and board.states[key].suite in ("", board.suite.name):
            kind = "pre-training" if record.kind == "pretrain" else "evaluation"
            # an evaluation's name is "PROTOCOL of RECIPE" and what it tries
            name = record.name if record.kind == "pretrain" else record.name.split(" of ")[0]
            groups.setdefault((kind, name), []).append(record)
    ordered = sorted(groups.items(), key=lambda group: (group[0][0] != "pre-training", group[0]))
    return [_cost(kind, name, records) for (kind, name), records in ordered]


def _cost(kind: str, name: str, records: list[Record]) -> Cost:
    hours = sum(map(cost.device_hours, records))
    memory = max((record.peak_memory for record in records if record.peak_memory), default=None)
    if kind != "pre-training":
        return Cost(kind, name, len(records), hours, memory=memory)
    epochs = sum(record.spec["recipe"]["epochs"] for record in records)
    return Cost(kind, name, len(records), hours, sum(o.seconds for o in records) / epochs, memory)
