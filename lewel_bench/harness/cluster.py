"""`--cluster NAME`: the same jobs on SLURM, and what a person sees and does there."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lewel_bench import terminal
from lewel_bench.files import FAILURE, is_held, open_regular, read_json
from lewel_bench.harness.board.extra_rows import Extra, extended
from lewel_bench.harness.jobs.variables import COMMAND
from lewel_bench.harness.plan import cells
from lewel_bench.harness.plan.catalog import Catalog
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.harness.plan.workspace import Workspace
from lewel_bench.harness.request import Command, Compute, typed_command
from lewel_bench.harness.rundir import CHECKPOINTS, LOCK, RunDir
from lewel_bench.harness.status import JobState
from lewel_bench.results.record import NAME
from lewel_bench.results.table import Table, load, parse_cell
from lewel_bench.slurm import (
    actions,
    attempt,
    check,
    executor,
    in_job,
    ledger,
    queue,
    survey,
    sweep,
)
from lewel_bench.slurm.plan import JobArray, PlannedJob
from lewel_bench.slurm.profile import Profile, load_profile
from lewel_bench.slurm.state import has_failed
from lewel_bench.slurm.sweep import PlanningPass, Sweep
from lewel_bench.value import unknown

# of a planning job, whose time limit may be 10 minutes; each try may wait for the lock, too
PAUSES_S = (10.0, 30.0, 120.0)


def profile(site: Site, name: str) -> Profile:
    """The profile `name` of the site file or of the examples; for a planning job as it was when a
    person started the sweep, whatever the site file says since. Raises ValueError."""
    if woken := os.environ.get(in_job.WAKE):
        kept = (read_json(Path(woken)) or {}).get("profile")
        if kept and kept["name"] == name:
            return Profile.model_validate(kept)
    return load_profile(name, site.clusters, str(site.path or ""))


def submit(
    workspace: Workspace,
    command: Command,
    compute: Compute,
    jobs: Sequence[Job],
    todo: Sequence[Job],
    settings: MachineSettings,
    prepare: Callable[[], None],
) -> int:
    """Submit what is ready, say what the rest waits for, and return; the exit code."""
    assert compute.cluster
    on = profile(workspace.site, compute.cluster)
    cells = [_cell(job) for job in jobs]
    woken = in_job.WAKE in os.environ  # then a person asked for all this before
    work = _sweep(workspace.root, on, settings, command)
    # what a record names as its command; the environment goes along with a job
    os.environ.setdefault(COMMAND, typed_command())
    try:
        check.check_path(workspace.root)
        if compute.dry_run:
            return _preview(work, cells)
        if not woken:
            check.require_possible(
                on, {cell.kind for cell in cells} | ({"light"} if on.wake else set())
            )
            check.require_writable(workspace.root)
            ledger.Ledger(workspace.root).bind_cluster(on.name, queue.limits())
            prepare()
        for job in todo:
            RunDir(workspace.root).job(job.key).write_spec(job)
        done = _advance(work, cells, woken)
    except queue.SlurmUnreachable as unreachable:
        raise ValueError(f"{unreachable}. Nothing was submitted; run this again later") from None
    return _say(done, todo, on, workspace.root)


def _advance(work: Sweep, cells: Sequence[PlannedJob], woken: bool) -> PlanningPass:
    """One pass; several where nobody would run it again when SLURM is slow or refuses."""
    submitted: dict[str, JobArray] = {}
    for pause in PAUSES_S if woken else ():
        try:
            done = sweep.advance(work, cells, attended=False)
        except (queue.SlurmUnreachable, ledger.PlannerBusy, executor.SubmissionRejected) as error:
            why = str(error)
        else:
            submitted |= done.submitted
            if done.wake or not done.error:
                return replace(done, submitted=submitted)
            why = done.error
        print(f"{why}; trying again in {pause:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)
    try:
        done = sweep.advance(work, cells, attended=not woken)
    except (queue.SlurmUnreachable, ledger.PlannerBusy, executor.SubmissionRejected) as error:
        if not submitted:
            raise
        return PlanningPass({}, submitted, error=f"no planning job was submitted: {error}")
    return replace(done, submitted=submitted | done.submitted)


def _sweep(root: Path, on: Profile, settings: MachineSettings, command: Command) -> Sweep:
    entry = "lewel_bench.harness.jobs.cluster_entry"
    compute = ("-m", entry, "{folder}", settings.model_dump_json())
    wake = ("-m", "lewel_bench.harness.cli", *command.argv())
    return Sweep(root, on, compute, wake, record=NAME, marks=CHECKPOINTS, busy=partial(_here, root))


def _here(root: Path, keys: Collection[str]) -> set[str]:
    """Which of `keys` a `run` without the cluster computes, or has taken on. A job of the cluster
    holds WORK, and may do so when its node is lost."""
    taken = RunDir(root).queued_keys()
    return {key for key in keys if key in taken or is_held(root / key / LOCK)}


def free(root: Path, todo: Sequence[Job]) -> None:
    """Raise ValueError where a cluster's jobs may be at work on some of `todo`."""
    maybe = survey.unfinished_keys(root)
    busy, unknown = [job for job in todo if job.key in maybe], ""
    if busy:
        try:
            living = survey.live_jobs(root)
            busy = [job for job in busy if job.key in living]
        except ledger.ForeignCluster as error:  # which says what to remove
            unknown = f" ({error})"
        except (queue.SlurmUnreachable, ValueError) as error:  # no SLURM here
            unknown = f" ({error}; remove {root / ledger.FOLDER} if nothing of it lives)"
    if busy:
        raise ValueError(
            f"{len(busy)} of these jobs are in a cluster's queue or running, the first is "
            f"{busy[0].name} ({busy[0].key}): wait, or end them with lewel-bench cancel{unknown}"
        )


