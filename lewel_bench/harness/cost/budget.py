"""`run --budget`: which cells to compute where not all can be afforded.

What was chosen for a command is kept under the run root: running it again, after a kill or from a
cluster's planning job, goes on with the same cells and spends nothing twice.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lewel_bench.files import LARGEST_JSON, read_regular, write_atomically
from lewel_bench.harness.cost.estimate import Estimator
from lewel_bench.harness.plan.plan import Job
from lewel_bench.results import record

CHOSEN = ".budgets"


def affordable(jobs: Sequence[Job], estimator: Estimator, hours: float) -> list[Job]:
    """Those of `jobs` (to do, in dependency order) that fit into `hours` device-hours.

    Cells with the most information come first: a first seed before a second, few epochs before
    many, a pre-training that many cells share before one that few do, its cells from the cheapest
    on. A cell is taken with all that it needs or not at all. Raises ValueError where a cost is not
    known, or nothing fits.
    """
    if not jobs:
        return []
    costs = {job.key: estimator.cost(job) for job in jobs}
    if unknown := [job for job in jobs if costs[job.key].hours is None]:
        raise ValueError(
            f"--budget: the cost of {len(unknown)} jobs is unknown, such as "
            f"{unknown[0].name}: add --probe 50 to benchmark one of each kind first"
        )
    by_key = {job.key: job for job in jobs}
    needed = {need for job in jobs for need in job.needs}
    cells = [(job, _closure(job, by_key)) for job in jobs if job.key not in needed]
    price = {job.key: sum(costs[key].hours or 0.0 for key in keys) for job, keys in cells}
    first = {job.key: job.upstream or job.key for job, _ in cells}
    shared = {key: list(first.values()).count(key) for key in set(first.values())}
    epochs = {job.key: job.recipe.epochs for job in jobs if job.recipe}
    cells.sort(
        key=lambda cell: (
            cell[0].seed,
            epochs.get(first[cell[0].key], 0),  # 0: its pre-training is done
            -shared[first[cell[0].key]],
            first[cell[0].key],
            price[cell[0].key],
        )
    )
    taken: set[str] = set()
    spent = 0.0
    for _, keys in cells:
        more = sum(costs[key].hours or 0.0 for key in keys - taken)
        if spent + more <= hours:
            taken |= keys
            spent += more
    if not taken:
        cheapest = min(price.values())
        raise ValueError(
            f"--budget {hours:g}: the cheapest cell needs about {cheapest:.3g} device-hours"
        )
    return [job for job in jobs if job.key in taken]


def chosen(
    root: Path, jobs: Sequence[Job], todo: Sequence[Job], estimator: Estimator, hours: float,
    *, keep: bool,
) -> list[Job]:  # fmt: skip
    """Those of `todo` that the command with these `jobs` and `hours` computes: as it chose the
    first time, else as `affordable`; with `keep` that is remembered."""
    path = remembered(root, jobs, hours)
    try:
        keys = set(json.loads(read_regular(path, LARGEST_JSON)))
    except FileNotFoundError:
        out = {job.key for job in todo}
        out -= {job.key for job in affordable(todo, estimator, hours)}
        # those with a record too: one may turn out corrupt, and is computed again
        keys = {job.key for job in jobs} - out
        if keep:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(sorted(keys)))
    return [job for job in todo if job.key in keys]


def remembered(root: Path, jobs: Sequence[Job], hours: float) -> Path:
    """The file with what the command with these `jobs` and `hours` has chosen, if it has."""
    what = {"jobs": sorted(job.key for job in jobs), "hours": hours}
    return root / CHOSEN / f"{record.key(what)}.json"


def _closure(job: Job, jobs: Mapping[str, Job]) -> set[str]:
    """The keys of a job and of everything among `jobs` that it needs."""
    keys_needed: set[str] = set()
    ahead = [job.key]
    while ahead:
        key = ahead.pop()
        if key in jobs and key not in keys_needed:
            keys_needed.add(key)
            ahead += jobs[key].needs
    return keys_needed
