"""One planning pass, which submits the jobs that are ready.

A pass may run at any time, from any login node or inside a SLURM job, also concurrently: records on
disk are the truth, `squeue` knows what is queued or running, and the ledger connects the two.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lewel_bench.slurm import executor, ledger, plan, queue, snapshot
from lewel_bench.slurm.executor import SbatchOptions, SubmissionRejected
from lewel_bench.slurm.ledger import Ledger, Submission
from lewel_bench.slurm.plan import Decision, JobArray, PlannedJob
from lewel_bench.slurm.profile import Profile
from lewel_bench.slurm.queue import Limits, SlurmUnreachable
from lewel_bench.slurm.state import ClusterState, failing_log, judge_for, read_state

HELD_BY_USER = "JobHeldUser"  # of a planning job: a user wants no further passes for now
RECHECK_S = 600  # delay of the next pass if no task of a SLURM job can wake it


@dataclass(frozen=True)
class Sweep:
    """How the jobs of a run root are computed on a cluster.

    `command` are the arguments of the interpreter that compute a job; `{folder}` in them stands for
    its folder. The command writes `record` there, or tells by its exit code (in_job.CODES) why it
    did not. `wake` are the arguments that start the next planning pass. Files that match `marks` in
    a job's folder show progress, see `files.newest_match`. `package` is the code to copy for the
    jobs. `busy` returns those of some keys that are computed, or queued, outside the cluster.
    """

    root: Path
    profile: Profile
    command: tuple[str, ...]
    wake: tuple[str, ...] = ()
    package: Path = field(default_factory=executor.package_folder)
    record: str = "record.json"
    marks: str = "checkpoint-*"
    busy: Callable[[Collection[str]], Collection[str]] = lambda keys: ()


@dataclass(frozen=True)
class PlanningPass:
    """The result of a planning pass: states and reasons by key, the submitted job arrays, jobs that
    will never start, and errors."""

    states: dict[str, tuple[str, str]]
    submitted: dict[str, JobArray] = field(default_factory=dict)  # by SLURM job id
    stuck: dict[str, str] = field(default_factory=dict)  # reasons, by key or planning job
    wake: str = ""  # SLURM's id of the next planning job
    error: str = ""  # why something was not submitted
    warning: str = ""  # why the last planning job failed

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        return sum(name == state for name, _ in self.states.values())


def advance(sweep: Sweep, jobs: Sequence[PlannedJob], *, attended: bool = True) -> PlanningPass:
    """Submit the jobs that are ready, and return at once.

    Raises SlurmUnreachable if SLURM does not answer, SubmissionRejected if it rejects everything
    and no running job would make room, PlannerBusy if another planner holds the lock for too long,
    ForeignCluster if the run root belongs to another cluster. Nothing was submitted then.
    """
    books = Ledger(sweep.root)
    limits = queue.limits()
    with books.lock(ledger.LOCK_S if attended else ledger.WOKEN_LOCK_S):
        books.bind_cluster(sweep.profile.name, limits)
        cluster = read_state(books)
        done = keys_with_record(sweep.root, _needed_keys(jobs), sweep.record)
        decision = _decide(sweep, books, cluster, jobs, done, limits, attended)
        code = str(snapshot.take(sweep.package, books.folder / "code")) if decision.arrays else ""
        submitted, rejection = _send_all(sweep, books, decision, code)
        ids = {key: entry.task_id(i) for key, (entry, i, _) in cluster.live.items() if entry.id}
        for id, array in submitted.items():
            for index, keys in enumerate(array.tasks):
                task = f"{id}_{index}" if len(array.tasks) > 1 else id
                ids.update(dict.fromkeys(keys, task))
        wanted = {job.key for job in jobs}
        unfinished = {key: id for key, id in ids.items() if key in wanted and key not in done}
        stuck = {key: t.stuck for key, (_, _, t) in cluster.live.items() if t and t.stuck}
        runnable = {key: id for key, id in unfinished.items() if key not in stuck}
        error = f"not all jobs were submitted: {rejection}" if rejection else ""
        states = {
            key: ("held", str(rejection))
            if state == "submit" and key not in ids
            else (state, reason)
            for key, (state, reason) in decision.states.items()
        }
        if any(state == "held" for state, _ in states.values()):
            runnable |= _other_tasks(cluster)
        if rejection and not runnable:
            raise rejection
        silent = {key for key, (_, _, task) in cluster.live.items() if task is None}
        states |= dict.fromkeys(silent & wanted - done, ("held", "sbatch has not answered yet"))
        wake = ""
        try:
            wake = _submit_planning_job(
                sweep, books, cluster, jobs, states, runnable, bool(submitted)
            )
        except (SlurmUnreachable, SubmissionRejected) as failure:
            error = error or f"no planning job was submitted: {failure}"
    stuck = {key: why for key, why in stuck.items() if key in wanted}
    pending = _pending_planning_jobs(sweep, cluster)
    more = f"; job {wake} replaces it" if wake and wake not in {t.id for t in pending} else ""
    stuck |= {f"planning job {t.id}": t.stuck + more for t in pending if t.stuck}
    warning = _failed_planning_message(sweep, books, cluster)
    return PlanningPass(states, submitted, stuck, wake, error, warning)


def _needed_keys(jobs: Sequence[PlannedJob]) -> set[str]:
    """The keys of jobs and of the records that they need, some of which have no job here."""
    return {key for job in jobs for key in (job.key, *job.needs)}


def keys_with_record(root: Path, keys: Collection[str], record: str) -> set[str]:
    """Those of `keys` that have a record."""
    return {key for key in keys if (root / key / record).exists()}


def _decide(
    sweep: Sweep,
    books: Ledger,
    cluster: ClusterState,
    jobs: Sequence[PlannedJob],
    done: Collection[str],
    limits: Limits,
    attended: bool,
) -> Decision:
    profile, judge = sweep.profile, judge_for(books, cluster.entries)
    open_ = {job.key for job in jobs} - cluster.live.keys() - set(done)
    occupied = sum(task.is_alive for task in _own_tasks(cluster))
    return plan.plan(
        jobs,
        done,
        cluster.live.keys(),
        lambda key: judge(key, sweep.marks, profile.max_attempts),
        pack={name: resources.pack for name, resources in sweep.profile.kinds.items()},
        max_array=limits.max_array,
        room=min(sweep.profile.max_queued, limits.max_jobs - 1) - occupied,
        busy=sweep.busy(open_),
        attended=attended,
    )


def _send_all(
    sweep: Sweep, books: Ledger, decision: Decision, code: str
) -> tuple[dict[str, JobArray], SubmissionRejected | None]:
    """The submitted arrays by job id, and the first rejection, which does not stop the others."""
    submitted: dict[str, JobArray] = {}
    rejection = None
    for array in decision.arrays:
        try:
            submitted[_send(sweep, books, array, code)] = array
        except SubmissionRejected as error:
            rejection = rejection or error
    return submitted, rejection


def _send(sweep: Sweep, books: Ledger, array: JobArray, code: str) -> str:
    submission = books.record_intent(
        kind=array.kind,
        tasks=array.tasks,
        halvings=array.halvings,
        command=sweep.command,
        code=code,
        record=sweep.record,
        marks=sweep.marks,
        max_attempts=sweep.profile.max_attempts,
        requeue=sweep.profile.requeue,
    )
    return _submit(sweep, books, submission, SbatchOptions(sweep.profile.kinds[array.kind]))


def _submit(sweep: Sweep, books: Ledger, submission: Submission, options: SbatchOptions) -> str:
    """Submit and record the job id; returns it."""
    try:
        id = executor.submit(sweep.profile, books, submission, options)
    except SubmissionRejected:
        id = _accepted_id(books, submission)
        if not id:
            raise
    books.record_submitted(submission.uid, id)
    return id


def _accepted_id(books: Ledger, submission: Submission) -> str:
    """The id of a submission that SLURM accepted although sbatch reported an error. Otherwise
    records that it was never submitted (rule 2): a pass on another host could not tell it from an
    sbatch that still waits for an answer."""
    try:
        named = [task.id for task in queue.tasks() if task.name == submission.name]
    except SlurmUnreachable:
        return ""
    if not named:
        books.record_submitted(submission.uid, None)
        return ""
    id = named[0].partition("_")[0]
    executor.write_missing_pickles(books, submission, id)
    return id


def _other_tasks(cluster: ClusterState) -> dict[str, str]:
    """The tasks of other sweeps that fill the queue, and make room when they end."""
    wakes = f"{ledger.PREFIX}wake-"
    tasks = [t for t in _own_tasks(cluster) if t.is_alive and not t.stuck]
    return {t.id: t.id for t in tasks if not t.name.startswith(wakes)}


def _own_tasks(cluster: ClusterState) -> list[queue.QueuedTask]:
    """The tasks of lewel-bench that this user has submitted."""
    return [t for t in cluster.tasks if t.is_own and t.name.startswith(ledger.PREFIX)]


def _pending_planning_jobs(sweep: Sweep, cluster: ClusterState) -> list[queue.QueuedTask]:
    """The planning jobs of this command that have not started."""
    prefix = f"{ledger.PREFIX}wake-{_tag(sweep)}-"
    return [t for t in cluster.tasks if t.name.startswith(prefix) and t.state == "PENDING"]


def _failed_planning_message(sweep: Sweep, books: Ledger, cluster: ClusterState) -> str:
    """How the last planning job of this command failed; empty if it did not."""
    own = [e for e in cluster.entries if e.id and sweep.wake and e.submission.wakes == _tag(sweep)]
    if not own or own[-1].ended.get(0) != "FAILED":
        return ""
    log, line = failing_log(books, own[-1], 0)
    return f"planning job {own[-1].id} failed; see {log} ({line})" if log else ""


def _tag(sweep: Sweep) -> str:
    return hashlib.sha256("\0".join(sweep.wake).encode()).hexdigest()[:8]


def _submit_planning_job(
    sweep: Sweep,
    books: Ledger,
    cluster: ClusterState,
    jobs: Sequence[PlannedJob],
    states: Mapping[str, tuple[str, str]],
    ids: Mapping[str, str],
    changed: bool,
) -> str:
    """Submit the job that runs the next pass once a task has ended (rule 10); losing it is
    harmless. Returns its id, or that of the planning job that is already pending."""
    if not sweep.wake or not sweep.profile.wake:
        return ""
    pending = _pending_planning_jobs(sweep, cluster)
    going = [t for t in pending if not t.stuck or t.reason == HELD_BY_USER]
    changed = changed and not any(t.reason == HELD_BY_USER for t in going)
    dependency = plan.wake_dependency(jobs, states, ids)
    later = not dependency and any(state in ("held", "local") for state, _ in states.values())
    if not (dependency or later) or (going and not changed):
        return going[0].id if going else ""
    submission = books.record_intent(
        kind="light",
        tasks=((),),
        command=sweep.wake,
        code=str(snapshot.take(sweep.package, books.folder / "code")),
        requeue=True,
        wakes=_tag(sweep),
        profile=sweep.profile.model_dump(mode="json"),
    )
    light = sweep.profile.kinds["light"]
    options = SbatchOptions(light, dependency, RECHECK_S if later else sweep.profile.wake_delay_s)
    id = _submit(sweep, books, submission, options)
    if pending:
        with suppress(SlurmUnreachable):  # a second planning job is harmless
            queue.cancel([t.id for t in pending if t.is_own])
    return id


@dataclass(frozen=True)
class Preview:
    """What a pass would submit: the decision, and the sbatch script of each kind of job."""

    decision: Decision
    scripts: dict[str, str]


def preview(sweep: Sweep, jobs: Sequence[PlannedJob]) -> Preview:
    """The next pass, without submitting or writing anything. Raises SlurmUnreachable, and
    ForeignCluster as `advance` does."""
    books = Ledger(sweep.root)
    limits = queue.limits()
    books.check_cluster(limits)
    cluster = read_state(books, write=False)
    done = keys_with_record(sweep.root, _needed_keys(jobs), sweep.record)
    decision = _decide(sweep, books, cluster, jobs, done, limits, True)
    scripts: dict[str, str] = {}
    for array in decision.arrays:
        shape = array.kind + (" with half the micro-batch" if array.halvings else "")
        submission = Submission("UID", array.kind, array.tasks, array.halvings, sweep.command)
        submission = replace(
            submission, code=str(books.folder / "code" / "HASH"), requeue=sweep.profile.requeue
        )
        if shape not in scripts:
            options = SbatchOptions(sweep.profile.kinds[array.kind])
            scripts[shape] = executor.script(sweep.profile, books, submission, options)
    return Preview(decision, scripts)
