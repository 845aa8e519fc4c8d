"""`lewel-bench table --missing`: the cells without a number, what fills them and what it costs."""

import json
from collections.abc import Sequence

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.cost.estimate import Estimator, total
from lewel_bench.harness.plan import cells
from lewel_bench.harness.plan.plan import Job
from lewel_bench.results import fill, table
from lewel_bench.results.fill import FilledTable, MissingCell


def show(board: Board, tables: Sequence[FilledTable], form: str) -> None:
    """Print the missing cells of some tables; with "json" for a program."""
    estimator = Estimator(board.store.records, board.root)
    found = [(one, to_do(board, one)) for filled in tables for one in fill.missing(filled)]
    if form == "json":
        print(json.dumps([_plain(one, jobs, estimator) for one, jobs in found], indent=2))
        return
    if not found:
        print("no empty cells")
        return
    for one, jobs in found:
        print(f"{one.cell}: {one.state} ({one.n} of {one.wanted} seeds)")
        for reason in one.reasons:
            print(f"    {reason}")
        for need in _needs(one):
            print(f"    needs {need}")
        for command in one.commands:
            print(f"    fill with: {command}")
        if jobs:
            print(f"    costs {_hours(jobs, estimator)}")
    together = list({job.key: job for _, jobs in found for job in jobs}.values())
    print(f"all of these cells: {total(together, estimator)}")


def to_do(board: Board, lacking: MissingCell) -> list[Job]:
    """The jobs without a record that a cell waits for, in dependency order."""
    _, row, column = board.cell(lacking.cell)
    names = [board.recipe_name(row, column)]
    if column.metric == table.OVERHEAD:
        names.append(cells.baseline_name(row, column))
    jobs: dict[str, Job] = {}
    for name in filter(None, names):
        for seed in dict.fromkeys(slot.seed for slot in lacking.slots):
            evals = [] if column.eval == table.PRETRAIN else [row.protocols[column.eval]]
            jobs |= {job.key: job for job in board.jobs(name, evals, seed)}
    return [job for key, job in jobs.items() if key not in board.store.records]


def _hours(jobs: Sequence[Job], estimator: Estimator) -> str:
    costs = [estimator.cost(job) for job in jobs]
    known = [cost for cost in costs if cost.hours]
    bases = ", ".join(dict.fromkeys(cost.basis for cost in known))
    unknown = sum(cost.hours is None for cost in costs)
    more = f"{' and ' if known else ''}{unknown} jobs of unknown cost" if unknown else ""
    hours = sum(cost.hours or 0.0 for cost in known)
    return (f"{hours:.3g} device-hours ({bases})" if known else "") + more or "next to nothing"


def _needs(one: MissingCell) -> list[str]:
    return list(dict.fromkeys(need for slot in one.slots for need in slot.needs))


def _plain(one: MissingCell, jobs: Sequence[Job], estimator: Estimator) -> dict[str, object]:
    costs = [estimator.cost(job) for job in jobs]
    return {
        "cell": one.cell,
        "state": one.state,
        "needs": sorted(_needs(one)),
        "reasons": list(one.reasons),
        "commands": list(one.commands),
        "jobs": len(jobs),
        "device_hours": sum(cost.hours or 0.0 for cost in costs),
        "unknown_jobs": sum(cost.hours is None for cost in costs),
        "estimated_from": list(dict.fromkeys(cost.basis for cost in costs)),
    }
