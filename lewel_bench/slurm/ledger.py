"""The record of all submissions, written before each sbatch: the next planner can recover from one
that was killed.

    .slurm/cluster.json                    the cluster that this run root belongs to
    .slurm/lock                            held while planning
    .slurm/submissions/UID.intent.json     before sbatch; UID is part of the job name
    .slurm/submissions/UID.submitted.json  after sbatch: the job id, or null if it submitted nothing
    .slurm/submissions/UID.ended.json      how tasks ended, as far as a planner has seen
    .slurm/logs/UID/                       submitit's folder, one for every submission
    .slurm/code/HASH/                      the code that jobs run

Job ids do not identify submissions: a controller that crashed assigns the same id again.
"""

import os
import pwd
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lewel_bench.files import LEDGER, Held, Lock, create_json, read_json, write_json
from lewel_bench.slurm.queue import Limits, QueuedTask

PREFIX = "lewel-"  # of job names
LOCK_S = 120.0
WOKEN_LOCK_S = 30.0  # of a planning job, which tries several times before its time limit
ELSEWHERE_S = 300.0  # how long an sbatch on another host may wait for the controller


class PlannerBusy(ValueError):
    """Another planner holds the lock of the run root."""


class ForeignCluster(ValueError):
    """The jobs of the run root belong to another cluster, or cannot be seen from this one."""


@dataclass(frozen=True)
class Submission:
    """One sbatch: `tasks[i]` are the keys that array task i computes, one after another."""

    uid: str
    kind: str
    tasks: tuple[tuple[str, ...], ...]
    halvings: int = 0  # of the micro-batch, after running out of memory
    command: tuple[str, ...] = ()  # after the interpreter; {folder} stands for a key's folder
    code: str = ""
    record: str = "record.json"
    marks: str = "checkpoint-*"
    max_attempts: int = 5
    requeue: bool = True
    wakes: str = ""  # of a planning job: the tag of its sweep
    profile: Mapping[str, Any] = field(default_factory=dict)  # of the cluster, for a planning job
    host: str = ""
    user: int = -1  # who submitted it; -1: unknown
    time: float = 0.0

    @property
    def name(self) -> str:
        """The job name, which identifies the submission."""
        return f"{PREFIX}wake-{self.wakes}-{self.uid}" if self.wakes else f"{PREFIX}{self.uid}"


