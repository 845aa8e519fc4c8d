from datetime import UTC, datetime

import pytest

from lewel_bench.evals.classification import Semi
from lewel_bench.results.record import Record, key

PROTOCOL = Semi(
    name="s", label="s", source="s", fraction=0.1, backbone_lrs=(0.1, 0.2, 0.3), head_lrs=(1.0,)
)


def _candidate(lr: float, select: float | None, report: float, seen: float) -> Record:
    spec = {"lr": lr}
    now = datetime.now(UTC)
    outcome = {
        "extra": {"select": {} if select is None else {"top1": select, "top5": 90.0, "loss": 1.0}},
        "chosen": {"backbone_lr": lr, "head_lr": 1.0},
        "paper_rule": {"top1": seen, "top5": 95.0, "epoch": 5},
    }
    return Record(
        key=key(spec), kind="search", name=f"lr {lr}", spec=spec, seed=0,
        metrics={} if select is None else {"top1": report, "top5": 90.0}, outcome=outcome,
        commit="c", dirty=False, version="0", command="", started=now, finished=now, seconds=1.0,
        warnings=() if select is not None else (f"diverged at {lr}",),
    )  # fmt: skip


def test_the_select_split_decides_and_the_report_split_does_not() -> None:
    outcome = PROTOCOL.choose(
        [_candidate(0.1, 50, 80, 81), _candidate(0.2, 60, 70, 75), _candidate(0.3, 55, 75, 90)]
    )
    assert outcome.chosen == {"backbone_lr": 0.2, "head_lr": 1.0}
    assert outcome.metrics["top1"] == 70
    assert outcome.paper_rule["top1"] == 90 and outcome.paper_rule["backbone_lr"] == 0.3
    assert outcome.selection_gap["top1"] == 20
    assert len(outcome.grid) == 3 and not outcome.warnings


def test_best_at_the_edge_warns() -> None:
    outcome = PROTOCOL.choose([_candidate(lr, 40 + lr, 50, 50) for lr in (0.1, 0.2, 0.3)])
    assert any("backbone lr 0.3 is the largest" in w for w in outcome.warnings)


def test_a_diverged_candidate_loses_and_is_named() -> None:
    outcome = PROTOCOL.choose([_candidate(0.1, 30, 40, 41), _candidate(0.2, None, 0, 99)])
    assert outcome.chosen["backbone_lr"] == 0.1
    assert "diverged at 0.2" in outcome.warnings
    assert len(outcome.grid) == 2


@pytest.mark.parametrize("score", [float("nan"), None], ids=str)
def test_without_a_score_none_is_chosen(score: float | None) -> None:
    lame = _candidate(0.1, 1.0, 40, 41)
    lame.outcome["extra"]["select"]["top1"] = score
    with pytest.raises(ValueError, match=r"lr 0.1 \(.+\) has no top1 on the select split"):
        PROTOCOL.choose([lame, _candidate(0.2, 30, 40, 41)])


def test_all_diverged() -> None:
    with pytest.raises(ValueError, match="every candidate"):
        PROTOCOL.choose([_candidate(0.1, None, 0, 0)])
