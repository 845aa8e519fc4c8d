"""`lewel-bench run`: from the command line to jobs, checked before anything starts."""

import argparse
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lewel_bench import files
from lewel_bench.harness.board import extra_rows as extras
from lewel_bench.harness.cost import budget
from lewel_bench.harness.cost.estimate import Estimator, total
from lewel_bench.harness.jobs.variables import COMMAND
from lewel_bench.harness.plan import cells, plan
from lewel_bench.harness.plan import plugins as own
from lewel_bench.harness.plan.cells import Query, Selection
from lewel_bench.harness.plan.fits import Place
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.harness.rundir import RunDir, missing_weights_message
from lewel_bench.results.record import NAME, set_aside
from lewel_bench.results.store import Store
from lewel_bench.results.table import TABLES, Column, Row, load
from lewel_bench.value import explain

if TYPE_CHECKING:
    from lewel_bench.harness.cli import Context


MOST_SEEDS = 10_000
GPU_DRIVER = Path("/dev/nvidiactl")  # there wherever CUDA works
LARGEST_SEED = 2**32 - 1  # as NumPy and scikit-learn take them


def run(context: "Context", arguments: argparse.Namespace) -> int:
    """Plan, check, then compute what is missing; the exit code."""
    jobs = plan.plan(select(arguments, context), context.datasets)
    note_unused(context)
    return work(context, arguments, jobs)


def note_unused(context: "Context") -> None:
    """Say which data that was given no selected job is on."""
    for one in context.datasets.unused():
        print(f"note: --data {one} is not used: nothing that is selected is on it", file=sys.stderr)


def work(context: "Context", arguments: argparse.Namespace, jobs: list[Job]) -> int:
    """Check `jobs`, then compute or submit those without a record; the exit code."""
    settings = machine(arguments, context.site)
    _refuse(context, arguments)
    store = Store(context.root)
    _refuse_folders_of_others(context.root, [job for job in jobs if job.key not in store.records])
    _corrupt(jobs, store, arguments)
    todo = [job for job in jobs if job.key not in store.records]
    estimator = Estimator(store.records, context.root, settings.share)
    if arguments.probe is not None or arguments.budget:
        jobs, todo = _within(context, arguments, jobs, todo, estimator, settings)
    if not todo and not arguments.dry_run:
        print(
            f"nothing to do: all {len(jobs)} jobs have records. {_hint(context, jobs, arguments)}"
        )
        return 0
    _note_weights(context, store, todo)
    if arguments.cluster:
        return _submit(context, arguments, jobs, todo, estimator, settings)
    if arguments.dry_run:
        _rehearse(context, todo, settings)
        _show(jobs, todo, estimator, settings.jobs)
        return 0
    return _compute(context, jobs, todo, settings, arguments)


def _refuse(context: "Context", arguments: argparse.Namespace) -> None:
    """Refuse options that cannot be, before a record is touched."""
    if arguments.cluster and arguments.jobs:
        raise ValueError("--jobs is for this machine: a cluster's profile has `pack`")
    if arguments.cluster and arguments.processes:
        raise ValueError("--processes is for this machine: a cluster's profile has tasks_per_node")
    if arguments.cluster:
        from lewel_bench.harness import cluster

        cluster.profile(context.site, arguments.cluster)
    if arguments.budget:
        budget.hours_of(arguments.budget)
    if arguments.probe is not None and arguments.probe < 2:
        raise ValueError(f"--probe {arguments.probe}: a pace needs two steps at least, such as 50")


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


def _note_weights(context: "Context", store: Store, todo: Sequence[Job]) -> None:
    """Say which networks jobs would evaluate that are not here, though their records are."""
    measured = [job for job in todo if not job.is_selection]
    waiting = Counter(job.upstream for job in measured if job.upstream in store.records)
    for key, count in waiting.items():
        left = store.records[str(key)].checkpoint
        if left and not (path := context.root / str(key) / left.file).exists():
            print(
                f"note: {count} job{'s' * (count != 1)} cannot run: "
                f"{missing_weights_message(path)}",
                file=sys.stderr,
            )


def _rehearse(context: "Context", todo: Sequence[Job], settings: MachineSettings) -> None:
    """Refuse what `_compute` would refuse, and change nothing."""
    place = _place(settings, quick=True)
    writable(context.root, make=False)
    if todo:
        from lewel_bench.harness import cluster

        cluster.free(context.root, todo)
    if settings.jobs > 1:
        from lewel_bench.harness.jobs import workers as companions

        companions.shared(settings)
    _prepare(context, todo, place)


