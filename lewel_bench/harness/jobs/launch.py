"""What `run` and `eval` share: planned jobs are checked, then computed here or submitted."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lewel_bench import files
from lewel_bench.harness.board import extra_rows
from lewel_bench.harness.jobs.variables import COMMAND
from lewel_bench.harness.plan import cells
from lewel_bench.harness.plan.fits import Place
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.harness.plan.workspace import Workspace
from lewel_bench.harness.request import Budget, Command, Compute, Rows
from lewel_bench.harness.rundir import RunDir, missing_weights_message
from lewel_bench.harness.wings import is_installed
from lewel_bench.results.record import NAME, set_aside
from lewel_bench.results.store import Store
from lewel_bench.results.table import TABLES, Column, Row, load
from lewel_bench.value import explain

if TYPE_CHECKING:
    from lewel_bench.harness.cost.estimate import Estimator

GPU_DRIVER = Path("/dev/nvidiactl")  # exists wherever CUDA works


@dataclass(frozen=True)
class Launch:
    """Jobs to compute, how, and the command that asks for the same again: in worker processes, in
    the planning jobs of a cluster. `imported` names the checkpoint that the jobs evaluate."""

    workspace: Workspace
    jobs: Sequence[Job]
    command: Command
    compute: Compute
    budget: Budget = Budget()
    imported: str = ""


def launch(asked: Launch) -> int:
    """Check the jobs, then compute or submit those without a record; the exit code."""
    root, jobs, compute = asked.workspace.root, list(asked.jobs), asked.compute
    settings = machine_settings(compute, asked.workspace.site)
    _check_options(asked)
    store = Store(root)
    _refuse_folders_of_others(root, [job for job in jobs if job.key not in store.records])
    _replace_corrupt(jobs, store, compute)
    todo = [job for job in jobs if job.key not in store.records]
    estimator = None
    if compute.dry_run or asked.budget != Budget():
        from lewel_bench.harness.cost.estimate import Estimator

        estimator = Estimator(store.records, root, settings.share)
        if asked.budget != Budget():
            jobs, todo = _within_budget(asked, todo, estimator, settings)
    asked = replace(asked, jobs=jobs)
    if not todo and not compute.dry_run:
        print(f"nothing to do: all {len(jobs)} jobs have records. {_see_tables(asked)}")
        return 0
    _note_missing_weights(root, store, todo)
    if compute.cluster:
        return _submit(asked, todo, estimator, settings)
    if estimator and compute.dry_run:
        _rehearse(asked.workspace, todo, settings)
        _show(jobs, todo, estimator, settings.jobs)
        return 0
    return _compute(asked, todo, settings)


def note_unused_data(workspace: Workspace) -> None:
    """Name the data that was given and that no selected job reads."""
    for option in workspace.datasets.unused():
        print(f"note: --data {option} is not used: no selected job reads it", file=sys.stderr)


def machine_settings(compute: Compute, site: Site) -> MachineSettings:
    """How jobs run on this machine: by the site file, and over it by the command line. Raises
    ValueError for values that cannot be."""
    given = {
        name: value
        for name in ("device", "jobs", "processes", "workers", "micro_batch")
        if (value := getattr(compute, name)) is not None
    }
    if compute.compile:
        given["compile"] = True
    if compute.save_every is not None:
        given["save_every_s"] = compute.save_every
    try:
        elsewhere = {"engines": site.pythons}
        return MachineSettings.model_validate({**site.machine.model_dump(), **elsewhere, **given})
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def check_writable(root: Path, *, make: bool = True) -> None:
    """Make the run root, or only look at the folder that it would be made in. Raises ValueError
    if files cannot be written or locked in it."""
    try:
        if make:
            root.mkdir(parents=True, exist_ok=True)
        files.check_folder(next(path for path in (root, *root.parents) if path.exists()))
    except OSError as error:
        error.filename = str(root)
        raise ValueError(f"cannot write to the run root {files.described(error)}") from None


def _check_options(asked: Launch) -> None:
    """Refuse options that exclude each other, before a record is touched."""
    compute = asked.compute
    if compute.cluster and compute.jobs:
        raise ValueError("--jobs is for this machine only: on a cluster set `pack` in its profile")
    if compute.cluster and compute.processes:
        raise ValueError(
            "--processes is for this machine only: on a cluster set tasks_per_node in its profile"
        )
    if compute.cluster:
        from lewel_bench.harness import cluster

        cluster.profile(asked.workspace.site, compute.cluster)
    if asked.budget.probe is not None and asked.budget.probe < 2:
        raise ValueError(f"--probe must be at least 2, got {asked.budget.probe}")


def _refuse_folders_of_others(root: Path, todo: Sequence[Job]) -> None:
    """Refuse jobs of another user, whose folders cannot be written or whose records not read."""
    rights = {root / job.key: os.R_OK | os.W_OK | os.X_OK for job in todo}
    rights |= {root / job.key / NAME: os.R_OK for job in todo}
    closed = [
        path for path, mode in rights.items() if os.path.lexists(path) and not os.access(path, mode)
    ]
    if closed:
        more = f" and {len(closed) - 1} more" if len(closed) > 1 else ""
        raise ValueError(
            f"cannot use the files of a job, {closed[0]}{more}: "
            f"{files.permission_advice(closed[0])}"
        )


def _replace_corrupt(jobs: Sequence[Job], store: Store, compute: Compute) -> None:
    """Set corrupt records of `jobs` aside. Raises ValueError if --replace-corrupt is missing."""
    keys = {job.key for job in jobs}
    corrupt = [bad for bad in store.bad if bad.path.parent.name in keys]
    if corrupt and not compute.replace_corrupt:
        lines = "\n".join(f"  {bad}" for bad in corrupt)
        raise ValueError(
            f"{len(corrupt)} records are corrupt:\n{lines}\n"
            "To recompute them add --replace-corrupt (the files are kept, renamed)"
        )
    for bad in corrupt:
        action = "would be set aside" if compute.dry_run else "set aside"
        path = bad.path if compute.dry_run else set_aside(bad.path)
        print(f"{action}: {path}", file=sys.stderr)


def _within_budget(
    asked: Launch, todo: Sequence[Job], estimator: "Estimator", settings: MachineSettings
) -> tuple[list[Job], list[Job]]:
    """The jobs, and those to do, that fit in --budget; --probe benchmarks first, unless the
    selection was already made or this process continues another's command."""
    from lewel_bench.harness.cost import budget
    from lewel_bench.harness.cost.estimate import total

    root, jobs, hours = asked.workspace.root, asked.jobs, asked.budget.budget
    selected = hours is not None and budget.remembered(root, jobs, hours).exists()
    if asked.budget.probe is not None and not selected and COMMAND not in os.environ:
        _probe(asked, todo, estimator, settings, asked.budget.probe)
    if hours is None:
        return list(jobs), list(todo)
    keep = not asked.compute.dry_run
    kept = budget.chosen(root, jobs, todo, estimator, hours, keep=keep)
    keys = {job.key for job in kept}
    rest = [job for job in todo if job.key not in keys]
    if rest:
        print(f"within {hours:g} device-hours: {total(kept, estimator)}")
        print(f"left out: {total(rest, estimator)}, such as {rest[-1].name}")
    excluded = {job.key for job in rest}
    return [job for job in jobs if job.key not in excluded], kept