def _cell(job: Job) -> PlannedJob:
    needs = dict.fromkeys(filter(None, (job.upstream, *job.needs)))
    return PlannedJob(job.key, kind(job), tuple(needs))


def kind(job: Job) -> str:
    """Which settings of a profile a job runs with."""
    if job.recipe:
        return "pretrain"
    assert job.protocol is not None
    if job.is_selection:
        return "light"
    return job.protocol.job_class


def _say(done: PlanningPass, todo: Sequence[Job], on: Profile, root: Path) -> int:
    names = {job.key: job.name for job in todo}
    for id, batch in done.submitted.items():
        cells = sum(map(len, batch.tasks))
        half = " with half the micro-batch" if batch.halvings else ""
        print(f"submitted {id}: {cells} {batch.kind} jobs in {len(batch.tasks)} tasks{half}")
    counts = Counter(state for state, _ in done.states.values())
    words = {"live": "in the queue or running", "submit": "submitted now", "held": "held back"}
    words["local"] = "computed by a run on one machine"
    print(", ".join(f"{n} {words.get(state, state)}" for state, n in counts.items()))
    if done.error:
        print(f"{done.error}. Run this again later", file=sys.stderr)
    if done.warning:
        print(f"warning: {done.warning}", file=sys.stderr)
    _warn_of_repeats(done, names)
    for key, why in done.stuck.items():
        print(f"stuck: {f'{names[key]} ({key})' if key in names else key}: {why}", file=sys.stderr)
    failed = {key: why for key, (state, why) in done.states.items() if state == "given_up"}
    for key, why in failed.items():
        print(f"failed: {names.get(key, key)} ({key}): {why}", file=sys.stderr)
    if failed:
        print(
            "These wait for you: mend the cause, then `lewel-bench retry` and run this again",
            file=sys.stderr,
        )
    if done.wake:
        print(f"job {done.wake} goes on from here; see lewel-bench status --cluster {on.name}")
    elif counts["live"] + counts["submit"] + counts["local"] and counts["waiting"] + counts["held"]:
        print("run this again when these have ended: the rest waits for them")
    return 1 if failed or done.error else 0


def _warn_of_repeats(done: PlanningPass, names: Mapping[str, str]) -> None:
    """Say which jobs were submitted again after a failure, and of the first what the log says."""
    again = {
        k: why for k, (state, why) in done.states.items() if state == "submit" and "; see " in why
    }
    if again:
        key, why = next(iter(again.items()))
        print(
            f"warning: {len(again)} jobs are submitted again after they failed, the first: "
            f"{names.get(key, key)} ({key}): {why}",
            file=sys.stderr,
        )


def _preview(work: Sweep, cells: Sequence[PlannedJob]) -> int:
    shown = sweep.preview(work, cells)
    counts = Counter(
        (cell.kind, shown.decision.states[cell.key][0].replace("submit", "ready")) for cell in cells
    )
    for (what, state), n in counts.items():
        print(f"{what}: {n} {state}")
    for batch in shown.decision.arrays:
        print(f"array of {len(batch.tasks)} {batch.kind} tasks, {sum(map(len, batch.tasks))} jobs")
    for shape, script in shown.scripts.items():
        print(f"\n# {shape}\n{script}")
    return 0


