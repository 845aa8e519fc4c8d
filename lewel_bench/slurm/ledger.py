"""What was submitted, written before it is: a planner that dies leaves what the next one needs.

    .slurm/cluster.json                    the cluster that this run root belongs to
    .slurm/lock                            held while planning
    .slurm/submissions/UID.intent.json     before sbatch; UID is in the job's name
    .slurm/submissions/UID.submitted.json  after it: the job id, or null when it never came to be
    .slurm/submissions/UID.ended.json      how tasks ended, as far as anybody saw
    .slurm/logs/UID/                       submitit's folder, a new one for every submission
    .slurm/code/HASH/                      the code that jobs run

Job ids are no keys: a controller that crashed hands the same id out again.
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

from lewel_bench.files import Held, Lock, create_json, read_json, write_json
from lewel_bench.slurm.queue import Limits, Task

FOLDER = ".slurm"
PREFIX = "lewel-"  # of job names
LOCK_S = 120.0
WOKEN_LOCK_S = 30.0  # of a planning job, which tries several times before its time limit
ELSEWHERE_S = 300.0  # how long an sbatch on another machine may still be waiting to be let in


class Busy(ValueError):
    """Another planner holds the lock of the run root."""


class Foreign(ValueError):
    """The jobs of the run root are another cluster's, or nobody knows whose."""


@dataclass(frozen=True)
class Submission:
    """One sbatch: `tasks[i]` are the keys that task i computes, one after another."""

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
    wakes: str = ""  # what a waking job plans anew
    profile: Mapping[str, Any] = field(default_factory=dict)  # of the cluster, for a waking job
    host: str = ""
    user: int = -1  # who submitted it; -1: a ledger of before, of one user
    time: float = 0.0

    @property
    def name(self) -> str:
        """The job name, by which a submission is found."""
        return f"{PREFIX}wake-{self.wakes}-{self.uid}" if self.wakes else f"{PREFIX}{self.uid}"