def _place(settings: MachineSettings, *, quick: bool = False) -> Place:
    """What a job has on this machine. Raises ValueError for devices that are not there. With
    `quick` torch is asked only where there may be a GPU: loading it takes seconds."""
    micro = settings.micro_batch
    if quick and settings.device in (None, "cpu") and not GPU_DRIVER.exists():
        return Place(settings.processes or 1, True, micro)
    import torch

    from lewel_bench.harness.jobs import local
    from lewel_bench.harness.jobs.device import device

    name, devices = device(settings), local.devices(settings)
    processes = settings.processes or devices
    if name != "cpu" and processes > (torch.cuda.device_count() if name == "cuda" else 1):
        raise ValueError(
            f"--processes {processes}: every process needs a CUDA device of its own, and "
            f"{name} has {torch.cuda.device_count() if name == 'cuda' else 1}"
        )
    return Place(processes, name == "cpu", micro)


def _prepare(context: "Context", todo: Sequence[Job], place: Place) -> None:
    """Check the data of `todo`, and that each job fits its data and this machine."""
    from lewel_bench.harness.plan import data_check as material
    from lewel_bench.harness.plan import fits

    def of(job: Job) -> Place:
        alone = job.protocol and job.protocol.needs_one_process(on_cpu=place.cpu)
        return place._replace(processes=1) if alone else place

    fits.check_machine(todo, of)
    material.prepare(todo, context)
    fits.check_data(todo, of)


def _submit(
    context: "Context",
    arguments: argparse.Namespace,
    jobs: Sequence[Job],
    todo: Sequence[Job],
    estimator: Estimator,
    settings: MachineSettings,
) -> int:
    from lewel_bench.harness import cluster

    kinds = cluster.profile(context.site, arguments.cluster).kinds

    def place(job: Job) -> Place:
        asked = kinds[cluster.kind(job)]
        cpu = settings.device == "cpu" or not (asked.gpus_per_node or asked.submitit)
        return Place(asked.world, cpu, settings.micro_batch)

    def prepare() -> None:
        if todo:
            from lewel_bench.harness.plan import data_check as material
            from lewel_bench.harness.plan import fits

            fits.check_machine(todo, place)
            material.prepare(todo, context)
            fits.check_data(todo, place)

    if arguments.dry_run:
        prepare()
        most = max(one.array_parallelism for one in kinds.values())
        _show(jobs, todo, estimator, most)
    return cluster.submit(context, arguments, jobs, todo, settings, prepare)


def _compute(
    context: "Context",
    jobs: Sequence[Job],
    todo: Sequence[Job],
    settings: MachineSettings,
    arguments: argparse.Namespace,
) -> int:
    # here and not above: only now is torch needed
    from lewel_bench.harness import cluster
    from lewel_bench.harness.jobs import workers as companions
    from lewel_bench.harness.plan import data_check as material

    place = _place(settings)
    writable(context.root)
    # before the look at the cluster, whose passes look at this before they submit
    with RunDir(context.root).queue([one.key for one in todo]):
        cluster.free(context.root, todo)
        settings = companions.shared(settings)
        _prepare(context, todo, place)
        material.generate(todo)
        return _finish(context, jobs, todo, settings, arguments)


def _finish(
    context: "Context",
    jobs: Sequence[Job],
    todo: Sequence[Job],
    settings: MachineSettings,
    arguments: argparse.Namespace,
) -> int:
    from lewel_bench.harness import view
    from lewel_bench.harness.jobs import local, signals
    from lewel_bench.harness.jobs import workers as companions
    from lewel_bench.pretrain.report import Stopped

    signals.listen()
    there = len(jobs) - len(todo)
    print(f"{len(todo)} jobs to do, {there} already done; records go to {context.root}")

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    runner = local.Runner(todo, context.root, settings, lambda job: view.progress(job.name), say)
    try:
        with companions.companions(settings):
            computed = runner.run()
    except Stopped as stopped:
        number = signals.received() or signal.SIGTERM
        say(f"stopped: {stopped}. Run the same command again to go on.")
        return 128 + number
    except local.Unfinished as unfinished:
        say(f"lewel-bench: {unfinished}\nMend what is named and run the same command again.")
        return 2 if unfinished.mistakes else 1
    print(f"done: {len(computed)} jobs computed here. {_hint(context, jobs, arguments)}")
    return 0