def doctor(workspace: Workspace, name: str) -> list[check.Check]:
    """The checks of a cluster, with one tiny job on it."""
    on = profile(workspace.site, name)
    data = [workspace.site.resolve(text) for text in workspace.site.data.values()]
    return list(check.doctor(on, workspace.root, data))


def live(
    root: Path, states: dict[str, JobState], asked: str | None, notes: list[str] | None = None
) -> dict[str, JobState]:
    """`states` with what SLURM says; to `notes` whether something will go on with the sweep. Where
    SLURM cannot be asked: ValueError when the user named a cluster that is not reachable from here,
    else a warning and what the ledger remembers."""
    if not (root / ledger.FOLDER).exists():
        return states
    if shutil.which("squeue") is None and not asked:
        print("warning: the jobs of a cluster run here; ask on its login node", file=sys.stderr)
        return states
    try:
        around = survey.survey(root)
    except (queue.SlurmUnreachable, ledger.ForeignCluster) as unreachable:
        print(f"warning: {unreachable}; what lives is not known", file=sys.stderr)
        maybe = survey.unfinished_keys(root)
        return {
            key: replace(state, state="queued", reason="submitted; SLURM cannot be asked now")
            if key in maybe and state.state == "missing"
            else state
            for key, state in states.items()
        }
    live = around.live
    merged = dict(states)
    for key, job in live.items():
        if key in states and states[key].state != "done":
            merged[key] = replace(states[key], state=job.state, reason=_reason(job, states[key]))
    idle = [k for k in states if k not in live and not (root / k / NAME).exists()]
    for key, verdict in survey.verdicts_on(root, idle, around.entries).items():
        now = merged[key]
        if now.state not in ("missing", "failed") or _failed_since(root / key):
            continue
        if not verdict.again:
            merged[key] = replace(now, state="failed", reason=verdict.reason)
        elif verdict.cancelled:
            merged[key] = replace(now, state="missing", reason="cancelled; run again to go on")
        elif now.state == "failed" or has_failed(verdict):
            why = now.reason if now.state == "failed" else verdict.reason
            again = f"{why}; the next run tries again"
            merged[key] = replace(now, state="missing", reason=again)
    if notes is not None:
        notes += _outlook(around, merged)
    return merged


def _outlook(around: survey.Survey, states: Mapping[str, JobState]) -> list[str]:
    """Whether something will submit what is missing, and why not."""
    notes = [f"partition {name}: {why}: jobs wait" for name, why in around.closed.items()]
    living = [waker for waker in around.planning_jobs if waker.is_alive]
    for waker in living:
        why = f" ({waker.reason})" if waker.reason else ""
        notes.append(
            f"planning job {waker.job} is {waker.state}{why}: it submits what becomes ready"
        )
    missing = sum(state.state == "missing" for state in states.values())
    if not missing or any(waker.state != "stuck" for waker in living):
        return notes
    last = next((waker for waker in around.planning_jobs if not waker.is_alive), None)
    why = f"; the last planning job, {last.job}, ended as {last.state}" if last else ""
    if last and last.log:
        why += f", see {last.log}" + (f" ({last.line})" if last.line else "")
    count = f"{missing} missing job{'s' * (missing != 1)}"
    notes.append(f"nothing will submit the {count} by itself{why}: run the same command again")
    return notes


def _failed_since(folder: Path) -> bool:
    """Whether a run without the cluster failed after the cluster's last attempt, whose own failure
    may be as much as a heartbeat younger than the attempt when both were killed."""
    last = max((tried.seen for tried in attempt.history(folder)), default=0.0)
    try:
        return bool(last) and (folder / FAILURE).stat().st_mtime > last + 2 * in_job.HEARTBEAT_S
    except FileNotFoundError:
        return False


def _reason(job: survey.LiveJob, before: JobState) -> str:
    warning = f"; {job.warning}" if job.warning else ""
    if job.state == "running":
        done = before.progress
        more = (str(done), done.left) if done else ()
        parts = filter(None, (f"job {job.job} on {job.nodes} for {job.elapsed}", *more))
        return ", ".join(parts) + warning
    position = f", position {job.position} of your pending tasks" if job.position else ""
    return f"job {job.job}{position}{job.reason and ': '}{job.reason}{warning}"


