"""What the ledger, the queue and the attempts say together: what lives, what ended how, and the
verdict on a cell that was tried.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lewel_bench.files import last_lines, newest_match
from lewel_bench.slurm import attempt, executor, ledger, queue, retry
from lewel_bench.slurm.attempt import Attempt
from lewel_bench.slurm.inside import UNEXPLAINED
from lewel_bench.slurm.ledger import Entry, Ledger
from lewel_bench.slurm.retry import End, Verdict

LOST = (retry.KILLED, retry.NEVER_STARTED)


@dataclass
class Seen:
    """The ledger and the queue at one moment."""

    entries: list[Entry]
    live: dict[str, tuple[Entry, int, queue.Task | None]]
    tasks: list[queue.Task]
    missing: frozenset[str] = frozenset()  # open submissions of other users that it does not show


def look(books: Ledger, write: bool = True) -> Seen:
    """Bring the ledger up to date; the order of the looks is what makes it safe: submissions, then
    the processes behind those without an answer, then the queue, and records after that."""
    entries = books.entries()
    now = time.time()
    open_ = [e for e in entries if e.id is None and not e.void]
    orphans = {e.submission.uid: ledger.at_work(e.submission, now) for e in open_}
    tasks = queue.tasks(ledger.users(entries))
    listed = {task.name for task in tasks}
    open_of_others = {
        e.submission.name
        for e in entries
        if not e.over and e.submission.user not in (-1, os.getuid())
    }
    found = ledger.reconcile(entries, tasks, orphans)
    if write:
        for entry, id in found.adopted:
            books.submitted(entry.submission.uid, id)
            if id is not None:
                executor.mend(books, entry.submission, id)
        _explain(found.ended)
        for entry in found.ended:
            books.ended(entry)
    return Seen(entries, found.live, tasks, frozenset(open_of_others - listed))


def _explain(ended: Sequence[Entry]) -> None:
    """Ask accounting, where there is one, about tasks that the controller has forgotten."""
    unknown = {
        entry.task_id(index): (entry, index)
        for entry in ended
        for index, state in entry.ended.items()
        if state == "UNKNOWN"
    }
    names = {id: entry.submission.name for id, (entry, _) in unknown.items()}
    for id, state in queue.endings(names).items():
        entry, index = unknown[id]
        entry.ended[index] = state


def failing_log(books: Ledger, entry: Entry, index: int) -> tuple[Path | None, str]:
    """The log that says why a task ended, and its last line; None where it wrote none."""
    if entry.id is None:
        return None, ""
    paths = sorted(books.logs(entry.submission.uid).glob(f"{entry.task_id(index)}_*_log.err"))
    found = [(path, line) for path in paths if (line := last_line(path))]
    return found[0] if found else (next(iter(paths), None), "")


def last_line(path: Path, size: int = 8192) -> str:
    """The last line of a log that is not SLURM's own; empty where there is none."""
    said = [line.strip() for line in last_lines(path, size) if line.strip()]
    own = [line for line in said if not line.startswith(("srun:", "slurmstepd:"))]
    return (own or said or [""])[-1][:300]


def judge_of(books: Ledger, entries: Sequence[Entry]) -> Callable[[str, str, int], Verdict | None]:
    """What tells the verdict on a cell by its key, its marks and max_attempts; one on a failure
    names the log."""
    ends = ends_by_key(entries)
    of_uid = {entry.submission.uid: entry for entry in entries}

    def judge(key: str, marks: str, max_attempts: int) -> Verdict | None:
        attempts, ended = attempt.history(books.root / key), ends.get(key, [])
        verdict = _judge(books.root / key, attempts, ended, marks, max_attempts)
        if verdict is None or not ended or not has_failed(verdict):
            return verdict
        last = ended[-1]
        log, line = failing_log(books, of_uid[last.uid], last.task)
        if log is None:
            return verdict
        message = next((one.message for one in attempts[::-1] if one.uid == last.uid), "")
        known = message and UNEXPLAINED not in message
        quoted = f" ({line})" if line and not known else ""
        reason = verdict.reason.replace(f"; {UNEXPLAINED}", "")
        return replace(verdict, reason=f"{reason}; see {log}{quoted}")

    return judge


def ends_by_key(entries: Sequence[Entry]) -> dict[str, list[End]]:
    """How the tasks of each key ended, in the order of their submission."""
    ends: dict[str, list[End]] = {}
    for entry in entries:
        one = entry.submission
        for index, state in entry.ended.items():
            for key in one.tasks[index]:
                end = End(one.uid, index, state, one.time, one.tasks[index])
                ends.setdefault(key, []).append(end)
    return ends


def has_failed(verdict: Verdict) -> bool:
    """Whether a verdict is on a failure of the cell's own, which its log may explain."""
    return not verdict.again or verdict.reason.startswith((*retry.OWN, *LOST))


def _judge(
    folder: Path, attempts: Sequence[Attempt], ends: Sequence[End], marks: str, max_attempts: int
) -> Verdict | None:
    """The verdict on the cell of a folder; None when it was never tried."""
    if not attempts and not ends:
        return None
    started = {(one.uid, one.task) for one in attempts}
    seen = [
        replace(end, state=retry.UNREACHED)
        if (end.uid, end.task) not in started and _began(folder.parent, end)
        else end
        for end in ends
    ]
    settled = {one.name for one in attempts if one.outcome and _settled(folder, one, ends)}
    return retry.judge(attempts, seen, newest_match(folder, marks), max_attempts, settled)


def _settled(folder: Path, one: Attempt, ends: Sequence[End]) -> bool:
    """Whether another cell of its pack began after an attempt had ended: what ended the task later
    has not ended this attempt."""
    packs = [end.pack for end in ends if (end.uid, end.task) == (one.uid, one.task)]
    others = {key for pack in packs for key in pack} - {folder.name}
    start = one.uid, one.task, one.restart
    return any(
        (other.uid, other.task, other.restart) == start and other.started >= one.seen
        for key in others
        for other in attempt.history(folder.parent / key)
    )


def _began(root: Path, end: End) -> bool:
    """Whether a pack that has ended, and was not cancelled, had started a cell of it."""
    if end.state == "CANCELLED" or len(end.pack) < 2:
        return False
    tried = (one for key in end.pack for one in attempt.history(root / key))
    return any((one.uid, one.task) == (end.uid, end.task) for one in tried)
