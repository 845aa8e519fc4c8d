"""The files under a run root that no cell needs any more."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lewel_bench.files import abandoned, is_held
from lewel_bench.harness.status import JobState
from lewel_bench.value import format_bytes

# What training goes on from: useless once there is a record, and to settings of another meaning.
# Ours, detectron2's and mmengine's.
RESUMED = (
    *("checkpoint-*-*.pt", "checkpoint-*.corrupt", "model_*.pth", "iter_*.pth"),
    *("last_checkpoint", "backbone.pth"),
)
WEIGHTS = ("*.safetensors",)
AT_WORK = ("running", "queued", "stuck")
TORN = "incomplete write"
DATA = "data"  # whose data sets of many files are not walked through


@dataclass(frozen=True)
class Waste:
    """A file, or a folder of unfinished data, that no cell needs, its size in bytes, and why."""

    path: Path
    size: int
    why: str


def waste(root: Path, states: Mapping[str, JobState]) -> list[Waste]:
    """The files under `root` that can go, in the order of their paths.

    Left alone: jobs that run or wait, what failed or interrupted ones go on from, every record,
    prediction and log, and the weights of every record that a table can show.
    """
    waste_files = [file for key in states for file in _of(root / key, states[key])]
    waste_files += _torn(root, deep=False)
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir() and not folder.is_symlink() and folder.name not in states:
            waste_files += _torn(folder, deep=folder.name != DATA)
    return sorted([*waste_files, *_unfinished(root / DATA)], key=lambda file: file.path)


def _of(folder: Path, job: JobState) -> Iterator[Waste]:
    if job.state in AT_WORK:
        return
    yield from _torn(folder)
    if job.state in ("done", "stale"):
        yield from _matching(
            folder, RESUMED, "its job is finished" if job.state == "done" else STALE
        )
    if job.state == "stale":
        yield from _matching(folder, WEIGHTS, STALE)


STALE = "stale: its settings have changed meaning"


def _torn(folder: Path, *, deep: bool = True) -> Iterator[Waste]:
    """What killed writes left."""
    for path in folder.rglob(".*") if deep else folder.glob(".*"):
        if path.is_file() and not path.is_symlink() and abandoned(path):
            yield Waste(path, path.stat().st_size, TORN)


def _unfinished(data: Path) -> Iterator[Waste]:
    """Generated images whose process was killed."""
    for folder in data.glob(".*.partial"):
        if not is_held(folder.with_suffix(".lock")):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            yield Waste(folder, size, "incomplete generated data")


def _matching(folder: Path, patterns: tuple[str, ...], why: str) -> Iterator[Waste]:
    for pattern in patterns:
        for path in sorted(folder.rglob(pattern)):
            if path.is_file() and not path.is_symlink():
                yield Waste(path, path.stat().st_size, why)


def clear(files: list[Waste]) -> int:
    """Remove the files; the bytes that this freed."""
    freed = 0
    for file in files:
        try:
            if file.path.is_dir():
                shutil.rmtree(file.path)
            else:
                os.unlink(file.path)
        except FileNotFoundError:
            continue  # another gc was first
        freed += file.size
    return freed


def show(files: list[Waste], root: Path) -> None:
    """Print what can go, a line a file."""
    for file in files:
        print(f"{format_bytes(file.size):>10}  {file.path.relative_to(root)}  ({file.why})")