def cancel(root: Path, keys: Sequence[str], sure: bool) -> int:
    """`lewel-bench cancel`: asks, then ends the jobs of `keys`."""
    try:
        living = survey.live_jobs(root)
        wanted = [key for key in keys if key in living]
        if not wanted:
            print("nothing to cancel: no job of these is in the queue or running")
            return 0
        if not sure and not _agreed(f"cancel {len(wanted)} jobs? [y/N] "):
            print(f"not cancelled: {len(wanted)} jobs; add --yes to do it without asking")
            return 1
        ended = actions.cancel(root, wanted)
    except queue.SlurmUnreachable as unreachable:
        raise ValueError(f"{unreachable}. Nothing was cancelled") from None
    over = {key for keys in ended.values() for key in keys}
    print(f"cancelled {len(ended)} tasks that held {len(over.intersection(wanted))} jobs")
    if also := over.difference(wanted):
        print(f"with them, as they shared a task: {', '.join(sorted(also))}")
    if left := [key for key in wanted if key not in over]:
        print(f"{len(left)} jobs have ended, or their sbatch has not answered yet: see status")
    return 0


def _agreed(question: str) -> bool:
    """Whether a person says yes; where nobody can be asked, no."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def again(root: Path, keys: Sequence[str]) -> int:
    """`lewel-bench retry`: the next run tries failed jobs anew."""
    verdicts = survey.verdicts_on(root, keys)
    failed = [
        k for k, verdict in verdicts.items() if not verdict.again and not (root / k / NAME).exists()
    ]
    actions.retry(root, failed)
    for key in failed:
        (root / key / FAILURE).unlink(missing_ok=True)
    print(f"{len(failed)} failed jobs will be tried again by the next run")
    return 0


def logs(root: Path, keys: Iterable[str], asked: str, follow: bool) -> int:
    """`lewel-bench logs`: what the jobs of some keys printed."""
    paths = [path for key in keys for path in survey.log_paths(root, key)]
    if not paths:
        raise ValueError(
            f"no job of a cluster has written for {asked} under {root}: see lewel-bench status"
        )
    if follow:
        command = ["tail", "-n", "50", "-F", *map(str, paths)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
            assert tail.stdout
            for line in tail.stdout:  # through our stream: a log may hold control characters
                print(line.decode(errors="replace"), end="", flush=True)
        return tail.returncode
    for path in paths:
        print(f"==> {path}")
        with open_regular(path) as file:
            sys.stdout.write(file.read().decode(errors="replace"))
    return 0


def watch(show: Callable[[], int], every_s: float = 5.0) -> int:
    """Show again and again until Ctrl-C; each time one SLURM call, two where it shows no job of
    ours."""
    while True:
        if sys.stdout.isatty():
            terminal.unescaped(sys.stdout).write("\033[H\033[J")
        show()
        sys.stdout.flush()
        time.sleep(every_s)


def recipes(methods: Sequence[str], tables: Sequence[str], catalog: Catalog) -> set[str]:
    """The recipes of methods and tables. Raises ValueError for names that do not exist."""
    names = set(cells.recipe_names(methods, catalog))
    for table in cells.tables([text.removeprefix("table") for text in tables]):
        names |= {name for cell in table.cells() if (name := cells.recipe_name(*cell))}
    return names


def named(states: Mapping[str, JobState], text: str, extras: Mapping[str, Extra]) -> list[str]:
    """The keys that a key, or a cell such as table1:lewel_m:200:top1, stands for: of a cell its
    evaluations and the pre-trainings before them. The tables have the rows `beside`, by name, too.
    Raises ValueError for what there is not."""
    if ":" not in text:
        if text not in states:
            raise ValueError(unknown("key", text, states))
        return [text]

    def evaluated(extra: Extra, protocol: str) -> bool:
        pairs = ((state.recipe, state.protocol) for state in states.values())
        return (extra.name, protocol) in pairs

    def read(table_id: str) -> Table:
        return extended(load(table_id), list(extras.values()), evaluated)

    table_id, row_id, column_id = parse_cell(text, read)
    row, column = read(table_id).row(row_id), load(table_id).column(column_id)
    recipe = name if (name := row.family(column)) in extras else cells.recipe_name(row, column)
    protocols = ("", row.protocols.get(column.eval, ""))
    keys = [
        k
        for k, job_state in states.items()
        if job_state.recipe == recipe and job_state.protocol in protocols
    ]
    if recipe is None or not keys:
        raise ValueError(f"nothing that fills {text} was ever planned here: see lewel-bench status")
    return keys
