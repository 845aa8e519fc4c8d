"""The files under a run root: the folder of each job, and the queue that `run` processes share.

A job's folder has its spec, events, record, checkpoints and locks. A record is the only proof that
a job is done; a lock ends with the process that took it.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench.files import (
    FAILURE,
    LARGEST_JSON,
    NODE,
    Held,
    Lock,
    is_held,
    last_lines,
    read_regular,
    write_atomically,
)
from lewel_bench.pretrain.report import Report
from lewel_bench.results import curves
from lewel_bench.results.curves import parse_events
from lewel_bench.results.record import NAME

if TYPE_CHECKING:
    from lewel_bench.harness.plan.plan import Job

SPEC, EVENTS = "spec.json", curves.EVENTS
CRASH = "crash-*.log"  # of each process, where a signal of a native library ended it
CRASHES = {  # by faulthandler's names
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
}
METHOD = "method.py"  # the file of a user's own method, as its job runs it
MERGED_CODE = ".merged"  # what that file of another lab's record is called after a merge
LOCK = ".lock"  # taken by the `run` that computes a job
WORK = ".work.lock"  # taken by rank 0 of a job of several processes, which may outlive its `run`
QUEUES = ".queues"  # one locked file for every `run` that is alive: the keys it has yet to start
# Checkpoints: ours, those of the second training of a linear refit, and mmengine's
CHECKPOINTS = "checkpoint-*-*.pt refit/checkpoint-*-*.pt iter_*.pth"


@dataclass(frozen=True)
class Progress:
    """How far a job has come, and in how many seconds it will be done at its pace."""

    step: int
    steps: int
    seconds_left: float | None = None

    def __str__(self) -> str:
        return f"step {self.step} of {self.steps}"

    @property
    def share(self) -> float:
        """What is done, from 0 to 1."""
        return min(1.0, max(0.0, self.step / self.steps))

    @property
    def left(self) -> str:
        """The time left in words; empty where no pace is known."""
        if self.seconds_left is None:
            return ""
        minutes = self.seconds_left / 60
        if minutes < 1:
            return "under a minute left"
        return f"{minutes:.0f} min left" if minutes < 90 else f"{minutes / 60:.1f} h left"


@dataclass(frozen=True)
class JobDir:
    """The folder of one job."""

    path: Path

    @property
    def spec(self) -> Path:
        """The file with everything that is needed to run the job."""
        return self.path / SPEC

    @property
    def events(self) -> Path:
        """The file with what happened, a line of JSON for each event."""
        return self.path / EVENTS

    @property
    def record(self) -> Path:
        """The file with the result; it is written last."""
        return self.path / NAME

    @property
    def failure(self) -> Path:
        """The file that says why the last attempt failed."""
        return self.path / FAILURE

    @property
    def method(self) -> Path:
        """The file of a user's own method."""
        return self.path / METHOD

    @property
    def lock(self) -> Path:
        """The file that the `run` locks which computes the job."""
        return self.path / LOCK

    @property
    def work_lock(self) -> Path:
        """The file that rank 0 of a job of several processes locks."""
        return self.path / WORK

    def has_record(self) -> bool:
        """Whether the job is done."""
        return self.record.exists()

    def is_locked(self) -> bool:
        """Whether a live process works on the job."""
        return is_held(self.lock) or is_held(self.work_lock)

    def write_spec(self, job: "Job") -> None:
        """Make the folder with the spec of `job` as it is now: paths of data may have been
        corrected, which no key depends on. The spec of a finished job stays."""
        self.path.mkdir(parents=True, exist_ok=True)
        own = job.recipe and job.recipe.own
        if own and not has_sha256(self.method, own.code):
            write_atomically(self.method, Path(own.file).read_bytes())
        content = job.model_dump_json(indent=1).encode()
        with suppress(FileNotFoundError):
            if read_regular(self.spec, LARGEST_JSON) == content or self.has_record():
                return
        write_atomically(self.spec, content)

    def read_spec(self) -> "Job":
        """The job; its own method is the file in the folder, wherever the folder is."""
        from lewel_bench.harness.plan.plan import Job

        job = Job.model_validate_json(read_regular(self.spec, LARGEST_JSON))
        if job.recipe and job.recipe.own and self.method.exists():
            own = job.recipe.own.model_copy(update={"file": str(self.method)})
            recipe = job.recipe.model_copy(update={"own": own})
            job = job.model_copy(update={"recipe": recipe})
        return job

    def last_events(self, size: int = 8192) -> list[dict[str, Any]]:
        """The whole events in the last `size` bytes of the events file."""
        return list(parse_events(last_lines(self.events, size)))

    def progress(self) -> Progress | None:
        """How far the job has come, by the last events of its last attempt; None without any."""
        steps: list[dict[str, Any]] = []
        before = None  # where an earlier attempt came to: no part of the pace, it may be days ago
        for event in self.last_events():
            if event.get("event") == "start" and steps:
                before, steps = steps[-1], []
            if _has_progress(event):
                steps.append(event)
        if not steps:
            return Progress(before["step"], before["steps"]) if before else None
        first, last = steps[0], steps[-1]
        passed, seconds = last["step"] - first["step"], last["time"] - first["time"]
        left = (last["steps"] - last["step"]) * seconds / passed if passed > 0 else None
        return Progress(last["step"], last["steps"], left)

    def crash_message(self, since: float = 0.0) -> str:
        """By which signal a process of the last attempt was ended after the time `since`, by the
        stack that faulthandler wrote; empty where none was."""
        for path in sorted(self.path.glob(CRASH)):
            with suppress(OSError):
                text = read_regular(path, LARGEST_JSON).decode(errors="replace")
                first_line = text.partition("\n")[0]
                error = first_line.removeprefix("Fatal Python error: ")
                if error != first_line and path.stat().st_mtime >= since:
                    name = CRASHES.get(error)
                    return f"its process was ended by {name or error}: see {path}"
        return ""


