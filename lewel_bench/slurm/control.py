"""What a person asks about the jobs of a run root, and does with them: what lives, what was given
up, cancelling, trying again, logs.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lewel_bench.slurm import attempt, queue
from lewel_bench.slurm.ledger import Entry, Ledger, Submission, user_name
from lewel_bench.slurm.retry import Verdict
from lewel_bench.slurm.seen import ends_by_key, judge_cell, look


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


def survey(root: Path) -> dict[str, Live]:
    """What lives under a run root, by key, with one SLURM call, a second where it shows no job of
    the ledger or not all of another user's, and nothing written. Raises Unreachable, and Foreign
    where SLURM is another cluster's or hides those."""
    books = Ledger(root)
    seen = look(books, write=False)
    ours = {entry.submission.name for entry in seen.entries}
    if seen.missing or ours.isdisjoint(task.name for task in seen.tasks):
        books.check(queue.limits())
    pending = sorted(
        (t for t in seen.tasks if t.mine and t.state == "PENDING"), key=lambda t: -t.priority
    )
    places = {task.id: place for place, task in enumerate(pending, 1)}
    found = {}
    for key, (entry, index, task) in seen.live.items():
        if task is None:
            found[key] = Live(key, "queued", "", "its sbatch has not answered yet")
            continue
        state = "stuck" if task.stuck else "queued" if task.state == "PENDING" else "running"
        pack = entry.submission.tasks[index]
        if state == "running" and len(pack) > 1 and _waits(root, key, entry.submission):
            state = "queued"
        found[key] = Live(
            key,
            state,
            task.id,
            task.stuck or ("" if task.reason in ("None", "") else task.reason),
            places.get(task.id, 0),
            task.elapsed,
            task.nodes,
        )
    return found


def _waits(root: Path, key: str, submission: Submission) -> bool:
    """Whether a cell in a running pack has not been started by it yet."""
    return not any(one.uid == submission.uid for one in attempt.history(root / key))


def given_up(root: Path, keys: Collection[str]) -> dict[str, Verdict]:
    """The verdict on each cell that has neither a record nor a living job but was tried, as the
    pass that submitted it last would judge."""
    entries = Ledger(root).entries()
    ends = ends_by_key(entries)
    last = {key: e.submission for e in entries for pack in e.submission.tasks for key in pack}
    found = {}
    for key in keys:
        one = last.get(key, Submission("", "", ()))  # its file may be damaged
        if verdict := judge_cell(root / key, ends.get(key, ()), one.marks, one.max_attempts):
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