@dataclass
class LedgerEntry:
    """A submission and its outcome: `id` is None until sbatch has answered, `void` is true if it
    never reached SLURM, `ended` are the final states of tasks by index."""

    submission: Submission
    id: str | None = None
    void: bool = False
    ended: dict[int, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether all its tasks have ended."""
        return self.void or len(self.ended) == len(self.submission.tasks)

    def task_id(self, index: int) -> str:
        """The id of one task, as SLURM writes it."""
        return f"{self.id}_{index}" if len(self.submission.tasks) > 1 else str(self.id)


class Ledger:
    """The ledger of one run root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / LEDGER
        self.submissions = self.folder / "submissions"
        self._cluster = self.folder / "cluster.json"

    def logs(self, uid: str) -> Path:
        """The folder of a submission's logs."""
        return self.folder / "logs" / uid

    @contextmanager
    def lock(self, timeout_s: float = LOCK_S) -> Iterator[None]:
        """Exclude other planners; the kernel frees the lock when its process ends (rule 12). Raises
        PlannerBusy if another planner holds it for longer than `timeout_s`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.folder / "lock", timeout_s)
        try:
            lock.acquire()
        except Held:
            raise PlannerBusy(
                f"another run has held {self.folder / 'lock'} for {timeout_s:g} s while planning: "
                "wait for it, or stop it"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def bind_cluster(self, profile: str, limits: Limits) -> None:
        """Record the cluster on first use. Raises ForeignCluster as `check_cluster`."""
        self.check_cluster(limits)
        create_json(self._cluster, {"profile": profile, "cluster": limits.cluster})

    def check_cluster(self, limits: Limits) -> None:
        """Raise ForeignCluster if the jobs of this run root belong to another or an unknown
        cluster, or to a user whose jobs SLURM hides."""
        cluster = read_json(self._cluster)
        if cluster is None and self._cluster.exists():
            raise ForeignCluster(
                f"{self._cluster} is damaged: remove it if no job of this run root is in a queue"
            )
        if cluster is not None and cluster.get("cluster") != limits.cluster:
            raise ForeignCluster(
                f"the jobs of {self.root} were submitted to the cluster {cluster.get('cluster')!r} "
                f"(profile {cluster.get('profile')!r}), but this is {limits.cluster!r}: choose "
                f"another --root, or cancel them on that cluster and remove {self.folder}"
            )
        if limits.private and os.getuid():  # root sees every job
            hidden = {e.submission.user for e in self.entries() if not e.is_over} - {
                -1,
                os.getuid(),
            }
            if hidden:
                raise ForeignCluster(
                    f"user {user_name(min(hidden))} has submitted jobs of {self.root}, and this "
                    "cluster hides the jobs of other users (PrivateData=jobs), so their states are "
                    "unknown: wait until that user has run again after they ended, or choose "
                    "another --root"
                )

    def record_intent(self, **fields: Any) -> Submission:
        """Record a submission before its sbatch."""
        submission = Submission(
            uid=f"{time.strftime('%y%m%d%H%M%S')}{secrets.token_hex(4)}",
            host=os.uname().nodename,
            user=os.getuid(),
            time=time.time(),
            **fields,
        )
        create_json(self.intent_path(submission.uid), asdict(submission))
        return submission

    def intent_path(self, uid: str) -> Path:
        """The file of a submission."""
        return self._path(uid, "intent")

    def record_submitted(self, uid: str, id: str | None) -> None:
        """Record the job id; None if nothing was submitted."""
        create_json(self._path(uid, "submitted"), {"id": id})

    def record_ended(self, entry: LedgerEntry) -> None:
        """Record how tasks of a submission ended."""
        write_json(self._path(entry.submission.uid, "ended"), {"tasks": entry.ended})

    def submission(self, uid: str) -> Submission:
        """The submission `uid`. Raises ValueError if its file is missing or damaged."""
        submission = _submission(read_json(self._path(uid, "intent")))
        if submission is None:
            raise ValueError(f"{self._path(uid, 'intent')} is missing or damaged")
        return submission

    def entries(self) -> list[LedgerEntry]:
        """Every submission, oldest first. Damaged files are ignored, which may cost a second
        computation but no wrong result."""
        try:
            names = sorted(name for name in os.listdir(self.submissions) if name[0] != ".")
        except FileNotFoundError:
            return []
        existing = set(names)
        entries = []
        for name in names:
            uid, _, what = name.partition(".")
            content = read_json(self.submissions / name) if what == "intent.json" else None
            submission = _submission(content)
            if submission is None:
                continue
            entry = LedgerEntry(submission)
            if f"{uid}.submitted.json" in existing:
                answer = read_json(self._path(uid, "submitted")) or {}
                entry.id = answer.get("id")
                entry.void = entry.id is None
            if f"{uid}.ended.json" in existing:
                ended = (read_json(self._path(uid, "ended")) or {}).get("tasks", {})
                entry.ended = {int(index): state for index, state in ended.items()}
            entries.append(entry)
        return sorted(entries, key=lambda entry: entry.submission.time)  # names sort by the second

    def _path(self, uid: str, what: str) -> Path:
        return self.submissions / f"{uid}.{what}.json"


def _submission(content: Mapping[str, Any] | None) -> Submission | None:
    """The submission in an intent file; None if it is missing or damaged."""
    fields = {k: v for k, v in (content or {}).items() if k in Submission.__dataclass_fields__}
    try:
        fields["tasks"] = tuple(tuple(keys) for keys in fields["tasks"])
        fields["command"] = tuple(fields.get("command", ()))
        return Submission(**fields)
    except (KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Reconciliation:
    """The ledger compared with the queue: the queued and running jobs by key; entries with tasks
    that ended since the last pass; submissions whose planner was killed, with their SLURM id, or
    None if they were never submitted."""

    live: dict[str, tuple[LedgerEntry, int, QueuedTask | None]]
    ended: list[LedgerEntry]
    adopted: list[tuple[LedgerEntry, str | None]]


def reconcile(
    entries: Sequence[LedgerEntry], queue: Sequence[QueuedTask], orphans: Mapping[str, bool]
) -> Reconciliation:
    """Compare the ledger with a queue that was read after it; pure.

    `orphans` tells of each submission without an answer whether its sbatch may still be running. It
    must have been determined before the queue was read.
    """
    listed: dict[tuple[str, int], QueuedTask] = {}
    ids: dict[str, str] = {}
    for task in queue:
        if not task.name.startswith(PREFIX):
            continue
        known = listed.get((task.name, task.index))
        if known is None or not known.is_alive:
            listed[task.name, task.index] = task
        ids[task.name] = task.id.partition("_")[0]
    live: dict[str, tuple[LedgerEntry, int, QueuedTask | None]] = {}
    changed, adopted = [], []
    for entry in entries:
        name = entry.submission.name
        if entry.is_over and name not in ids:
            continue
        if entry.id is None:
            entry.id = ids.get(name)
            if entry.id is None and orphans.get(entry.submission.uid, False):
                for index, keys in enumerate(entry.submission.tasks):
                    live.update(dict.fromkeys(keys, (entry, index, None)))
                continue
            entry.void = entry.id is None
            adopted.append((entry, entry.id))
            if entry.void:
                continue
        before = dict(entry.ended)
        for index, keys in enumerate(entry.submission.tasks):
            listing = listed.get((name, index))
            if listing and listing.is_alive:
                entry.ended.pop(index, None)  # SLURM has requeued it
                live.update(dict.fromkeys(keys, (entry, index, listing)))
            elif listing:
                entry.ended[index] = listing.state
            else:  # the controller does not know it: lost, or ended long ago
                entry.ended.setdefault(index, "UNKNOWN")
        if entry.ended != before:
            changed.append(entry)
    return Reconciliation(live, changed, adopted)


def user_name(user: int) -> str:
    """The name of a user, or the user id if it has no name."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def user_ids(entries: Sequence[LedgerEntry]) -> set[int]:
    """The users with jobs in the ledger. The queue must be read for all of them: otherwise the
    running jobs of one user look lost to another."""
    return {entry.submission.user for entry in entries if not entry.void} - {-1}


def may_be_submitting(submission: Submission, now: float) -> bool:
    """Whether the sbatch of a submission without an answer may still be running.

    The caller holds the lock, so the planner on another host has ended unless locks do not work
    there; its sbatch may wait for the controller for some time.
    """
    if submission.host != os.uname().nodename:
        return now - submission.time < ELSEWHERE_S
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().split(b"\0")
        except OSError:
            continue
        is_sbatch = arguments[0].endswith(b"sbatch")
        if is_sbatch and any(submission.uid.encode() in argument for argument in arguments):
            return True
    return False