def _probe(
    asked: Launch,
    todo: Sequence[Job],
    estimator: "Estimator",
    settings: MachineSettings,
    steps: int,
) -> None:
    from lewel_bench.harness import cluster
    from lewel_bench.harness.cost import probe
    from lewel_bench.harness.cost.estimate import total
    from lewel_bench.harness.jobs import provenance, signals
    from lewel_bench.harness.jobs.device import device, share_cores
    from lewel_bench.harness.plan import data_check
    from lewel_bench.pretrain.report import Stopped

    compute, workspace = asked.compute, asked.workspace
    if compute.cluster and device(settings) == "cpu":
        kinds = cluster.profile(workspace.site, compute.cluster).kinds.values()
        if any(kind.gpus_per_node for kind in kinds):
            raise ValueError(
                "--probe would benchmark this machine's CPU, but the jobs run on GPUs: give this "
                f"command on a node of {compute.cluster} with a GPU, or leave --probe out"
            )
    if not compute.cluster:  # the records may be of other devices than this machine's
        estimator.device = provenance.environment(settings)["device"]
    settings = share_cores(settings)
    check_writable(workspace.root)
    _prepare(workspace, todo, _place(settings))
    data_check.generate(todo)
    signals.listen("stopping")
    try:
        probe.probe(todo, asked.jobs, estimator, settings, steps)
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        raise SystemExit(128 + (signals.received() or signal.SIGTERM)) from None
    if not compute.dry_run and not asked.budget.budget:
        print(f"to run: {total(todo, estimator, settings.jobs)}")


