"""A dense job: a candidate of a search, or the training of the chosen candidate on all images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lewel_bench.evals.context import Context
from lewel_bench.evals.outcome import CandidateResult, Inputs, Outcome
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.report import Diverged

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Dense

TRIAL = 1000  # between the seeds of two trials: with seeds 0 and 1000 two of them draw alike
ENGINE_FILES = ("iter_*.pth", "backbone.pth", "last_checkpoint")  # mmengine's, of an ended run


def run(protocol: "Dense", inputs: Inputs, context: Context) -> Outcome:
    """The outcome of a dense candidate or final.

    A final chooses among the results of its candidates, then trains that candidate on all images;
    its `paper_rule` and `selection_gap` are the candidates', which did not train on the held-out
    images. Raises Diverged where the chosen learning rate diverges on all images.
    """
    context = replace(context, seed=context.seed + TRIAL * inputs.trial)
    if inputs.candidate is not None:
        rivals = list[float]()
        if protocol.prune:
            rivals = _of_rank_0(_half_scores(protocol, inputs.finished()))
        return protocol.fine_tune(inputs.candidate, inputs, context, rivals)
    chosen = protocol.choose(inputs.results) if inputs.results else None
    candidate = protocol.grid()[0]
    if chosen is not None:
        candidate = chosen.chosen["lr"], chosen.chosen["weight_decay"]
    trained = protocol.fine_tune(candidate, inputs, context)
    if not trained.metrics:
        reasons = "; ".join(trained.warnings)
        raise Diverged(f"{protocol.name}: {reasons}; set lower learning rates with --lrs")
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


def clear(folder: Path) -> None:
    """Remove what an engine resumes from."""
    for pattern in ENGINE_FILES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _of_rank_0(rivals: list[float]) -> list[float]:
    """What rank 0 read: another `run` may finish a candidate between the reads of two ranks."""
    if distributed.world() == 1:
        return rivals
    box = [rivals]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def _half_scores(protocol: "Dense", finished: Sequence[CandidateResult]) -> list[float]:
    """The scores of finished candidates after half of their steps."""
    scores = (_half_score(result, protocol.score) for result in finished)
    return [score for score in scores if score is not None]


def _half_score(result: CandidateResult, score: str) -> float | None:
    extra = result.outcome["extra"]
    if "half" not in extra or not extra["select"]:
        return None  # pruned or diverged: no rival
    return float(extra["half"][score])
