"""Runs over time, as a chart: what their logs say."""

from collections.abc import Container, Sequence

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.rundir import EVENTS
from lewel_bench.results.curves import Curve, is_number, logged
from lewel_bench.results.figures.chart import Chart, Panel, Series, Unmeasured, words
from lewel_bench.results.record import Record
from lewel_bench.value import unknown

# the order of the panels; what else a log has follows
CURVES = (
    "loss", "knn_top1", "effective_rank", "train_loss", "feature_std", "map_entropy",
    "aligned_gap_cosine",
)  # fmt: skip


def curves(board: Board, keys: Sequence[str], only: Container[str] | None = None) -> Chart:
    """What the logs of runs say over time, one panel a quantity, or `only` some. Raises ValueError
    for an unknown key, Unmeasured where no log has a number."""
    panels: dict[Curve, list[Series]] = {}
    for key in dict.fromkeys(keys):
        if key not in board.states:
            raise ValueError(unknown("key", key, board.states))
        state = board.states[key]
        record = board.store.records.get(key)
        for curve, candidate, points in logged(board.root / key / EVENTS):
            label = f"{state.name}, seed {state.seed} ({key})"
            label += "" if candidate is None else f", {_candidate(record, candidate)}"
            x, y = zip(*points, strict=True)
            panels.setdefault(curve, []).append(Series(label, x, y))
    panels = {curve: series for curve, series in panels.items() if only is None or curve[0] in only}
    if not panels:
        names = ", ".join(f"{key} ({board.states[key].state})" for key in keys)
        raise Unmeasured(
            f"no curves are logged for {names}. They come from runs: see lewel-bench status for "
            "started runs, and table N --missing for the commands of the others"
        )
    order = [*CURVES, *sorted({name for name, _ in panels} - {*CURVES})]
    return Chart(
        title=f"Over time: {', '.join(dict.fromkeys(board.states[key].name for key in keys))}",
        panels=tuple(
            Panel("", axis, words(name), tuple(panels[name, axis]))
            for name in order
            for axis in ("epoch", "step")
            if (name, axis) in panels
        ),
    )


def _candidate(record: Record | None, number: int) -> str:
    """What one of several candidates is called: by its rate once the record has it."""
    grid = record.outcome.get("grid") if record else None
    row = grid[number] if isinstance(grid, list) and number < len(grid) else None
    lr = row.get("lr") if isinstance(row, dict) else None
    return f"lr {lr:g}" if is_number(lr) else f"candidate {number + 1}"
