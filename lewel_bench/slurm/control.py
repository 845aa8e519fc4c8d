"""What a person asks about the jobs of a run root, and does with them: what lives, what was given
up, cancelling, trying again, logs.
"""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lewel_bench.slurm import attempt, queue, retry
from lewel_bench.slurm.ledger import Entry, Ledger, Submission, user_name
from lewel_bench.slurm.queue import Unreachable
from lewel_bench.slurm.retry import Verdict
from lewel_bench.slurm.seen import Seen, ends_by_key, failing_log, judge_of, look


@dataclass(frozen=True)
class Live:
    """A cell that SLURM has: `state` is running, queued or stuck, `place` its place among this
    user's pending tasks."""

    key: str
    state: str
    job: str
    reason: str = ""
    place: int = 0
    elapsed: str = ""
    nodes: str = ""
    warning: str = ""  # of allocations that are too short


@dataclass(frozen=True)
class Waker:
    """The newest planning job of a sweep: its `state` in the queue, or how it ended and the `log`
    and last `line` of one that failed."""

    job: str
    state: str
    reason: str = ""
    log: Path | None = None
    line: str = ""

    @property
    def lives(self) -> bool:
        """Whether it may plan yet."""
        return self.state in ("running", "queued", "stuck")


@dataclass(frozen=True)
class Survey:
    """What lives, by key; the newest planning job of each sweep, newest first; and why no job can
    start now in a partition that some job waits for."""

    live: dict[str, Live]
    wakers: list[Waker]
    closed: dict[str, str]
    entries: list[Entry]  # of the ledger, with what has ended since a pass wrote it down


def survey(root: Path) -> dict[str, Live]:
    """What lives under a run root, by key, with one SLURM call, a second where it shows no job of
    the ledger or not all of another user's; nothing is written.

    Raises Unreachable, and Foreign where SLURM is another cluster's or hides those.
    """
    return _living(root, _seen(Ledger(root)))


def look_around(root: Path) -> Survey:
    """What SLURM says about a run root, as `survey`, with one call more where jobs wait."""
    books = Ledger(root)
    seen = _seen(books)
    ours = {entry.submission.name for entry in seen.entries}
    waiting = {t.partition for t in seen.tasks if t.name in ours and t.state == "PENDING"}
    names = {name for several in waiting for name in several.split(",") if name}
    closed = {}
    if names:
        with suppress(Unreachable, ValueError):  # it explains, and decides nothing
            closed = queue.closed(names)
    return Survey(_living(root, seen), _wakers(books, seen), closed, seen.entries)


def _seen(books: Ledger) -> Seen:
    seen = look(books, write=False)
    ours = {entry.submission.name for entry in seen.entries}
    if seen.missing or ours.isdisjoint(task.name for task in seen.tasks):
        books.check(queue.limits())
    return seen


def _wakers(books: Ledger, seen: Seen) -> list[Waker]:
    newest = {e.submission.wakes: e for e in seen.entries if e.submission.wakes and not e.void}
    tasks = {task.name: task for task in seen.tasks}
    found = []
    for entry in sorted(newest.values(), key=lambda e: -e.submission.time):
        task = tasks.get(entry.submission.name)
        if task and task.lives:
            found.append(Waker(task.id, _state(task), _why(task)))
        elif entry.id is not None:
            ended = entry.ended.get(0, "UNKNOWN")
            log, line = None, ""
            if ended not in ("COMPLETED", "CANCELLED"):
                log, line = failing_log(books, entry, 0)
            found.append(Waker(entry.id, ended, "", log, line))
    return found


def _state(task: queue.Task) -> str:
    return "stuck" if task.stuck else "queued" if task.state == "PENDING" else "running"


def _why(task: queue.Task) -> str:
    return task.stuck or ("" if task.reason in ("None", "") else task.reason)