def _note_missing_weights(root: Path, store: Store, todo: Sequence[Job]) -> None:
    """Name the backbones that jobs would evaluate and whose weights are missing."""
    measured = [job for job in todo if not job.is_selection]
    waiting = Counter(job.upstream for job in measured if job.upstream in store.records)
    for key, count in waiting.items():
        weights = store.records[str(key)].checkpoint
        if weights and not (path := root / str(key) / weights.file).exists():
            jobs = f"{count} job{'s' * (count != 1)}"
            print(f"note: {jobs} cannot run: {missing_weights_message(path)}", file=sys.stderr)


def _rehearse(workspace: Workspace, todo: Sequence[Job], settings: MachineSettings) -> None:
    """Refuse what `_compute` would refuse, and change nothing."""
    place = _place(settings, quick=True)
    check_writable(workspace.root, make=False)
    _refuse_submitted(workspace.root, todo)
    if settings.jobs > 1:
        from lewel_bench.harness.jobs.device import share_cores

        share_cores(settings)
    _prepare(workspace, todo, place)


def _place(settings: MachineSettings, *, quick: bool = False) -> Place:
    """What a job has on this machine. Raises ValueError for devices that do not exist. With
    `quick` torch is asked only where there may be a GPU: loading it takes seconds."""
    micro = settings.micro_batch
    if quick and settings.device in (None, "cpu") and not GPU_DRIVER.exists():
        return Place(settings.processes or 1, True, micro)
    import torch

    from lewel_bench.harness.jobs.device import device, device_count

    name, devices = device(settings), device_count(settings)
    processes = settings.processes or devices
    if name != "cpu" and processes > (torch.cuda.device_count() if name == "cuda" else 1):
        raise ValueError(
            f"--processes {processes}: every process needs a CUDA device of its own, and "
            f"{name} has {torch.cuda.device_count() if name == 'cuda' else 1}"
        )
    return Place(processes, name == "cpu", micro)


def _prepare(workspace: Workspace, todo: Sequence[Job], place: Place) -> None:
    """Check the data of `todo`, and that each job fits its data and this machine."""
    from lewel_bench.harness.plan import data_check, fits

    place_of = partial(_place_of, place)
    fits.check_machine(todo, place_of)
    data_check.prepare(todo, workspace)
    fits.check_data(todo, place_of)


def _place_of(place: Place, job: Job) -> Place:
    """What a job has of a place: a single process where it cannot use several."""
    alone = job.protocol and (job.is_selection or job.protocol.needs_one_process(on_cpu=place.cpu))
    return place._replace(processes=1) if alone else place


def _submit(
    asked: Launch,
    todo: Sequence[Job],
    estimator: "Estimator | None",
    settings: MachineSettings,
) -> int:
    from lewel_bench.harness import cluster

    workspace, compute = asked.workspace, asked.compute
    assert compute.cluster
    used = cluster.profile(workspace.site, compute.cluster)
    kinds = used.kinds

    def place_of(job: Job) -> Place:
        kind = kinds[cluster.kind(job)]
        cpu = settings.device == "cpu" or not (kind.gpus_per_node or kind.submitit)
        return Place(kind.world, cpu, settings.micro_batch)

    def prepare() -> None:
        if todo:
            from lewel_bench.harness.plan import data_check, fits

            fits.check_machine(todo, place_of)
            data_check.prepare(todo, workspace)
            fits.check_data(todo, place_of)

    if estimator and compute.dry_run:
        prepare()
        slots = max(kind.array_parallelism for kind in kinds.values())
        _show(asked.jobs, todo, estimator, slots)
    return cluster.submit(
        workspace.root,
        used,
        asked.jobs,
        todo,
        settings,
        prepare,
        command=asked.command,
        dry_run=compute.dry_run,
    )


def _compute(asked: Launch, todo: Sequence[Job], settings: MachineSettings) -> int:
    from lewel_bench.harness.plan import data_check

    root = asked.workspace.root
    place = _place(settings, quick=True)
    check_writable(root)
    # before the look at the cluster, whose passes look at this before they submit
    with RunDir(root).queue([job.key for job in todo]):
        _refuse_submitted(root, todo)
        if settings.jobs > 1:
            from lewel_bench.harness.jobs.device import share_cores

            settings = share_cores(settings)
        _prepare(asked.workspace, todo, place)
        data_check.generate(todo)
        return _finish(asked, todo, settings, place)