class Events:
    """The events of a job from now on, each passed to a report."""

    def __init__(self, folder: JobDir, report: Report) -> None:
        self.path, self.report = folder.events, report
        self.offset = self.path.stat().st_size if self.path.exists() else 0

    def follow(self) -> None:
        """Pass on what was written since the last call."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                text = file.read()
        except OSError:
            return
        lines = text[: text.rfind(b"\n") + 1]
        self.offset += len(lines)
        for event in parse_events(lines.decode(errors="replace").splitlines()):
            fields = {name: value for name, value in event.items() if name not in ("event", "time")}
            self.report(str(event.get("event")), **fields)


@dataclass(frozen=True)
class RunDir:
    """A run root."""

    root: Path

    def job(self, key: str) -> JobDir:
        """The folder of the job with this key."""
        return JobDir(self.root / key)

    @contextmanager
    def queue(self, keys: list[str]) -> Iterator[None]:
        """Show `keys` as queued to other processes for as long as this one lives."""
        folder = self.root / QUEUES
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{NODE}-{os.getpid()}-{time.time_ns()}.json"
        lock = Lock(path.with_suffix(".lock"), timeout_s=10.0)  # others look whether it lives
        try:
            lock.acquire()
        except PermissionError as error:  # the locks of the jobs exclude others all the same
            place = f"{folder}: {error.strerror}"
            print(
                f"note: {place}: other users cannot see which jobs are queued here", file=sys.stderr
            )
            yield
            return
        try:
            write_atomically(path, json.dumps(keys))
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.path.unlink(missing_ok=True)
            lock.release()

    def queued_keys(self) -> set[str]:
        """The keys that some `run` on this machine has taken on and not finished."""
        keys: set[str] = set()
        folder = self.root / QUEUES
        marks = [*folder.glob("*.json"), *folder.glob("*.lock")]
        for path in {mark.with_suffix(".json") for mark in marks}:
            lock = path.with_suffix(".lock")
            if is_held(lock):
                with suppress(OSError, ValueError):  # that `run` has just begun, or ended
                    keys |= set(json.loads(read_regular(path, LARGEST_JSON)))
                continue
            with suppress(OSError, Held), Lock(lock):  # of a process that was killed
                path.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
        return keys


def has_sha256(path: Path, digest: str) -> bool:
    """Whether a file exists whose content has this SHA-256."""
    try:
        return sha256(read_regular(path, LARGEST_JSON)).hexdigest() == digest
    except OSError:
        return False


def missing_weights_message(weights: Path) -> str:
    """The error about the weights of a finished run that are not in its folder."""
    return (
        f"{weights} is missing, although its record exists. If it came with a bundle, ask for one "
        f"with --weights; to pre-train it again remove {weights.parent}"
    )


def _has_progress(event: Mapping[str, Any]) -> bool:
    """Whether an event says how far a job has come, and when."""
    counts = event.get("step"), event.get("steps")
    timed = isinstance(event.get("time"), int | float)
    return timed and all(isinstance(count, int) for count in counts) and event["steps"] > 0