def writable(root: Path, *, make: bool = True) -> None:
    """Make the run root, or look at the folder that it would be made in. Raises ValueError where
    files cannot be written or locked there."""
    try:
        if make:
            root.mkdir(parents=True, exist_ok=True)
        files.check_folder(next(one for one in (root, *root.parents) if one.exists()))
    except OSError as error:
        error.filename = str(root)
        raise ValueError(f"cannot write to the run root {files.described(error)}") from None


def select(arguments: argparse.Namespace, context: "Context") -> Selection:
    """The selection of a command line. Raises ValueError for what cannot be meant."""
    named = split(arguments.method)
    methods_, context.catalog = own.with_methods(
        named, context.root, context.catalog, keep=not arguments.dry_run
    )
    tables = tuple(t.removeprefix("table") for t in split(arguments.table))
    epochs = tuple(_positive("--epochs", text) for text in split(arguments.epochs))
    evals = split([arguments.evals]) if arguments.evals else ()
    context.catalog = own.with_protocols(evals, context.catalog)
    query = Query(methods_, epochs, tables, evals)
    named_evals = cells.named_evaluations(query, context.catalog, context.suite).values()
    protocols = dict.fromkeys(name for names in named_evals for name in names)
    return cells.select(query, context.scaled(protocols), seeds(arguments.seeds))


