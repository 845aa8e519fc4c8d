"""`lewel-bench table --missing`: the cells without a number, what fills them and what it costs."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.plan import cells
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.wings import is_installed
from lewel_bench.results import table
from lewel_bench.results.fill import Entry, FilledTable, Slot

if TYPE_CHECKING:
    from lewel_bench.harness.cost.estimate import Estimator


def show(board: Board, tables: Sequence[FilledTable], form: str) -> None:
    """Print the missing cells of some tables; with "json" for a program."""
    costs = _estimator(board)
    lacking = {cell: entry for filled in tables for cell, entry in filled.missing().items()}
    jobs = {cell: to_do(board, cell, entry) for cell, entry in lacking.items()}
    details = {cell: _plain(cell, entry, jobs[cell], costs) for cell, entry in lacking.items()}
    if form == "json":
        print(json.dumps(list(details.values()), indent=2))
        return
    if not lacking:
        print("no missing cells")
        return
    for cell, entry in lacking.items():
        print(f"{cell}: {entry.state} ({entry.n} of {entry.wanted} seeds)")
        for reason in entry.reasons:
            print(f"    {reason}")
        for need in _distinct(need for slot in _open(entry) for need in slot.needs):
            print(f"    needs {need}")
        for command in details[cell]["commands"]:
            print(f"    fill with: {command}")
        if jobs[cell] and costs:
            print(f"    costs {_hours(jobs[cell], costs)}")
    if costs:
        from lewel_bench.harness.cost.estimate import total

        together = {job.key: job for of_cell in jobs.values() for job in of_cell}
        print(f"all of these cells: {total(list(together.values()), costs)}")


def _estimator(board: Board) -> "Estimator | None":
    """The costs of jobs; None without `harness.cost`."""
    if not is_installed("harness.cost"):
        return None
    from lewel_bench.harness.cost.estimate import Estimator

    return Estimator(board.store.records, board.root)


def to_do(board: Board, cell: str, entry: Entry) -> list[Job]:
    """The jobs without a record that a cell waits for, in dependency order."""
    _, row, column = board.cell(cell)
    names = [board.recipe_name(row, column)]
    if column.metric == table.OVERHEAD:
        names.append(cells.baseline_name(row, column))
    evals = [] if column.eval == table.PRETRAIN else [row.protocols[column.eval]]
    jobs = {
        job.key: job
        for name in filter(None, names)
        for seed in dict.fromkeys(slot.seed for slot in _open(entry))
        for job in board.jobs(name, evals, seed)
    }
    return [job for key, job in jobs.items() if key not in board.store.records]


def _open(entry: Entry) -> list[Slot]:
    return [slot for slot in entry.slots if slot.state != "done"]


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, texts)))


def _hours(jobs: Sequence[Job], estimator: "Estimator") -> str:
    costs = [estimator.cost(job) for job in jobs]
    known = [cost for cost in costs if cost.hours]
    bases = ", ".join(dict.fromkeys(cost.basis for cost in known))
    unknown = sum(cost.hours is None for cost in costs)
    more = f"{' and ' if known else ''}{unknown} jobs with unknown cost" if unknown else ""
    hours = sum(cost.hours or 0.0 for cost in known)
    return (f"{hours:.3g} device-hours ({bases})" if known else "") + more or "next to nothing"


def _plain(
    cell: str, entry: Entry, jobs: Sequence[Job], estimator: "Estimator | None"
) -> dict[str, Any]:
    """A missing cell for a program; without an estimator it has no costs."""
    costs = [estimator.cost(job) for job in jobs] if estimator else []
    estimates = {
        "device_hours": sum(cost.hours or 0.0 for cost in costs),
        "unknown_jobs": sum(cost.hours is None for cost in costs),
        "estimated_from": _distinct(cost.basis for cost in costs),
    }
    return {
        "cell": cell,
        "state": entry.state,
        "needs": sorted({need for slot in _open(entry) for need in slot.needs}),
        "reasons": list(entry.reasons),
        "commands": _distinct(slot.command for slot in _open(entry)),
        "jobs": len(jobs),
        **(estimates if estimator else {}),
    }
