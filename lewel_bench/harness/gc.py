"""`lewel-bench gc`: what a run root holds that no cell needs any more."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lewel_bench.harness.status import JobState

# What training goes on from: useless once there is a record, and to settings of another meaning.
# Ours, detectron2's and mmengine's.
RESUMED = (
    *("checkpoint-*-*.pt", "checkpoint-*.corrupt", "model_*.pth", "iter_*.pth"),
    *("last_checkpoint", "backbone.pth"),
)
WEIGHTS = ("*.safetensors",)
TORN = (".*.pt.*", ".*.safetensors.*", ".*.json.*")  # what killed writes left
AT_WORK = ("running", "queued", "stuck")
TORN_S = 3600.0  # no write takes so long: a younger one may belong to a job that has just begun


@dataclass(frozen=True)
class Waste:
    """A file that no cell needs, its size in bytes, and why."""

    path: Path
    size: int
    why: str


def waste(root: Path, states: Mapping[str, JobState]) -> list[Waste]:
    """The files under `root` that can go, in the order of their paths.

    Left alone: jobs that run or wait, what failed or interrupted ones go on from, every record,
    prediction and log, and the weights of every record that a table can show.
    """
    return [one for key in sorted(states) for one in _of(root / key, states[key])]


def _of(folder: Path, job: JobState) -> Iterator[Waste]:
    if job.state in AT_WORK:
        return
    for one in _matching(folder, TORN, "a write that was killed"):
        if time.time() - one.path.stat().st_mtime > TORN_S:
            yield one
    if job.state in ("done", "stale"):
        yield from _matching(folder, RESUMED, "its job is done" if job.state == "done" else STALE)
    if job.state == "stale":
        yield from _matching(folder, WEIGHTS, STALE)


STALE = "its settings mean something else now"


def _matching(folder: Path, patterns: tuple[str, ...], why: str) -> Iterator[Waste]:
    for pattern in patterns:
        for path in sorted(folder.rglob(pattern)):
            if path.is_file() and not path.is_symlink():
                yield Waste(path, path.stat().st_size, why)


def clear(found: list[Waste]) -> int:
    """Remove the files; the bytes that this freed."""
    freed = 0
    for one in found:
        try:
            os.unlink(one.path)
        except FileNotFoundError:
            continue  # another gc was first
        freed += one.size
    return freed


def show(found: list[Waste], root: Path) -> None:
    """Print what can go, a line a file."""
    for one in found:
        print(f"{size(one.size):>10}  {one.path.relative_to(root)}  ({one.why})")


def size(count: int) -> str:
    """Bytes as a person reads them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"
