"""What the records under a run root say about each claim of the paper."""

from collections.abc import Sequence
from pathlib import Path

from lewel_bench.harness.board.board import Board
from lewel_bench.results.claims import claim, judge, paired
from lewel_bench.results.claims.judge import ClaimResult
from lewel_bench.results.fill import FilledTable

PREDICTIONS = "predictions.npz"


def judged(
    board: Board, names: Sequence[str] = (), tables: Sequence[FilledTable] = ()
) -> list[ClaimResult]:
    """The claims (all of them, or those of some ids) as a board's records have them; `tables` are
    those of it that are filled already. Raises ValueError naming the claim nearest to an unknown
    one."""
    wanted = [claim.find(name) for name in dict.fromkeys(names)] or list(claim.load())
    given = {filled_table.table.id: filled_table for filled_table in tables}
    filled = {
        id: given.get(id) or board.filled(id) for id in {selected.table for selected in wanted}
    }

    def images(of: str, over: str, metric: str) -> tuple[paired.Interval, int] | str:
        first, theirs = (_predictions(board, key) for key in (of, over))
        return paired.interval(first, theirs, metric)

    return [
        judge.judge(selected, filled[selected.table], board.measured, images, board.besides)
        for selected in wanted
    ]


def _predictions(board: Board, key: str) -> Path:
    """The predictions behind a record: of one that only chooses, those of its candidate."""
    record = board.store.records[key]
    extra = record.outcome.get("extra")
    chosen = extra.get("candidate") if isinstance(extra, dict) else None
    # one that trained the chosen candidate again used a backbone, and has predictions of its own
    if record.checkpoint is None and chosen in record.upstream:
        key = str(chosen)
    return board.root / key / PREDICTIONS