def _living(root: Path, seen: Seen) -> dict[str, Live]:
    pending = sorted(
        (t for t in seen.tasks if t.mine and t.state == "PENDING"), key=lambda t: -t.priority
    )
    places = {task.id: place for place, task in enumerate(pending, 1)}
    found = {}
    for key, (entry, index, task) in seen.live.items():
        if task is None:
            found[key] = Live(key, "queued", "", "its sbatch has not answered yet")
            continue
        state = _state(task)
        pack = entry.submission.tasks[index]
        if state == "running" and len(pack) > 1 and _waits(root, key, entry.submission):
            state = "queued"
        found[key] = Live(
            key,
            state,
            task.id,
            _why(task),
            places.get(task.id, 0),
            task.elapsed,
            task.nodes,
            _too_short(root / key, entry.submission.max_attempts),
        )
    return found


def _too_short(folder: Path, max_attempts: int) -> str:
    """What to say of a cell whose last allocations were too short; empty for a few of them."""
    short = retry.unpaid(retry.since_retry(attempt.history(folder)))
    if len(short) < min(retry.FEW, max_attempts):
        return ""
    return f"{retry.unpaid_message(short)}; after {max_attempts} it is given up"


def _waits(root: Path, key: str, submission: Submission) -> bool:
    """Whether a cell in a running pack has not been started by it yet."""
    return not any(one.uid == submission.uid for one in attempt.history(root / key))


def given_up(
    root: Path, keys: Collection[str], entries: Sequence[Entry] | None = None
) -> dict[str, Verdict]:
    """The verdict on each cell that has neither a record nor a living job but was tried, as the
    pass that submitted it last would judge; by the ledger, or by `entries` of a survey."""
    books = Ledger(root)
    entries = books.entries() if entries is None else entries
    judge = judge_of(books, entries)
    last = {key: e.submission for e in entries for pack in e.submission.tasks for key in pack}
    found = {}
    for key in keys:
        one = last.get(key, Submission("", "", ()))  # its file may be damaged
        if verdict := judge(key, one.marks, one.max_attempts):
            found[key] = verdict
    return found


def cancel(root: Path, keys: Collection[str]) -> dict[str, list[str]]:
    """End the living jobs of `keys`; what each ended job held. A pass that a person starts submits
    them again. Raises Unreachable, Foreign where SLURM is another cluster's, and ValueError, with
    nothing cancelled, where a job is another user's, which only that user or root can cancel."""
    books = Ledger(root)
    books.check(queue.limits())
    with books.lock():
        seen = look(books)
        ended: dict[str, list[str]] = {}
        waiting: dict[str, Entry] = {}
        owned = [seen.live[key] for key in keys if key in seen.live]
        if os.getuid() and (others := [t for _, _, t in owned if t and not t.mine]):
            owners = ", ".join(sorted({user_name(task.user) for task in others}))
            raise ValueError(
                f"{len(others)} of these jobs were submitted by {owners}, the first is job "
                f"{others[0].id}: only that user can cancel them. Nothing was cancelled"
            )
        for key in keys:
            if key in seen.live:
                entry, index, task = seen.live[key]
                if task is not None:
                    ended.setdefault(task.id, list(entry.submission.tasks[index]))
                    if task.state == "PENDING":  # it will never write an attempt
                        entry.ended[index] = "CANCELLED"
                        waiting[entry.submission.uid] = entry
        queue.cancel(list(ended))
        for entry in waiting.values():
            books.ended(entry)
    return ended


def again(root: Path, keys: Collection[str]) -> list[str]:
    """Forget failed attempts at `keys`, so that the next pass tries them; those that had any."""
    ends = ends_by_key(Ledger(root).entries())  # one that never started has no attempts
    tried = [key for key in keys if key in ends or attempt.history(root / key)]
    for key in tried:
        attempt.forgive(root / key)
    return tried


def logs(root: Path, key: str) -> list[Path]:
    """The log files of every job that held a cell, newest last."""
    books = Ledger(root)
    found: list[Path] = []
    for entry in books.entries():
        for index, keys in enumerate(entry.submission.tasks):
            if key in keys and entry.id:
                name = entry.task_id(index)
                found += sorted(books.logs(entry.submission.uid).glob(f"{name}_*_log.*"))
    return found


def unfinished_elsewhere(root: Path) -> Collection[str]:
    """The keys that the ledger says may be alive, without asking SLURM."""
    return {
        key
        for entry in Ledger(root).entries()
        if not entry.over
        for index, keys in enumerate(entry.submission.tasks)
        if index not in entry.ended
        for key in keys
    }