@dataclass
class Entry:
    """A submission and what became of it: `id` is None until sbatch has answered, and `void` when
    it never reached SLURM."""

    submission: Submission
    id: str | None = None
    void: bool = False
    ended: dict[int, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether nothing of it can be alive."""
        return self.void or len(self.ended) == len(self.submission.tasks)

    def task_id(self, index: int) -> str:
        """The id of one task, as SLURM writes it."""
        return f"{self.id}_{index}" if len(self.submission.tasks) > 1 else str(self.id)


class Ledger:
    """The ledger of one run root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / FOLDER
        self.submissions = self.folder / "submissions"
        self._cluster = self.folder / "cluster.json"

    def logs(self, uid: str) -> Path:
        """The folder of a submission's logs."""
        return self.folder / "logs" / uid

    @contextmanager
    def lock(self, timeout_s: float = LOCK_S) -> Iterator[None]:
        """Held by the one planner that works; the kernel frees it when its holder dies (rule 12).
        Raises Busy when another holds it for too long."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.folder / "lock", timeout_s)
        try:
            lock.acquire()
        except Held:
            raise Busy(
                f"another run has been planning here for {timeout_s:g} s (it holds "
                f"{self.folder / 'lock'}): wait for it, or end it"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def belongs(self, profile: str, limits: Limits) -> None:
        """Note the cluster on first use. Raises Foreign as `check` does."""
        self.check(limits)
        create_json(self._cluster, {"profile": profile, "cluster": limits.cluster})

    def check(self, limits: Limits) -> None:
        """Raise Foreign when the jobs here are another cluster's, or nobody knows whose, or another
        user's whom SLURM does not show to this one."""
        there = read_json(self._cluster)
        if there is None and self._cluster.exists():
            raise Foreign(f"{self._cluster} is damaged: remove it if no job of this run root lives")
        if there is not None and there.get("cluster") != limits.cluster:
            raise Foreign(
                f"the jobs of {self.root} were submitted to the cluster {there.get('cluster')!r} "
                f"(profile {there.get('profile')!r}), this is {limits.cluster!r}: choose another "
                f"--root, or end them there and remove {self.folder}"
            )
        if limits.private and os.getuid():  # root sees every job
            hidden = {e.submission.user for e in self.entries() if not e.over} - {-1, os.getuid()}
            if hidden:
                raise Foreign(
                    f"user {user_name(min(hidden))} has submitted jobs of {self.root}, and this "
                    "cluster hides the jobs of other users (PrivateData=jobs), so whether they are "
                    "alive is unknown: wait until they have ended and that user has run again, or "
                    "choose another --root"
                )

    def intend(self, **fields: Any) -> Submission:
        """Write down what is about to be submitted."""
        submission = Submission(
            uid=f"{time.strftime('%y%m%d%H%M%S')}{secrets.token_hex(4)}",
            host=os.uname().nodename,
            user=os.getuid(),
            time=time.time(),
            **fields,
        )
        create_json(self.intent(submission.uid), asdict(submission))
        return submission

    def intent(self, uid: str) -> Path:
        """The file of a submission."""
        return self._path(uid, "intent")

    def submitted(self, uid: str, id: str | None) -> None:
        """Write down the job id; None when the submission never came to be."""
        create_json(self._path(uid, "submitted"), {"id": id})

    def ended(self, entry: Entry) -> None:
        """Write down how tasks of a submission ended."""
        write_json(self._path(entry.submission.uid, "ended"), {"tasks": entry.ended})

    def one(self, uid: str) -> Submission:
        """The submission `uid`. Raises ValueError when there is none."""
        found = _submission(read_json(self._path(uid, "intent")))
        if found is None:
            raise ValueError(f"{self._path(uid, 'intent')} is missing or damaged")
        return found

    def entries(self) -> list[Entry]:
        """Every submission, oldest first; a damaged file is as if it were not there, which costs a
        second computation and no wrong result."""
        try:
            names = sorted(name for name in os.listdir(self.submissions) if name[0] != ".")
        except FileNotFoundError:
            return []
        there = set(names)
        found = []
        for name in names:
            uid, _, what = name.partition(".")
            content = read_json(self.submissions / name) if what == "intent.json" else None
            submission = _submission(content)
            if submission is None:
                continue
            entry = Entry(submission)
            if f"{uid}.submitted.json" in there:
                answer = read_json(self._path(uid, "submitted")) or {}
                entry.id = answer.get("id")
                entry.void = entry.id is None
            if f"{uid}.ended.json" in there:
                ended = (read_json(self._path(uid, "ended")) or {}).get("tasks", {})
                entry.ended = {int(index): state for index, state in ended.items()}
            found.append(entry)
        return sorted(found, key=lambda entry: entry.submission.time)  # names: by the second

    def _path(self, uid: str, what: str) -> Path:
        return self.submissions / f"{uid}.{what}.json"


def _submission(content: Mapping[str, Any] | None) -> Submission | None:
    """The submission of an intent; None where that is missing or damaged."""
    fields = {k: v for k, v in (content or {}).items() if k in Submission.__dataclass_fields__}
    try:
        fields["tasks"] = tuple(tuple(keys) for keys in fields["tasks"])
        fields["command"] = tuple(fields.get("command", ()))
        return Submission(**fields)
    except (KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Reconciled:
    """The ledger beside the queue: what lives, by key; what has just been seen to end; submissions
    whose planner died, with the id that SLURM gave them, or None."""

    live: dict[str, tuple[Entry, int, Task | None]]
    ended: list[Entry]
    adopted: list[tuple[Entry, str | None]]


def reconcile(
    entries: Sequence[Entry], queue: Sequence[Task], orphans: Mapping[str, bool]
) -> Reconciled:
    """Compare the ledger with a queue that was read after it; pure.

    `orphans` says of a submission without an answer whether its planner or its sbatch may still be
    at work; the queue must have been read after that was looked up.
    """
    listed: dict[tuple[str, int], Task] = {}
    ids: dict[str, str] = {}
    for task in queue:
        if not task.name.startswith(PREFIX):
            continue
        known = listed.get((task.name, task.index))
        if known is None or not known.lives:
            listed[task.name, task.index] = task
        ids[task.name] = task.id.partition("_")[0]
    live: dict[str, tuple[Entry, int, Task | None]] = {}
    changed, adopted = [], []
    for entry in entries:
        name = entry.submission.name
        if entry.over and name not in ids:
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
            found = listed.get((name, index))
            if found and found.lives:
                entry.ended.pop(index, None)  # SLURM has started it again since
                live.update(dict.fromkeys(keys, (entry, index, found)))
            elif found:
                entry.ended[index] = found.state
            else:  # unknown to a controller that answers: lost, or ended long ago
                entry.ended.setdefault(index, "UNKNOWN")
        if entry.ended != before:
            changed.append(entry)
    return Reconciled(live, changed, adopted)


def user_name(user: int) -> str:
    """The name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def users(entries: Sequence[Entry]) -> set[int]:
    """Whose jobs the ledger names: SLURM must be asked about all of them, or the living jobs of one
    user are dead to the other."""
    return {entry.submission.user for entry in entries if not entry.void} - {-1}


def at_work(submission: Submission, now: float) -> bool:
    """Whether the planner of a submission without an answer, or its sbatch, may still live.

    The caller holds the lock, so a planner elsewhere is dead unless locks do not work there; its
    sbatch may wait to be let in for some time.
    """
    if submission.host != os.uname().nodename:
        return now - submission.time < ELSEWHERE_S
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"sbatch") and any(submission.uid.encode() in w for w in words):
            return True
    return False
