"""The outcome of fine-tuning at one candidate (lr, weight decay) of a grid, whatever the engine."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lewel_bench.evals.outcome import Outcome

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection, Segmentation


def early_outcome(
    protocol: "Detection | Segmentation",
    candidate: tuple[float, float],
    extra: dict[str, Any],
    *,
    diverged: int | None = None,
    pruned: str | None = None,
) -> Outcome:
    """The outcome of a run that diverged at a step (1-based), or was pruned for a reason:
    empty metrics, the step or the reason in `extra`, and a warning."""
    named = f"lr {candidate[0]:g}, weight decay {candidate[1]:g}"
    if diverged is not None:
        reason: dict[str, Any] = {"diverged_at_step": diverged}
        warning = f"diverged at step {diverged} of {protocol.steps} at {named}"
    else:
        reason, warning = {"pruned": pruned}, f"{named}: {pruned}"
    extra = {"select": {}, **extra, **reason}
    return Outcome(metrics={}, chosen=named_values(candidate), warnings=[warning], extra=extra)


def named_values(candidate: tuple[float, float]) -> dict[str, float]:
    """The learning rate and weight decay of a candidate, as an outcome's `chosen` has them."""
    return {"lr": candidate[0], "weight_decay": candidate[1]}


def pruning_reason(
    protocol: "Detection | Segmentation", half: Mapping[str, float], rivals: Sequence[float]
) -> str | None:
    """Why a run with select metrics `half` after half of the steps is pruned, None if it goes on.

    `rivals` are the half-way scores of finished candidates.
    """
    share, best, score = protocol.prune, max(rivals, default=0.0), half[protocol.score]
    if share is None or score >= share * best:
        return None
    return (
        f"stopped after {protocol.steps // 2} of {protocol.steps} steps: select {protocol.score} "
        f"{score:.2f} is below {share:g} of the best candidate's {best:.2f}"
    )
