"""A private SLURM for tests, and sweeps of trivial jobs on it."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lewel_bench.slurm import attempt, queue, sweep
from lewel_bench.slurm.plan import PlannedJob
from lewel_bench.slurm.profile import Profile, parse_profile
from lewel_bench.slurm.sweep import PlanningPass, Sweep

HERE = Path(__file__).parent / "slurm"
PROFILE = {
    "wake": False,
    "wake_delay_s": 0,
    "defaults": {"timeout_min": 10, "signal_delay_s": 30},
}


class Lab:
    """The private cluster of a test session."""

    def __init__(self, folder: Path, **settings: str) -> None:
        port = 18000 + os.getpid() % 500 * 20
        self.folder = folder
        self.environment = {
            **os.environ,
            "LAB_DIR": str(folder),
            "LAB_PORT": str(port),
            "LAB_ACCT": "none",
            "SLURM_CONF": str(folder / "slurm.conf"),
            **settings,
        }

    def call(self, script: str, *arguments: str) -> None:
        done = subprocess.run(
            [HERE / "lab" / script, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def up(self) -> None:
        self.call("slurm-up")

    def configure(self, **settings: str) -> None:
        """Restart with other settings, which persist."""
        self.environment |= settings
        self.up()

    def node(self, what: str, node: str) -> None:
        self.call("slurm-node", what, node)

    def controller(self, what: str) -> None:
        self.call("slurm-controller", what)

    def saved(self) -> float:
        """The time of the last saved job states; the controller saves changes every 5 s."""
        state = self.folder / "ctld" / "job_state"
        return state.stat().st_mtime if state.exists() else 0.0


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `true()` is true; repeats calls that the controller does not answer."""
    end = time.monotonic() + seconds

    def is_true() -> object:
        try:
            return true()
        except queue.SlurmUnreachable:
            return False

    while not is_true():
        assert time.monotonic() < end, f"it did not happen in time; {_queue()}"
        time.sleep(0.1)


def _queue() -> str:
    done = subprocess.run(["squeue", "-a", "-t", "all"], capture_output=True, text=True)
    return f"the queue is\n{done.stdout}{done.stderr}"


class Bench:
    """A run root with trivial jobs."""

    def __init__(self, root: Path, **profile: object) -> None:
        self.root = root
        self.changes = profile
        self.profile: Profile = parse_profile("lab", {**PROFILE, **profile}, "the test")
        self.jobs: list[PlannedJob] = []
        command = (str(HERE / "worker.py"), "{folder}")
        self.sweep = Sweep(root, self.profile, command)

    def add(self, key: str, kind: str = "light", needs: Sequence[str] = (), **spec: object) -> str:
        folder = self.root / key
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps({"ticks": 3, **spec}))
        self.jobs.append(PlannedJob(key, kind, tuple(needs)))
        return key

    def run(self, attended: bool = True) -> PlanningPass:
        return sweep.advance(self.sweep, self.jobs, attended=attended)

    def run_with_wakes(self) -> PlanningPass:
        """A run whose planning jobs make all later passes."""
        wake = tuple(self.planner_command()[1:])
        return sweep.advance(replace(self.sweep, wake=wake), self.jobs)

    def planner_command(self, *arguments: str) -> list[str]:
        given = {**PROFILE, **self.changes}
        jobs = [(job.key, job.kind, job.needs) for job in self.jobs]
        command = [str(HERE / "planner.py"), str(self.root), json.dumps(given), json.dumps(jobs)]
        return [self.profile.python or sys.executable, *command, *arguments]

    def planner_environment(self, **more: str) -> dict[str, str]:
        package = Path(sweep.__file__).parents[2]
        return {**os.environ, "PYTHONPATH": str(package), **more}

    def planner(
        self, rounds: str = "", who: Mapping[str, Any] | None = None, **more: str
    ) -> "subprocess.Popen[str]":
        """A run in its own process, perhaps as another user."""
        return subprocess.Popen(
            self.planner_command(*filter(None, [rounds])),
            **(who or {}),
            env=self.planner_environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def done(self) -> bool:
        keys = [job.key for job in self.jobs]
        return len(sweep.keys_with_record(self.root, keys, "record.json")) == len(keys)

    def idle(self) -> bool:
        return not any(t.is_alive for t in queue.tasks())

    def finish(self, seconds: float = 90) -> None:
        """Wait for every record, and for all SLURM jobs to end."""
        until(self.done, seconds)
        until(self.idle, 90)

    def ticks(self, key: str) -> int:
        path = self.root / key / "ticks.log"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def attempts(self, key: str) -> list[attempt.Attempt]:
        return attempt.history(self.root / key)

    def commits(self, key: str) -> list[str]:
        lines = (self.root / key / "commits.log").read_text().splitlines()
        return [line.split()[0] for line in lines]

    def check(self) -> None:
        """Check that every record equals that of an undisturbed job, and was committed once."""
        for job in self.jobs:
            spec = json.loads((self.root / job.key / "spec.json").read_text())
            value = job.key
            for _ in range(spec["ticks"]):
                value = hashlib.sha256(value.encode()).hexdigest()
            record = json.loads((self.root / job.key / "record.json").read_text())
            assert record == {"value": value}, job.key
            assert self.commits(job.key) == ["first"], job.key
