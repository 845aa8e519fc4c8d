"""`lewel-bench table --missing`: the cells without a number, what fills them and what it costs."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.plan import cells
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.wings import is_installed
from lewel_bench.results import fill, table
from lewel_bench.results.fill import FilledTable, MissingCell

if TYPE_CHECKING:
    from lewel_bench.harness.cost.estimate import Estimator


def show(board: Board, tables: Sequence[FilledTable], form: str) -> None:
    """Print the missing cells of some tables; with "json" for a program."""
    costs = _estimator(board)
    cells_to_do = [(cell, to_do(board, cell)) for filled in tables for cell in fill.missing(filled)]
    if form == "json":
        print(json.dumps([_plain(cell, jobs, costs) for cell, jobs in cells_to_do], indent=2))
        return
    if not cells_to_do:
        print("no missing cells")
        return
    for cell, jobs in cells_to_do:
        print(f"{cell.cell}: {cell.state} ({cell.n} of {cell.wanted} seeds)")
        for reason in cell.reasons:
            print(f"    {reason}")
        for need in _needs(cell):
            print(f"    needs {need}")
        for command in cell.commands:
            print(f"    fill with: {command}")
        if jobs and costs:
            print(f"    costs {_hours(jobs, costs)}")
    if costs:
        from lewel_bench.harness.cost.estimate import total

        together = list({job.key: job for _, jobs in cells_to_do for job in jobs}.values())
        print(f"all of these cells: {total(together, costs)}")


def _estimator(board: Board) -> "Estimator | None":
    """The costs of jobs; None without `harness.cost`."""
    if not is_installed("harness.cost"):
        return None
    from lewel_bench.harness.cost.estimate import Estimator

    return Estimator(board.store.records, board.root)


def to_do(board: Board, missing: MissingCell) -> list[Job]:
    """The jobs without a record that a cell waits for, in dependency order."""
    _, row, column = board.cell(missing.cell)
    names = [board.recipe_name(row, column)]
    if column.metric == table.OVERHEAD:
        names.append(cells.baseline_name(row, column))
    jobs: dict[str, Job] = {}
    for name in filter(None, names):
        for seed in dict.fromkeys(slot.seed for slot in missing.slots):
            evals = [] if column.eval == table.PRETRAIN else [row.protocols[column.eval]]
            jobs |= {job.key: job for job in board.jobs(name, evals, seed)}
    return [job for key, job in jobs.items() if key not in board.store.records]


def _hours(jobs: Sequence[Job], estimator: "Estimator") -> str:
    costs = [estimator.cost(job) for job in jobs]
    known = [cost for cost in costs if cost.hours]
    bases = ", ".join(dict.fromkeys(cost.basis for cost in known))
    unknown = sum(cost.hours is None for cost in costs)
    more = f"{' and ' if known else ''}{unknown} jobs with unknown cost" if unknown else ""
    hours = sum(cost.hours or 0.0 for cost in known)
    return (f"{hours:.3g} device-hours ({bases})" if known else "") + more or "next to nothing"


def _needs(cell: MissingCell) -> list[str]:
    return list(dict.fromkeys(need for slot in cell.slots for need in slot.needs))


def _plain(
    cell: MissingCell, jobs: Sequence[Job], estimator: "Estimator | None"
) -> dict[str, object]:
    """A missing cell for a program; without an estimator it has no costs."""
    costs = [estimator.cost(job) for job in jobs] if estimator else []
    estimates = {
        "device_hours": sum(cost.hours or 0.0 for cost in costs),
        "unknown_jobs": sum(cost.hours is None for cost in costs),
        "estimated_from": list(dict.fromkeys(cost.basis for cost in costs)),
    }
    return {
        "cell": cell.cell,
        "state": cell.state,
        "needs": sorted(_needs(cell)),
        "reasons": list(cell.reasons),
        "commands": list(cell.commands),
        "jobs": len(jobs),
        **(estimates if estimator else {}),
    }
