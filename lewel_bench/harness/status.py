"""What every job under a run root is doing, read from its folder."""

import json
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench.evals.protocol import Protocol
from lewel_bench.files import (
    ATTEMPTS,
    FAILURE,
    LARGEST_JSON,
    NODE,
    Held,
    Lock,
    is_held,
    last_lines,
    read_json,
    read_regular,
    write_atomically,
)
from lewel_bench.harness.bundles.foreign import is_job
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.results.measured_cost import device_hours
from lewel_bench.results.record import NAME, Record
from lewel_bench.results.store import Store

if TYPE_CHECKING:
    from lewel_bench.harness.cost.estimate import Estimator
    from lewel_bench.harness.plan.plan import Job

SPEC, EVENTS = "spec.json", "events.jsonl"
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
LOCK = ".lock"  # held by the `run` that computes a job
WORK = ".work.lock"  # held by rank 0 of a job of several processes, which may outlive its `run`
QUEUES = ".queues"  # one locked file for every `run` that is alive: the keys it has yet to start
COMMAND = "LEWEL_BENCH_COMMAND"  # set where another process of ours asked: its command line
BEGAN = "LEWEL_BENCH_BEGAN"  # set beside it: the time at which that process began
# Checkpoints: ours, those of the second training of a linear refit, and mmengine's
MARKS = "checkpoint-*-*.pt refit/checkpoint-*-*.pt iter_*.pth"
ORDER = ("running", "queued", "stuck", "failed", "missing", "stale", "done")


@dataclass(frozen=True)
class JobState:
    """One line of `lewel-bench status`; `reason` says why it is not done."""

    key: str
    kind: str
    name: str
    seed: int
    suite: str
    state: str
    reason: str = ""
    recipe: str = ""
    protocol: str = ""
    progress: "Progress | None" = None  # of the last attempt, where there is no record
    spent_hours: float = 0.0  # of devices, over all attempts
    hours: float | None = None  # an estimate of the whole job's; None: not known, or not asked for

    @property
    def hours_to_go(self) -> float | None:
        """Device-hours until there is a record; None where nothing is known."""
        if self.state in ("done", "stale"):
            return 0.0
        done = self.progress.share if self.progress else 0.0
        return None if self.hours is None else self.hours * (1 - done)


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


def write_spec(job: "Job", root: Path) -> None:
    """Make the folder of a job, with everything that is needed to run it, as it is now: paths of
    data may have been corrected, which no key depends on. Beside a record nothing changes."""
    folder = root / job.key
    folder.mkdir(parents=True, exist_ok=True)
    own = job.recipe and job.recipe.own
    if own and not holds(folder / METHOD, own.code):
        write_atomically(folder / METHOD, Path(own.file).read_bytes())
    content = job.model_dump_json(indent=1).encode()
    with suppress(FileNotFoundError):
        if read_regular(folder / SPEC, LARGEST_JSON) == content or (folder / NAME).exists():
            return
    write_atomically(folder / SPEC, content)


def holds(path: Path, code: str) -> bool:
    """Whether a file is there with the content of this hash."""
    try:
        return sha256(read_regular(path, LARGEST_JSON)).hexdigest() == code
    except OSError:
        return False


def read_spec(folder: Path) -> "Job":
    """The job of a folder; a method of the user's own is the file there, wherever the folder is."""
    from lewel_bench.harness.plan.plan import Job

    job = Job.model_validate_json(read_regular(folder / SPEC, LARGEST_JSON))
    if job.recipe and job.recipe.own and (folder / METHOD).exists():
        own = job.recipe.own.model_copy(update={"file": str(folder / METHOD)})
        recipe = job.recipe.model_copy(update={"own": own})
        job = job.model_copy(update={"recipe": recipe})
    return job


def survey(
    root: Path,
    store: Store | None = None,
    costs: "Estimator | None" = None,
    catalog: Catalog = PACKAGED,
) -> dict[str, JobState]:
    """The state of every job that has a folder under `root`, by key; with `costs` its hours too.

    done: has a record; stale: has one, but its recipe, protocol or data now means something else;
    running: a live process holds its lock; queued: a live `run` will start it; failed: its last
    attempt raised; missing: none of these, for instance interrupted.
    """
    store = store or Store(root)
    waiting = queued(root)
    corrupt = {bad.path.parent.name: bad.reason for bad in store.bad}
    states = {}
    for key, spec, held in _specs(root, store, catalog):
        folder, record = root / key, store.records.get(key)
        done = progress(folder) if record is None and EVENTS in held else None
        state, reason = _state(folder, held, store, waiting, corrupt, spec, done)
        hours = spent = None
        if costs and record is not None:
            spent = _spent(record)
        elif costs:
            spent = _lost_hours(folder) if ATTEMPTS in held else None
            hours = costs.cost_of(spec).hours if "data" in spec else None
        states[key] = JobState(
            key,
            spec["kind"],
            spec["name"],
            spec["seed"],
            spec.get("suite", ""),
            state,
            reason,
            spec.get("recipe_name", ""),
            (spec.get("protocol") or {}).get("name", ""),
            done,
            spent or 0.0,
            hours,
        )
    return states


def _spent(record: Record) -> float:
    """The device-hours of a record, on a cluster with those of attempts that were lost."""
    attempts = record.outcome.get("attempts")
    if not attempts:
        return device_hours(record)
    return float(sum(one["seconds"] * one["processes"] for one in attempts)) / 3600


def _lost_hours(folder: Path) -> float:
    """The device-hours of all attempts on a cluster at a job without a record."""
    from lewel_bench.slurm import attempt

    return attempt.device_hours(folder)


