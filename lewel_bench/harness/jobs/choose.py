"""Choosing among candidates: on images that are neither trained on nor reported."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from lewel_bench.evals.dense import Detection, Segmentation
from lewel_bench.evals.grid import edge_warning
from lewel_bench.evals.outcome import Outcome, gap
from lewel_bench.evals.protocol import Semi
from lewel_bench.results.record import Record


def choose(protocol: Semi | Detection | Segmentation, candidates: Sequence[Record]) -> Outcome:
    """The outcome of a search: the candidate best on the select split, as the report split saw it.

    Ties go to the lower select loss, then to the first. Beside it the paper's rule: the best of any
    candidate (and evaluated epoch) on the report split. Raises ValueError when every candidate
    diverged, or one has no score to choose by.
    """
    score = "top1" if isinstance(protocol, Semi) else protocol.score
    alive = [r for r in candidates if r.outcome["extra"]["select"]]
    if not alive:
        names = ", ".join(candidates[0].outcome["chosen"])
        rates = ", ".join(str(tuple(r.outcome["chosen"].values())) for r in candidates)
        field = "head_lrs" if isinstance(protocol, Semi) else "lrs"
        raise ValueError(
            f"every candidate of {protocol.name} diverged or was stopped: ({names}) {rates}. "
            f"Set lower rates, such as --set {protocol.name}.{field}=[0.001]"
        )
    best = max(alive, key=lambda r: _score(r, score))
    # one that is evaluated but once has its metrics for a paper's rule
    reported = [(r, r.outcome["paper_rule"] or r.metrics) for r in candidates]
    seen, top = max((pair for pair in reported if pair[1]), key=lambda pair: float(pair[1][score]))
    paper_rule = {**top, **seen.outcome["chosen"]}
    chosen: dict[str, float] = best.outcome["chosen"]
    edges = [  # "lr" is chosen from the field "lrs"
        edge_warning(name.replace("_", " "), rate, getattr(protocol, f"{name}s"))
        for name, rate in chosen.items()
    ]
    gone = [w for r in candidates if r not in alive for w in r.warnings]
    return Outcome(
        metrics=dict(best.metrics),
        paper_rule=paper_rule,
        selection_gap=gap(paper_rule, dict(best.metrics)),
        chosen=chosen,
        grid=[_row(r) for r in candidates],
        warnings=[*dict.fromkeys([*best.warnings, *gone]), *filter(None, edges)],
        extra={"select": best.outcome["extra"]["select"], "candidate": best.key},
    )


def _score(candidate: Record, metric: str) -> tuple[float, float]:
    select = candidate.outcome["extra"]["select"]
    score = select[metric]
    if score is None or not isfinite(score):  # a record has null for nan
        raise ValueError(
            f"{candidate.name} ({candidate.key}) has no {metric} on the select split, so no "
            "candidate can be chosen: hold out other images, such as more of them (held_out)"
        )
    return score, -select.get("loss", 0.0)


def _row(candidate: Record) -> dict[str, Any]:
    select = candidate.outcome["extra"]["select"]
    found = {f"select_{name}": value for name, value in select.items()}
    return {"key": candidate.key, **candidate.outcome["chosen"], **candidate.metrics, **found}
