"""Choosing among candidates: on images that are neither trained on nor reported."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from lewel_bench.evals.grid import edge_warning
from lewel_bench.evals.outcome import CandidateResult, Outcome, gap


def choose(
    protocol: str,
    candidates: Sequence[CandidateResult],
    *,
    score: str,
    grids: Mapping[str, Sequence[float]],
    lower: str,
) -> Outcome:
    """The outcome of a search: the candidate best on the select split, as the report split saw it.

    `score` is the metric that chooses; `grids` are the values of each field that `chosen` names,
    `lower` the protocol's field to set lower when all diverge. Ties go to the lower select loss,
    then to the first. `paper_rule` is the paper's: the best of any candidate (and evaluated epoch)
    on the report split. Raises ValueError when every candidate diverged, or one has no score.
    """
    alive = [r for r in candidates if r.outcome["extra"]["select"]]
    if not alive:
        names = ", ".join(candidates[0].outcome["chosen"])
        lrs = ", ".join(str(tuple(r.outcome["chosen"].values())) for r in candidates)
        raise ValueError(
            f"every candidate of {protocol} diverged or was stopped: ({names}) {lrs}. "
            f"Set lower learning rates, such as --set {protocol}.{lower}=[0.001]"
        )
    best = max(alive, key=lambda r: _score(r, score))
    # a candidate that is evaluated once has its metrics for a paper's rule
    reported = [(r, r.outcome["paper_rule"] or r.metrics) for r in candidates]
    top, metrics = max(
        (pair for pair in reported if pair[1]), key=lambda pair: float(pair[1][score])
    )
    paper_rule = {**metrics, **top.outcome["chosen"]}
    chosen: dict[str, float] = best.outcome["chosen"]
    edges = [
        edge_warning(name.replace("_", " "), value, grids[name]) for name, value in chosen.items()
    ]
    ended_early = [w for r in candidates if r not in alive for w in r.warnings]
    return Outcome(
        metrics=dict(best.metrics),
        paper_rule=paper_rule,
        selection_gap=gap(paper_rule, dict(best.metrics)),
        chosen=chosen,
        grid=[_row(r) for r in candidates],
        warnings=[*dict.fromkeys([*best.warnings, *ended_early]), *filter(None, edges)],
        extra={"select": best.outcome["extra"]["select"], "candidate": best.key},
    )


def _score(candidate: CandidateResult, metric: str) -> tuple[float, float]:
    select = candidate.outcome["extra"]["select"]
    score = select[metric]
    if score is None or not isfinite(score):  # a record has null for nan
        raise ValueError(
            f"{candidate.name} ({candidate.key}) has no {metric} on the select split, so no "
            "candidate can be chosen: hold out more images (held_out)"
        )
    return score, -select.get("loss", 0.0)


def _row(candidate: CandidateResult) -> dict[str, Any]:
    select = candidate.outcome["extra"]["select"]
    selected = {f"select_{name}": value for name, value in select.items()}
    return {"key": candidate.key, **candidate.outcome["chosen"], **candidate.metrics, **selected}