def _state(
    folder: Path,
    held: Collection[str],
    store: Store,
    waiting: set[str],
    corrupt: Mapping[str, str],
    spec: Mapping[str, Any],
    done: Progress | None,
) -> tuple[str, str]:
    key = folder.name
    if key in corrupt:
        return "failed", f"corrupt record: {corrupt[key]}; run again with --replace-corrupt"
    if key in store.records:
        return ("stale", spec["stale"]) if spec.get("stale") else ("done", "")
    if (LOCK in held or WORK in held) and is_locked(folder):
        return "running", ", ".join(filter(None, (str(done), done.left))) if done else ""
    if key in waiting:
        return "queued", "waits for the jobs before it"
    if spec.get("stale"):
        return "stale", spec["stale"]
    if FAILURE in held and (failure := read_json(folder / FAILURE)):
        return "failed", str(failure.get("message", "no reason was written"))
    if any(fnmatch(name, CRASH) for name in held) and (reason := crash(folder)):
        return "failed", reason
    return "missing", f"interrupted at {done}; run again to go on" if done else "not started"


def crash(folder: Path, since: float = 0.0) -> str:
    """By which signal a process of the last attempt was ended, if one was, after the time `since`;
    faulthandler wrote its stack."""
    for path in sorted(folder.glob(CRASH)):
        with suppress(OSError):
            said = read_regular(path, LARGEST_JSON).decode(errors="replace").partition("\n")[0]
            found = said.removeprefix("Fatal Python error: ")
            if found != said and path.stat().st_mtime >= since:
                name = CRASHES.get(found)
                return f"its process was ended by {name or found}: see {path}"
    return ""


def progress(folder: Path) -> Progress | None:
    """How far a job has come, by the last events of its last attempt; None when there are none."""
    steps: list[dict[str, Any]] = []
    before = None  # where an earlier attempt came to: no part of the pace, it may be days ago
    for event in tail(folder / EVENTS):
        if event.get("event") == "start" and steps:
            before, steps = steps[-1], []
        if _tells(event):
            steps.append(event)
    if not steps:
        return Progress(before["step"], before["steps"]) if before else None
    first, last = steps[0], steps[-1]
    passed, seconds = last["step"] - first["step"], last["time"] - first["time"]
    left = (last["steps"] - last["step"]) * seconds / passed if passed > 0 else None
    return Progress(last["step"], last["steps"], left)


def _tells(event: Mapping[str, Any]) -> bool:
    """Whether an event says how far a job has come, and when."""
    counts = event.get("step"), event.get("steps")
    timed = isinstance(event.get("time"), int | float)
    return timed and all(isinstance(count, int) for count in counts) and event["steps"] > 0


def tail(path: Path, size: int = 8192) -> list[dict[str, Any]]:
    """The last whole events of an events.jsonl; a half-written last line is left out."""
    return list(events_of(last_lines(path, size)))


def events_of(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The whole events among the lines of an events.jsonl."""
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut by a window or by a kill; the events around it are whole
        if isinstance(event, dict):
            yield event


def is_locked(folder: Path) -> bool:
    """Whether a live process works in `folder`."""
    return is_held(folder / LOCK) or is_held(folder / WORK)


@contextmanager
def queue(root: Path, keys: list[str]) -> Iterator[None]:
    """Show `keys` as queued to other processes for as long as this one lives."""
    folder = root / QUEUES
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NODE}-{os.getpid()}-{time.time_ns()}.json"
    lock = Lock(path.with_suffix(".lock"), timeout_s=10.0)  # others look whether it lives
    try:
        lock.acquire()
    except PermissionError as error:  # the locks of the jobs exclude others all the same
        place = f"{folder}: {error.strerror}"
        print(f"note: {place}: other users do not see which jobs wait here", file=sys.stderr)
        yield
        return
    try:
        write_atomically(path, json.dumps(keys))
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.path.unlink(missing_ok=True)
        lock.release()


def queued(root: Path) -> set[str]:
    """The keys that some `run` on this machine has taken on and not finished."""
    keys: set[str] = set()
    marks = [*(root / QUEUES).glob("*.json"), *(root / QUEUES).glob("*.lock")]
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


def _specs(
    root: Path, store: Store, catalog: Catalog
) -> Iterator[tuple[str, dict[str, Any], Collection[str]]]:
    """Each key with its spec and the names in its folder: what is not there is not looked at."""
    try:
        names = sorted(e.name for e in os.scandir(root) if e.is_dir())
    except FileNotFoundError:
        return
    for name in names:
        if len(name) != 12:
            continue
        spec = read_json(root / name / SPEC)
        if spec is not None and not is_job(spec):
            spec = None  # somebody else's, or damaged
        record = store.records.get(name)
        if spec is None and record is not None:
            spec = {"kind": record.kind, "name": record.name, "seed": record.seed}
        if spec is not None:
            spec["stale"] = _stale(spec, catalog)
            yield name, spec, frozenset(os.listdir(root / name))


def _stale(spec: Mapping[str, Any], catalog: Catalog) -> str:
    """Why the meaning of a job has changed since, or nothing."""
    known: tuple[tuple[str, Mapping[str, Recipe | Protocol]], ...] = (
        ("recipe", catalog.recipes),
        ("protocol", catalog.protocols),
    )
    for what, now in known:
        then = spec.get(what)
        if then and then.get("name") in now:
            current = now[then["name"]].revision
            if then.get("revision", current) < current:
                return f"{what} {then['name']} is at revision {current}, this is {then['revision']}"
    return ""