def split(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def _positive(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{option} {text}: must be a whole number of at least 1")
    return int(text)


def seeds(text: str) -> tuple[int, ...]:
    """`3` is seeds 0, 1, 2; `0,2,5` and `4,` are these."""
    if "," not in text:
        count = _positive("--seeds", text)
        if count > MOST_SEEDS:
            raise ValueError(
                f"--seeds {text}: that is a number of seeds; for one seed write {text},"
            )
        return tuple(range(count))
    parts = split([text])
    if not parts or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--seeds {text}: write a number of seeds (3) or a list of them (0,2,5)")
    if too_large := [part for part in parts if int(part) > LARGEST_SEED]:
        raise ValueError(f"--seeds {text}: {too_large[0]} is more than {LARGEST_SEED}")
    return tuple(dict.fromkeys(map(int, parts)))


def machine(arguments: argparse.Namespace, site: Site) -> MachineSettings:
    given = {
        name: value
        for name in ("device", "jobs", "processes", "workers", "micro_batch", "compile")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.save_every is not None:
        given["save_every_s"] = arguments.save_every
    try:
        elsewhere = {"engines": site.pythons}
        return MachineSettings.model_validate({**site.machine.model_dump(), **elsewhere, **given})
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def _corrupt(jobs: Sequence[Job], store: Store, arguments: argparse.Namespace) -> None:
    """Refuse corrupt records of `jobs`, or set them aside: what stays would be in the way."""
    keys = {job.key for job in jobs}
    bad = [one for one in store.bad if one.path.parent.name in keys]
    if bad and not arguments.replace_corrupt:
        lines = "\n".join(f"  {one}" for one in bad)
        raise ValueError(
            f"{len(bad)} records are corrupt:\n{lines}\n"
            "They are computed again only when asked: add --replace-corrupt (the files are kept "
            "beside, renamed)"
        )
    for one in bad:
        said = "would be set aside" if arguments.dry_run else "set aside"
        path = one.path if arguments.dry_run else set_aside(one.path)
        print(f"{said}: {path}", file=sys.stderr)


def _within(
    context: "Context",
    arguments: argparse.Namespace,
    jobs: Sequence[Job],
    todo: Sequence[Job],
    estimator: Estimator,
    settings: MachineSettings,
) -> tuple[list[Job], list[Job]]:
    """The jobs, and those to do, that --budget leaves; --probe times what has no like, once: not
    where the choice is made, nor for a process that goes on with what another was asked."""
    hours = budget.hours_of(arguments.budget) if arguments.budget else None
    made = hours is not None and budget.remembered(context.root, jobs, hours).exists()
    if arguments.probe is not None and not made and COMMAND not in os.environ:
        _probe(context, arguments, jobs, todo, estimator, settings)
    if hours is None:
        return list(jobs), list(todo)
    keep = not arguments.dry_run
    kept = budget.chosen(context.root, jobs, todo, estimator, hours, keep=keep)
    keys = {job.key for job in kept}
    rest = [job for job in todo if job.key not in keys]
    if rest:
        print(f"within {hours:g} device-hours: {total(kept, estimator)}")
        print(f"left out: {total(rest, estimator)}, such as {rest[-1].name}")
    out = {job.key for job in rest}
    return [job for job in jobs if job.key not in out], kept


def _probe(
    context: "Context",
    arguments: argparse.Namespace,
    jobs: Sequence[Job],
    todo: Sequence[Job],
    estimator: Estimator,
    settings: MachineSettings,
) -> None:
    from lewel_bench.harness import cluster
    from lewel_bench.harness.cost import probe
    from lewel_bench.harness.jobs import provenance, signals
    from lewel_bench.harness.jobs import workers as companions
    from lewel_bench.harness.jobs.device import device
    from lewel_bench.harness.plan import data_check as material
    from lewel_bench.pretrain.report import Stopped

    if arguments.cluster and device(settings) == "cpu":
        kinds = cluster.profile(context.site, arguments.cluster).kinds.values()
        if any(one.gpus_per_node for one in kinds):
            raise ValueError(
                "--probe would time a CPU here, and the jobs run on GPUs: give this command on a "
                f"node of {arguments.cluster} that has one, or leave --probe out"
            )
    if not arguments.cluster:  # whose records are of other devices than this one
        estimator.device = provenance.environment(settings)["device"]
    settings = companions.shared(settings)
    writable(context.root)
    _prepare(context, todo, _place(settings))
    material.generate(todo)
    signals.listen("stopping")
    try:
        probe.probe(todo, jobs, estimator, settings, arguments.probe)
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        raise SystemExit(128 + (signals.received() or signal.SIGTERM)) from None
    if not arguments.dry_run and not arguments.budget:
        print(f"to do: {total(todo, estimator, settings.jobs)}")


def _show(jobs: Sequence[Job], todo: Sequence[Job], estimator: Estimator, slots: int) -> None:
    from lewel_bench.harness import view

    missing = {job.key for job in todo}
    rows = []
    for job in jobs:
        cost = estimator.cost(job)
        hours = "?" if cost.hours is None else f"{cost.hours:.3g}"
        state = "missing" if job.key in missing else "done"
        rows.append((state, job.key, job.kind, job.name, str(job.seed), hours, cost.basis))
    view.show_list(("state", "key", "kind", "name", "seed", "device-hours", "from"), rows)
    done = f"{len(jobs) - len(todo)} jobs are done"
    print(f"{done}; to do: {total(todo, estimator, slots)}" if todo else f"all {done}")


def _hint(context: "Context", jobs: Sequence[Job], arguments: argparse.Namespace) -> str:
    """The commands that show the tables whose cells the jobs fill."""
    fills = {(job.recipe_name, job.protocol.name if job.protocol else None) for job in jobs}
    imported = arguments.name if arguments.verb == "eval" else None
    mine = {
        name: one
        for name, one in extras.own(context.catalog).items()
        if any(name == n for n, _ in fills)
    }

    def fill(row: Row, column: Column) -> bool:
        name = row.family(column) if row.family(column) in mine else cells.recipe_name(row, column)
        return (imported or name, row.protocols.get(column.eval)) in fills

    quoted = (
        extras.extended(load(name), list(mine.values()), lambda one, p: (one.name, p) in fills)
        for name in TABLES
    )
    tables = [one.id for one in quoted if any(fill(*cell) for cell in one.cells())]
    if not tables:
        return "See: lewel-bench ls runs"
    beside = imported or ",".join(mine)
    more = ["--with", beside] if beside else []
    more += [] if arguments.suite == "paper" else ["--suite", arguments.suite]
    more += ["--root", arguments.root] if arguments.root else []
    more += ["--refit"] if arguments.refit else []
    more += ["--lrs", arguments.lrs] if arguments.lrs else []
    repeated = ("data", "set", "engine")
    for option, values in zip(
        repeated, (arguments.data, arguments.settings, arguments.engine), strict=True
    ):
        more += [word for value in values for word in (f"--{option}", value)]
    return "See: " + ", ".join(shlex.join(["lewel-bench", "table", t, *more]) for t in tables)
