"""The ledger, the queue and the attempts joined: what is queued or running, how tasks ended, and
the verdict on a job that was tried.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lewel_bench.files import last_lines, newest_match
from lewel_bench.slurm import executor, ledger, queue, retry
from lewel_bench.slurm.attempt import Attempt, history
from lewel_bench.slurm.in_job import NO_MESSAGE
from lewel_bench.slurm.ledger import Ledger, LedgerEntry
from lewel_bench.slurm.retry import TaskEnd, Verdict

LOST = (retry.KILLED, retry.NEVER_STARTED)


@dataclass
class ClusterState:
    """The ledger and the queue at one moment."""

    entries: list[LedgerEntry]
    live: dict[str, tuple[LedgerEntry, int, queue.QueuedTask | None]]
    tasks: list[queue.QueuedTask]
    hidden: frozenset[str] = frozenset()  # open submissions of other users, not in `tasks`


def read_state(books: Ledger, write: bool = True) -> ClusterState:
    """Read the ledger and the queue, and with `write` record in the ledger what has ended.

    The order makes it safe: submissions, then the processes of those without an answer, then the
    queue; the caller reads records after that. Raises SlurmUnreachable.
    """
    entries = books.entries()
    now = time.time()
    open_ = [e for e in entries if e.id is None and not e.void]
    orphans = {e.submission.uid: ledger.may_be_submitting(e.submission, now) for e in open_}
    tasks = queue.tasks(ledger.user_ids(entries))
    listed = {task.name for task in tasks}
    other_users = {
        e.submission.name
        for e in entries
        if not e.is_over and e.submission.user not in (-1, os.getuid())
    }
    reconciled = ledger.reconcile(entries, tasks, orphans)
    if write:
        for entry, id in reconciled.adopted:
            books.record_submitted(entry.submission.uid, id)
            if id is not None:
                executor.write_missing_pickles(books, entry.submission, id)
        _complete_states(reconciled.ended)
        for entry in reconciled.ended:
            books.record_ended(entry)
    return ClusterState(entries, reconciled.live, tasks, frozenset(other_users - listed))


def _complete_states(ended: Sequence[LedgerEntry]) -> None:
    """Ask the accounting database, if any, about tasks that the controller has forgotten."""
    unknown = {
        entry.task_id(index): (entry, index)
        for entry in ended
        for index, state in entry.ended.items()
        if state == "UNKNOWN"
    }
    names = {id: entry.submission.name for id, (entry, _) in unknown.items()}
    for id, state in queue.final_states(names).items():
        entry, index = unknown[id]
        entry.ended[index] = state


def failing_log(books: Ledger, entry: LedgerEntry, index: int) -> tuple[Path | None, str]:
    """The log that tells why a task ended, and its last line; None if the task wrote no log."""
    if entry.id is None:
        return None, ""
    paths = sorted(books.logs(entry.submission.uid).glob(f"{entry.task_id(index)}_*_log.err"))
    logs = [(path, line) for path in paths if (line := last_line(path))]
    return logs[0] if logs else (next(iter(paths), None), "")


def last_line(path: Path, size: int = 8192) -> str:
    """The last line of a log that is not SLURM's own, at most 300 characters; empty without one."""
    lines = [line.strip() for line in last_lines(path, size) if line.strip()]
    own = [line for line in lines if not line.startswith(("srun:", "slurmstepd:"))]
    return (own or lines or [""])[-1][:300]


def judge_for(
    books: Ledger, entries: Sequence[LedgerEntry]
) -> Callable[[str, str, int], Verdict | None]:
    """A function that returns the verdict on a job from its key, marks and max_attempts. The reason
    of a failure names the log."""
    ends = ends_by_key(entries)
    of_uid = {entry.submission.uid: entry for entry in entries}

    def judge(key: str, marks: str, max_attempts: int) -> Verdict | None:
        attempts, ended = history(books.root / key), ends.get(key, [])
        verdict = _judge(books.root / key, attempts, ended, marks, max_attempts)
        if verdict is None or not ended or not has_failed(verdict):
            return verdict
        last = ended[-1]
        log, line = failing_log(books, of_uid[last.uid], last.task)
        if log is None:
            return verdict
        message = next((a.message for a in attempts[::-1] if a.uid == last.uid), "")
        known = message and NO_MESSAGE not in message
        quoted = f" ({line})" if line and not known else ""
        reason = verdict.reason.replace(f"; {NO_MESSAGE}", "")
        return replace(verdict, reason=f"{reason}; see {log}{quoted}")

    return judge


def ends_by_key(entries: Sequence[LedgerEntry]) -> dict[str, list[TaskEnd]]:
    """How the tasks of each key ended, in the order of submission."""
    ends: dict[str, list[TaskEnd]] = {}
    for entry in entries:
        submission = entry.submission
        for index, state in entry.ended.items():
            for key in submission.tasks[index]:
                end = TaskEnd(
                    submission.uid, index, state, submission.time, submission.tasks[index]
                )
                ends.setdefault(key, []).append(end)
    return ends


def has_failed(verdict: Verdict) -> bool:
    """Whether a verdict is about a failure of the job itself, which its log may explain."""
    return not verdict.again or verdict.reason.startswith((*retry.ATTEMPT_CAUSES, *LOST))


def _judge(
    folder: Path,
    attempts: Sequence[Attempt],
    ends: Sequence[TaskEnd],
    marks: str,
    max_attempts: int,
) -> Verdict | None:
    """The verdict on the job of a folder; None if there was no attempt."""
    if not attempts and not ends:
        return None
    started = {(attempt.uid, attempt.task) for attempt in attempts}
    known_ends = [
        replace(end, state=retry.UNREACHED)
        if (end.uid, end.task) not in started and _pack_has_begun(folder.parent, end)
        else end
        for end in ends
    ]
    settled = {a.name for a in attempts if a.outcome and _is_settled(folder, a, ends)}
    return retry.judge(attempts, known_ends, newest_match(folder, marks), max_attempts, settled)


def _is_settled(folder: Path, tried: Attempt, ends: Sequence[TaskEnd]) -> bool:
    """Whether another job of its pack began after an attempt had ended: the attempt was over before
    its task ended."""
    packs = [end.pack for end in ends if (end.uid, end.task) == (tried.uid, tried.task)]
    others = {key for pack in packs for key in pack} - {folder.name}
    start = tried.uid, tried.task, tried.restart
    return any(
        (other.uid, other.task, other.restart) == start and other.started >= tried.seen
        for key in others
        for other in history(folder.parent / key)
    )


def _pack_has_begun(root: Path, end: TaskEnd) -> bool:
    """Whether a pack that ended, without being cancelled, had started any of its jobs."""
    if end.state == "CANCELLED" or len(end.pack) < 2:
        return False
    return any(
        (attempt.uid, attempt.task) == (end.uid, end.task)
        for key in end.pack
        for attempt in history(root / key)
    )
