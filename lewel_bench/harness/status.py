"""What every job under a run root is doing, read from its folder."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench.evals.protocol import Protocol
from lewel_bench.files import ATTEMPTS, FAILURE, read_json
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog
from lewel_bench.harness.rundir import CRASH, EVENTS, LOCK, SPEC, WORK, JobDir, Progress, RunDir
from lewel_bench.harness.spec_schema import is_job
from lewel_bench.harness.wings import is_installed
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.results.measured_cost import device_hours
from lewel_bench.results.record import Record
from lewel_bench.results.store import Store

if TYPE_CHECKING:
    from lewel_bench.harness.cost.estimate import Estimator

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
    progress: Progress | None = None  # of the last attempt, where there is no record
    spent_hours: float = 0.0  # of devices, over all attempts
    hours: float | None = None  # an estimate of the whole job's; None: not known, or not asked for

    @property
    def hours_to_go(self) -> float | None:
        """Device-hours until there is a record; None where nothing is known."""
        if self.state in ("done", "stale"):
            return 0.0
        done = self.progress.share if self.progress else 0.0
        return None if self.hours is None else self.hours * (1 - done)


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
    run_dir = RunDir(root)
    waiting = run_dir.queued_keys()
    corrupt = {bad.path.parent.name: bad.reason for bad in store.bad}
    states, upstreams = {}, {}
    for key, spec, names_in_folder in _specs(root, store, catalog):
        folder, record = run_dir.job(key), store.records.get(key)
        done = folder.progress() if record is None and EVENTS in names_in_folder else None
        state, reason = _state(folder, names_in_folder, store, waiting, corrupt, spec, done)
        hours = spent = None
        if costs and record is not None:
            spent = _spent(record)
        elif costs:
            spent = _lost_hours(folder.path) if ATTEMPTS in names_in_folder else None
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
        upstreams[key] = spec.get("upstream")
    for key, upstream in upstreams.items():
        if states[key].state == "done" and upstream in states and states[upstream].state == "stale":
            reason = f"its pre-training {upstream} is stale: {states[upstream].reason}"
            states[key] = replace(states[key], state="stale", reason=reason)
    return states


def _spent(record: Record) -> float:
    """The device-hours of a record, on a cluster with those of attempts that were lost."""
    attempts = record.outcome.get("attempts")
    if not attempts:
        return device_hours(record)
    return float(sum(attempt["seconds"] * attempt["processes"] for attempt in attempts)) / 3600


def _lost_hours(folder: Path) -> float:
    """The device-hours of all attempts on a cluster at a job without a record."""
    if not is_installed("slurm"):
        return 0.0
    from lewel_bench.slurm import attempt

    return attempt.device_hours(folder)


def _state(
    folder: JobDir,
    names_in_folder: Collection[str],
    store: Store,
    waiting: set[str],
    corrupt: Mapping[str, str],
    spec: Mapping[str, Any],
    done: Progress | None,
) -> tuple[str, str]:
    key = folder.path.name
    if key in corrupt:
        return "failed", f"corrupt record: {corrupt[key]}; run again with --replace-corrupt"
    if key in store.records:
        return ("stale", spec["stale"]) if spec.get("stale") else ("done", "")
    if (LOCK in names_in_folder or WORK in names_in_folder) and folder.is_locked():
        return "running", ", ".join(filter(None, (str(done), done.left))) if done else ""
    if key in waiting:
        return "queued", "waiting for earlier jobs"
    if spec.get("stale"):
        return "stale", spec["stale"]
    if FAILURE in names_in_folder and (failure := read_json(folder.failure)):
        return "failed", str(failure.get("message", "no reason was recorded"))
    if any(fnmatch(name, CRASH) for name in names_in_folder) and (reason := folder.crash_message()):
        return "failed", reason
    return "missing", f"interrupted at {done}; run again to resume" if done else "not started"


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
