"""Runs jobs on this machine, one after another; several such processes may share one run root.

A record is the only proof that a job is done. Whoever holds the lock of a job's folder computes
it, and a lock goes with its process, so a kill leaves nothing behind.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from lewel_bench.files import FAILURE, Held, Lock, is_held
from lewel_bench.harness.jobs import job as jobs
from lewel_bench.harness.jobs import signals
from lewel_bench.harness.jobs.device import device
from lewel_bench.harness.jobs.log import (
    Failed,
    clear_failure,
    describe_error,
    failure,
    write_failure,
)
from lewel_bench.harness.jobs.provenance import provenance
from lewel_bench.harness.jobs.variables import BEGAN, COMMAND
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.harness.rundir import LOCK, WORK, JobDir, RunDir
from lewel_bench.pretrain.report import Report, Stopped
from lewel_bench.results.record import NAME

POLL_S = 1.0  # between looks at what another process computes

Watch = Callable[[Job], Report]
Say = Callable[[str], None]


class Unfinished(Exception):
    """Some jobs failed; each is named with its reason. `mistakes`: all of them are something that
    the user can mend (ValueError, OSError), none is an error of ours."""

    def __init__(self, message: str, mistakes: bool) -> None:
        super().__init__(message)
        self.mistakes = mistakes


class Runner:
    """One `run`: what is left to do, and what went wrong."""

    def __init__(
        self, plan: Sequence[Job], root: Path, settings: MachineSettings, watch: Watch, say: Say
    ) -> None:
        self.root, self.settings, self.watch, self.say = root, settings, watch, say
        self.pending = [job for job in plan if not self._done(job.key)]
        self.computed: list[str] = []
        self.failed: dict[str, str] = {}  # key -> reason, of jobs that failed or never can start
        self.mistakes = True
        self.waiting_for = ""
        # of the whole `run`: what failed before this process was ready is not tried again
        self.began = float(os.environ.get(BEGAN, time.time()))

    def run(self) -> list[str]:
        """Compute every job without a record; returns the keys computed here.

        A job that another process works on is waited for; a failed one blocks those that need it
        and no others. Raises Stopped after saving when a signal came, Unfinished at the end when
        jobs failed.
        """
        for job in self.pending:
            RunDir(self.root).job(job.key).write_spec(job)
        while self._round():
            pass
        if self.failed:
            lines = "\n".join(f"  {reason}" for reason in self.failed.values())
            raise Unfinished(f"{len(self.failed)} jobs are not done:\n{lines}", self.mistakes)
        return self.computed

    def _round(self) -> bool:
        """Do one thing: compute a job, or wait; False when nothing is left."""
        pending_keys = {job.key for job in self.pending}
        self.pending = [j for j in self.pending if not self._settled(j, pending_keys)]
        if not self.pending:
            return False
        ready = [j for j in self.pending if all(self._done(need) for need in j.needs)]
        if not any(self._attempt(job) for job in ready):
            self._wait((ready or self.pending)[0])
        return True

    def _done(self, key: str) -> bool:
        return (self.root / key / NAME).exists()

    def _settled(self, job: Job, pending_keys: Collection[str]) -> bool:
        if job.key in self.failed:
            return True
        if self._done(job.key):
            if job.key not in self.computed:
                self.say(f"done by another process: {job.name} ({job.key})")
            return True
        for need in job.needs:
            lost = need not in pending_keys and not self._done(need)
            if lost or need in self.failed:
                why = ", which has no record and is not selected" if lost else ""
                name = f"{job.name} ({job.key})"
                self.failed[job.key] = f"{name}: not started, it needs {need}{why}"
                return True
        return False

    def _attempt(self, job: Job) -> bool:
        """Compute `job` unless somebody else does; whether it is settled now."""
        if signals.asked_to_stop():
            raise Stopped("nothing was running")
        try:
            with Lock(self.root / job.key / LOCK):
                if is_held(self.root / job.key / WORK):
                    return False  # its parent was killed, its processes go on
                if not self._done(job.key):
                    if reason := self._failed_elsewhere(job):
                        raise reason
                    self._compute(job)
                    self.computed.append(job.key)
        except Held:
            return False
        except Stopped:
            raise
        except Exception as error:
            mistake = isinstance(error, ValueError | OSError)
            self.mistakes = self.mistakes and mistake
            self.failed[job.key] = f"{job.name} ({job.key}): {describe_error(error)}"
            if not mistake:
                self.failed[job.key] += f"; see {self.root / job.key / FAILURE}"
            self.say(f"failed: {self.failed[job.key]}")
        return True

    def _failed_elsewhere(self, job: Job) -> Exception | None:
        """Why another process failed at a job while this one was there: it is not tried again."""
        return failure(self.root / job.key, self.began)

    def _compute(self, job: Job) -> None:
        processes = self.settings.processes or devices(self.settings)
        if processes == 1 or job.is_selection or self._alone(job):
            jobs.run(job, self.root, self.settings, self.watch(job), signals.asked_to_stop)
            return
        command = [sys.executable, "-m", "lewel_bench.harness.jobs.ranks", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "lewel_bench.harness.jobs.job"]
        command += [str(self.root / job.key), self.settings.model_dump_json()]
        command_line = provenance()["command"]
        environment = {**os.environ, COMMAND: command_line, "PYTHONSAFEPATH": "1"}
        clear_failure(self.root / job.key)
        began = time.time()
        code = _watched(command, environment)
        if self._done(job.key):
            return
        reason = failure(self.root / job.key)
        last = JobDir(self.root / job.key).last_events()[-1:]
        stopped = bool(last) and last[0]["event"] == "stopped" and last[0]["time"] >= began
        killed = code > 128 and not stopped and not signals.asked_to_stop()
        # after a kill the other ranks say only that they lost their peer
        if isinstance(reason, ValueError) or (reason is not None and not killed):
            raise reason
        if stopped:
            raise Stopped(last[0]["message"])
        if signals.asked_to_stop():
            raise Stopped("before its processes started")
        ended = Failed(f"torchrun ended with exit code {code} before the job saved")
        if killed:
            name = signal.Signals(code - 128).name
            why = f"one of its {processes} processes was ended by {name}"
            why += ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
            ended = Failed(JobDir(self.root / job.key).crash_message(began) or why)
        write_failure(self.root / job.key, ended)
        raise ended

    def _alone(self, job: Job) -> bool:
        """Whether one process does a job whatever was requested."""
        if job.protocol is None:
            return False
        on_cpu = device(self.settings).startswith("cpu")
        return job.protocol.needs_one_process(on_cpu=on_cpu)

    def _wait(self, job: Job) -> None:
        if signals.asked_to_stop():
            raise Stopped("another process continues")
        if self.waiting_for != job.key:
            self.say(f"another process computes {job.name} ({job.key}): waiting for its record")
            self.waiting_for = job.key
        time.sleep(POLL_S)


def _watched(command: list[str], environment: dict[str, str]) -> int:
    """The exit code of torchrun. The first signal that comes here is passed on, once: torchrun
    sends it to every process, and each saves."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    told = False
    while (code := process.poll()) is None:
        if signals.asked_to_stop() and not told:
            process.send_signal(signal.SIGTERM)
            told = True
        time.sleep(0.2)
    return code


def devices(settings: MachineSettings) -> int:
    """The processes of a job where none are asked for: one a device."""
    import torch

    return max(1, torch.cuda.device_count()) if settings.device in (None, "cuda") else 1