def _refuse_submitted(root: Path, todo: Sequence[Job]) -> None:
    """Raise ValueError if a cluster may compute some of `todo`."""
    if todo and (root / files.LEDGER).exists():
        from lewel_bench.harness import cluster

        cluster.refuse_submitted(root, todo)


def _finish(asked: Launch, todo: Sequence[Job], settings: MachineSettings, place: Place) -> int:
    from lewel_bench.harness import view
    from lewel_bench.harness.jobs import local, signals
    from lewel_bench.pretrain.report import Stopped

    signals.listen()
    root, done = asked.workspace.root, len(asked.jobs) - len(todo)
    print(f"{len(todo)} jobs to do, {done} already done; records go to {root}")

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    tasks = []
    has_seeds = len({job.seed for job in todo}) > 1
    for job, hours in zip(todo, _estimated_hours(todo, root, settings), strict=True):
        RunDir(root).job(job.key).write_spec(job)
        name = f"{job.name}, seed {job.seed}" if has_seeds else job.name
        processes = _place_of(place, job).processes
        tasks.append(local.Task(job.key, name, job.needs, hours, processes))
    try:
        with view.RunView() as shown:
            computed = local.Runner(tasks, root, settings, shown, say).run()
    except Stopped as stopped:
        number = signals.received() or signal.SIGTERM
        say(f"stopped: {stopped}. Run the same command again to continue.")
        return 128 + number
    except local.Unfinished as unfinished:
        say(f"lewel-bench: {unfinished}\nFix the cause, then run the same command again.")
        return 2 if unfinished.mistakes else 1
    print(f"done: {len(computed)} jobs computed here. {_see_tables(asked)}")
    return 0


def _estimated_hours(todo: Sequence[Job], root: Path, settings: MachineSettings) -> list[float]:
    """How long each job takes; a job of unknown cost as long as a typical job."""
    hours: list[float | None] = [None] * len(todo)
    if is_installed("harness.cost"):
        from lewel_bench.harness.cost.estimate import Estimator

        estimator = Estimator(Store(root).records, root, settings.share)
        hours = [estimator.cost(job).hours for job in todo]
    known = [count for count in hours if count]
    typical = median(known) if known else 1.0
    return [count or typical for count in hours]


def _show(jobs: Sequence[Job], todo: Sequence[Job], estimator: "Estimator", slots: int) -> None:
    from lewel_bench.harness import view
    from lewel_bench.harness.cost.estimate import total

    missing = {job.key for job in todo}
    rows = []
    for job in jobs:
        cost = estimator.cost(job)
        hours = "?" if cost.hours is None else f"{cost.hours:.3g}"
        state = "missing" if job.key in missing else "done"
        rows.append((state, job.key, job.kind, job.name, str(job.seed), hours, cost.basis))
    view.show_list(("state", "key", "kind", "name", "seed", "device-hours", "from"), rows)
    done = len(jobs) - len(todo)
    print(
        f"to run: {total(todo, estimator, slots)}; already done: {done}"
        if todo
        else "nothing to do"
    )


def _see_tables(asked: Launch) -> str:
    """The commands that show the tables whose cells the jobs fill."""
    jobs, imported = asked.jobs, asked.imported
    fills = {(job.recipe_name, job.protocol.name if job.protocol else None) for job in jobs}
    own = extra_rows.own(asked.workspace.catalog)
    mine = {name: row for name, row in own.items() if any(name == n for n, _ in fills)}

    def is_filled(row: Row, column: Column) -> bool:
        name = row.family(column) if row.family(column) in mine else cells.recipe_name(row, column)
        return (imported or name, row.protocols.get(column.eval)) in fills

    tables = (
        extra_rows.extended(
            load(name), list(mine.values()), lambda row, protocol: (row.name, protocol) in fills
        )
        for name in TABLES
    )
    filled = [table.id for table in tables if any(is_filled(*cell) for cell in table.cells())]
    if not filled:
        return "See: lewel-bench ls runs"
    options = (Rows(with_=(imported,) if imported else tuple(mine)), asked.workspace.where)
    return "See: " + ", ".join(str(Command("table", options, (table,))) for table in filled)
