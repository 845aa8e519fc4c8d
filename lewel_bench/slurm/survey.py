"""The state of a run root's jobs on its cluster: what is queued or running, verdicts, logs."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lewel_bench.slurm import queue, retry
from lewel_bench.slurm.attempt import history
from lewel_bench.slurm.ledger import Ledger, LedgerEntry, Submission
from lewel_bench.slurm.queue import SlurmUnreachable
from lewel_bench.slurm.retry import Verdict
from lewel_bench.slurm.state import ClusterState, failing_log, judge_for, read_state


@dataclass(frozen=True)
class LiveJob:
    """A job in SLURM's queue: `state` is running, queued or stuck, `job` the id of its SLURM task,
    `position` its position among this user's pending tasks (0: not pending)."""

    key: str
    state: str
    job: str
    reason: str = ""
    position: int = 0
    elapsed: str = ""
    nodes: str = ""
    warning: str = ""  # that its allocations are too short


@dataclass(frozen=True)
class PlanningJob:
    """The newest planning job of a sweep: its `state` in the queue or its final state, and if it
    failed, its `log` with the last `line`."""

    job: str
    state: str
    reason: str = ""
    log: Path | None = None
    line: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether it is in the queue or running."""
        return self.state in ("running", "queued", "stuck")


@dataclass(frozen=True)
class Survey:
    """The queued and running jobs by key; the newest planning job of each sweep, newest first; and
    for each partition with pending jobs that cannot start any job now, the reason."""

    live: dict[str, LiveJob]
    planning_jobs: list[PlanningJob]
    closed: dict[str, str]
    entries: list[LedgerEntry]  # of the ledger, with tasks that ended since the last pass


def live_jobs(root: Path) -> dict[str, LiveJob]:
    """The queued and running jobs of a run root, by key; writes nothing.

    Calls SLURM once, and again if the queue shows no job of the ledger or lacks jobs of another
    user. Raises SlurmUnreachable, and ForeignCluster if the run root belongs to another cluster or
    SLURM hides the jobs of other users.
    """
    return _live_jobs(root, _checked_state(Ledger(root)))


def survey(root: Path) -> Survey:
    """The state of a run root on its cluster, with one SLURM call more than `live_jobs` if jobs are
    pending. Raises as `live_jobs`."""
    books = Ledger(root)
    cluster = _checked_state(books)
    own_names = {entry.submission.name for entry in cluster.entries}
    waiting = {t.partition for t in cluster.tasks if t.name in own_names and t.state == "PENDING"}
    partitions = {name for names in waiting for name in names.split(",") if name}
    closed = {}
    if partitions:
        with suppress(SlurmUnreachable, ValueError):  # only an explanation
            closed = queue.closed_partitions(partitions)
    return Survey(
        _live_jobs(root, cluster), _planning_jobs(books, cluster), closed, cluster.entries
    )


def _checked_state(books: Ledger) -> ClusterState:
    cluster = read_state(books, write=False)
    own_names = {entry.submission.name for entry in cluster.entries}
    if cluster.hidden or own_names.isdisjoint(task.name for task in cluster.tasks):
        books.check_cluster(queue.limits())
    return cluster


def _planning_jobs(books: Ledger, cluster: ClusterState) -> list[PlanningJob]:
    newest = {e.submission.wakes: e for e in cluster.entries if e.submission.wakes and not e.void}
    tasks = {task.name: task for task in cluster.tasks}
    planning_jobs = []
    for entry in sorted(newest.values(), key=lambda e: -e.submission.time):
        task = tasks.get(entry.submission.name)
        if task and task.is_alive:
            planning_jobs.append(PlanningJob(task.id, _state(task), _reason(task)))
        elif entry.id is not None:
            ended = entry.ended.get(0, "UNKNOWN")
            log, line = None, ""
            if ended not in ("COMPLETED", "CANCELLED"):
                log, line = failing_log(books, entry, 0)
            planning_jobs.append(PlanningJob(entry.id, ended, "", log, line))
    return planning_jobs


def _state(task: queue.QueuedTask) -> str:
    return "stuck" if task.stuck else "queued" if task.state == "PENDING" else "running"


def _reason(task: queue.QueuedTask) -> str:
    return task.stuck or ("" if task.reason in ("None", "") else task.reason)


def _live_jobs(root: Path, cluster: ClusterState) -> dict[str, LiveJob]:
    pending = sorted(
        (t for t in cluster.tasks if t.is_own and t.state == "PENDING"), key=lambda t: -t.priority
    )
    positions = {task.id: position for position, task in enumerate(pending, 1)}
    jobs = {}
    for key, (entry, index, task) in cluster.live.items():
        if task is None:
            jobs[key] = LiveJob(key, "queued", "", "sbatch has not answered yet")
            continue
        state = _state(task)
        pack = entry.submission.tasks[index]
        if state == "running" and len(pack) > 1 and _has_not_begun(root, key, entry.submission):
            state = "queued"
        jobs[key] = LiveJob(
            key,
            state,
            task.id,
            _reason(task),
            positions.get(task.id, 0),
            task.elapsed,
            task.nodes,
            _short_allocations_warning(root / key, entry.submission.max_attempts),
        )
    return jobs


def _short_allocations_warning(folder: Path, max_attempts: int) -> str:
    """The warning about a job whose last allocations were too short; empty for the first few."""
    short = retry.short_allocations(retry.since_retry(history(folder)))
    if len(short) < min(retry.WARN_AFTER, max_attempts):
        return ""
    return (
        f"{retry.short_allocations_message(short)}; after {max_attempts} the job counts as failed"
    )


def _has_not_begun(root: Path, key: str, submission: Submission) -> bool:
    """Whether a running pack has not started this job of it yet."""
    return not any(attempt.uid == submission.uid for attempt in history(root / key))


def verdicts_on(
    root: Path, keys: Collection[str], entries: Sequence[LedgerEntry] | None = None
) -> dict[str, Verdict]:
    """The verdict on each of `keys` that was tried, by the settings of its last submission. The
    keys have no record and are not in the queue. `entries` are those of a survey (default: as in
    the ledger)."""
    books = Ledger(root)
    entries = books.entries() if entries is None else entries
    judge = judge_for(books, entries)
    last = {key: e.submission for e in entries for pack in e.submission.tasks for key in pack}
    verdicts = {}
    for key in keys:
        submission = last.get(key, Submission("", "", ()))  # its file may be damaged
        if verdict := judge(key, submission.marks, submission.max_attempts):
            verdicts[key] = verdict
    return verdicts


def log_paths(root: Path, key: str) -> list[Path]:
    """The log files of every SLURM task that ran a job, newest last."""
    books = Ledger(root)
    paths: list[Path] = []
    for entry in books.entries():
        for index, keys in enumerate(entry.submission.tasks):
            if key in keys and entry.id:
                name = entry.task_id(index)
                paths += sorted(books.logs(entry.submission.uid).glob(f"{name}_*_log.*"))
    return paths


def unfinished_keys(root: Path) -> Collection[str]:
    """The keys that may be queued or running by the ledger alone, without a SLURM call."""
    return {
        key
        for entry in Ledger(root).entries()
        if not entry.is_over
        for index, keys in enumerate(entry.submission.tasks)
        if index not in entry.ended
        for key in keys
    }
