"""Cancelling the jobs of a run root, and submitting failed jobs again."""

import os
from collections.abc import Collection
from pathlib import Path

from lewel_bench.slurm import attempt, queue
from lewel_bench.slurm.ledger import Ledger, LedgerEntry, user_name
from lewel_bench.slurm.state import ends_by_key, read_state


def cancel(root: Path, keys: Collection[str]) -> dict[str, list[str]]:
    """Cancel the queued and running jobs of `keys`; the keys of each cancelled SLURM task, by its
    id. A run that a user starts submits them again.

    Raises SlurmUnreachable, ForeignCluster if the run root belongs to another cluster, and
    ValueError if a job is another user's, which only that user or root can cancel. Nothing was
    cancelled then.
    """
    books = Ledger(root)
    books.check_cluster(queue.limits())
    with books.lock():
        cluster = read_state(books)
        ended: dict[str, list[str]] = {}
        waiting: dict[str, LedgerEntry] = {}
        owned = [cluster.live[key] for key in keys if key in cluster.live]
        if os.getuid() and (others := [t for _, _, t in owned if t and not t.is_own]):
            owners = ", ".join(sorted({user_name(task.user) for task in others}))
            raise ValueError(
                f"{len(others)} of these jobs, such as SLURM job {others[0].id}, were submitted by "
                f"{owners}, and only that user can cancel them. Nothing was cancelled"
            )
        for key in keys:
            if key in cluster.live:
                entry, index, task = cluster.live[key]
                if task is not None:
                    ended.setdefault(task.id, list(entry.submission.tasks[index]))
                    if task.state == "PENDING":  # it will never record an attempt
                        entry.ended[index] = "CANCELLED"
                        waiting[entry.submission.uid] = entry
        queue.cancel(list(ended))
        for entry in waiting.values():
            books.record_ended(entry)
    return ended


def retry(root: Path, keys: Collection[str]) -> list[str]:
    """Discard the failures of `keys`, so that the next pass submits them; the keys that had any."""
    ends = ends_by_key(Ledger(root).entries())  # a task that never started has no attempts
    tried = [key for key in keys if key in ends or attempt.history(root / key)]
    for key in tried:
        attempt.reset(root / key)
    return tried
