"""What runs inside a dense job: a candidate of a search, or the training of the chosen one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lewel_bench.evals.dense import Detection, Segmentation
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.harness.jobs.choose import choose
from lewel_bench.harness.plan.plan import Dense, Job
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.report import Diverged
from lewel_bench.results import record
from lewel_bench.results.record import Record

TRIAL = 1000  # between the seeds of two trials: with seeds 0 and 1000 two of them draw alike


def run(job: Job, root: Path, splits: DenseSplits[Any], **arguments: Any) -> Outcome:
    """The outcome of a dense search or final; `arguments` are those of the runner.

    A final chooses among the records of its candidates, then trains at that rate on everything; its
    `paper_rule` and `selection_gap` are the candidates', none of which saw the held-out images.
    Raises Diverged where the chosen rate does not hold on all images.
    """
    protocol = job.protocol
    assert isinstance(protocol, Dense)
    seed = job.seed + TRIAL * job.trial
    if job.kind == "search":
        assert job.lr is not None
        rivals = _agreed(_halves(job, root)) if protocol.prune else []
        arguments["rivals"] = rivals
        return _train(job, job.lr, splits=splits, seed=seed, **arguments)
    searched = [key for key in job.needs if key != job.upstream]
    records = [record.read(root / key / record.NAME) for key in searched]
    chosen = choose(protocol, records) if records else None
    candidate = protocol.grid()[0]
    if chosen is not None:
        candidate = chosen.chosen["lr"], chosen.chosen["weight_decay"]
    trained = _train(job, candidate, splits=splits, seed=seed, **arguments)
    if not trained.metrics:
        raise Diverged(f"{job.name}: {'; '.join(trained.warnings)}; set lower rates with --lrs")
    if chosen is None:
        return trained
    return replace(
        trained,
        paper_rule=chosen.paper_rule,
        selection_gap=chosen.selection_gap,
        grid=chosen.grid,
        warnings=list(dict.fromkeys([*trained.warnings, *chosen.warnings])),
        extra={**trained.extra, **chosen.extra},
    )


LEFT = ("iter_*.pth", "backbone.pth", "last_checkpoint")  # mmengine's, of a run that has ended


def clear(folder: Path) -> None:
    """Remove what an engine resumes from."""
    for pattern in LEFT:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _train(
    job: Job, candidate: tuple[float, float], *, splits: DenseSplits[Any], **arguments: Any
) -> Outcome:
    if isinstance(job.protocol, Detection):
        from lewel_bench.evals.detection import run as detection

        outcome = detection.run(job.protocol, candidate=candidate, splits=splits, **arguments)
        count = splits.train.without_mask + splits.report.without_mask
        if count:
            outcome.warnings.append(f"{count} objects have no mask: not trained on, not measured")
        return outcome
    assert isinstance(job.protocol, Segmentation)
    from lewel_bench.evals.segmentation import run as segmentation

    outcome = segmentation.run(job.protocol, candidate=candidate, splits=splits, **arguments)
    classes: dict[str, float | None] = outcome.extra.get("per_class", {})
    absent = [name for name, iou in classes.items() if iou is None]
    if classes:
        outcome.extra["miou_classes"] = len(classes) - len(absent)
    if absent:
        outcome.warnings.append(
            f"miou is the mean over {len(classes) - len(absent)} of {len(classes)} classes: the "
            f"reported masks have no pixel of {', '.join(absent)}"
        )
    return outcome


def _agreed(rivals: list[float]) -> list[float]:
    """Those that rank 0 read: another `run` may finish a candidate between two ranks' looks."""
    if distributed.world() == 1:
        return rivals
    box = [rivals]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def _halves(job: Job, root: Path) -> list[float]:
    """The half-way scores of the other candidates that have finished."""
    protocol = job.protocol
    assert isinstance(protocol, Dense)
    found = []
    for candidate in protocol.grid():
        sibling = job.model_copy(update={"lr": candidate})
        path = root / record.key(sibling.identity()) / record.NAME
        if path.exists():
            half = _half(record.read(path), protocol.score)
            found += [half] if half is not None else []
    return found


def _half(result: Record, score: str) -> float | None:
    extra = result.outcome["extra"]
    if "half" not in extra or not extra["select"]:
        return None  # pruned or diverged: no rival
    return float(extra["half"][score])
