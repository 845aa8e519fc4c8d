"""Choosing among candidates: on images that are neither trained on nor reported."""

from collections.abc import Sequence
from typing import Any

from lewel_bench.evals.outcome import Outcome, gap
from lewel_bench.evals.protocol import Semi, edge_warning
from lewel_bench.results.record import Record


def choose(protocol: Semi, candidates: Sequence[Record]) -> Outcome:
    """The outcome of a search: the candidate best on the select split, as the report split saw it.

    Ties go to the lower select loss, then to the first. Beside it the paper's rule: best evaluated
    epoch of any candidate on the report split. Raises ValueError when every candidate diverged.
    """
    alive = [r for r in candidates if r.outcome["extra"]["select"]]
    if not alive:
        rates = ", ".join(str(tuple(r.outcome["chosen"].values())) for r in candidates)
        raise ValueError(
            f"every candidate of {protocol.name} diverged: (backbone lr, head lr) {rates}. "
            f"Set lower rates, such as --set {protocol.name}.head_lrs=[0.01]"
        )
    best = max(alive, key=_score)
    seen = max(
        (r for r in candidates if r.outcome["paper_rule"]),
        key=lambda r: float(r.outcome["paper_rule"]["top1"]),
    )
    paper_rule = {**seen.outcome["paper_rule"], **seen.outcome["chosen"]}
    chosen: dict[str, float] = best.outcome["chosen"]
    edges = (
        edge_warning("backbone lr", chosen["backbone_lr"], protocol.backbone_lrs),
        edge_warning("head lr", chosen["head_lr"], protocol.head_lrs),
    )
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


def _score(candidate: Record) -> tuple[float, float]:
    select = candidate.outcome["extra"]["select"]
    return select["top1"], -select["loss"]


def _row(candidate: Record) -> dict[str, Any]:
    select = candidate.outcome["extra"]["select"]
    found = {f"select_{name}": value for name, value in select.items()}
    return {"key": candidate.key, **candidate.outcome["chosen"], **candidate.metrics, **found}
