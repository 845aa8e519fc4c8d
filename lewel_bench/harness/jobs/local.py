"""Runs jobs on this machine: hands their keys to worker processes and follows what they do.

A record is the only proof that a job is done. The process that computes a job holds the lock of its
folder, so several runs may share a run root, and a kill leaves nothing behind.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol

from lewel_bench.files import FAILURE
from lewel_bench.harness.jobs import signals
from lewel_bench.harness.jobs.variables import COMMAND
from lewel_bench.harness.jobs.worker import Answer, signal_message
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.harness.request import typed_command
from lewel_bench.harness.rundir import Events, JobDir, RunDir
from lewel_bench.pretrain.report import Report, Stopped

POLL_S = 0.5
RETRY_S = 1.0  # between looks at what another process computes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """A job as the runner knows it: its key, name, the keys it needs, its estimated length in any
    unit, and the number of its processes."""

    key: str
    name: str
    needs: tuple[str, ...] = ()
    length: float = 1.0
    processes: int = 1


class View(Protocol):
    """Where a run shows its progress."""

    def start(self, name: str) -> Report:
        """What the events of a job that starts are passed to."""

    def advance(self, done: int, total: int, left_s: float | None) -> None:
        """Show how many jobs are done, and the seconds left as far as they are known."""


class Unfinished(Exception):
    """Some jobs failed; each is named with its reason. `mistakes`: all of them are something that
    the user can fix (ValueError, OSError), none is an error of ours."""

    def __init__(self, message: str, mistakes: bool) -> None:
        super().__init__(message)
        self.mistakes = mistakes


class Worker:
    """A process that computes the jobs whose keys it is given (`jobs/worker.py`); its answers go to
    a queue that all workers share."""

    def __init__(
        self, root: Path, settings: MachineSettings, answers: "SimpleQueue[tuple[Worker, Answer]]"
    ) -> None:
        self.root, self.answers = root, answers
        environment = {**os.environ, COMMAND: os.environ.get(COMMAND) or typed_command()}
        if settings.threads:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        command = [sys.executable, "-m", "lewel_bench.harness.jobs.worker"]
        command += [str(root), settings.model_dump_json()]
        # a signal that comes before the worker listens waits until it does
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
        try:
            self.process = subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        Thread(target=self._read, daemon=True).start()

    def start(self, key: str, processes: int) -> None:
        """Have it compute a job in so many processes."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has ended, as `_read` tells
            print(key, processes, file=self.process.stdin, flush=True)

    def stop(self) -> None:
        """Ask it to save and stop."""
        self.process.terminate()

    def close(self) -> None:
        """End it once it has answered."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.answers.put((self, Answer(*json.loads(line))))
        code = self.process.wait()  # of no interest unless it has a job
        how = f"was ended by {signal_message(-code)}" if code < 0 else f"ended with code {code}"
        self.answers.put((self, Answer("failed", f"its process {how}")))


class Runner:
    """One `run`: what is left to do, and what went wrong."""

    def __init__(
        self,
        tasks: Sequence[Task],
        root: Path,
        settings: MachineSettings,
        view: View,
        say: Say,
    ) -> None:
        self.root, self.settings, self.view, self.say = root, settings, view, say
        self.worker: type[Worker] = Worker
        self.tasks = {task.key: task for task in tasks}
        self.pending = [task for task in tasks if not self._is_done(task.key)]
        self.running: dict[Worker, tuple[Task, Events]] = {}
        self.idle: list[Worker] = []
        self.answers: SimpleQueue[tuple[Worker, Answer]] = SimpleQueue()
        self.busy: dict[str, float] = {}  # key -> when another process was seen to compute it
        self.computed: list[str] = []
        self.failed: dict[str, str] = {}  # key -> reason, of jobs that failed or never can start
        self.mistakes = True
        self.stopped = ""  # why, once a signal has come
        self.waiting_for = ""
        self.began = time.time()

    def run(self) -> list[str]:
        """Compute every job without a record; returns the keys computed here.

        A job that another process works on is waited for; a failed one blocks those that need it
        and no others. Raises Stopped after saving when a signal came, Unfinished at the end when
        jobs failed.
        """
        self._advance()
        try:
            while self._round():
                pass
        finally:
            for worker in (*self.idle, *self.running):
                worker.close()
        if self.stopped:
            raise Stopped(self.stopped)
        if self.failed:
            lines = "\n".join(f"  {reason}" for reason in self.failed.values())
            raise Unfinished(f"{len(self.failed)} jobs are not done:\n{lines}", self.mistakes)
        return self.computed

    def _round(self) -> bool:
        """Start what can start and take answers; False when nothing is left to do or wait for."""
        if signals.asked_to_stop() and not self.stopped:
            self.stopped = (
                "another process continues" if self.waiting_for else "nothing was running"
            )
            for worker in self.running:
                worker.stop()
        if not self.stopped:
            self._settle()
            self._start()
        if not self.running and (self.stopped or not self.pending):
            return False
        with suppress(Empty):
            self._take(*self.answers.get(timeout=POLL_S))
        for _, events in self.running.values():
            events.follow()
        return True

    def _is_done(self, key: str) -> bool:
        return RunDir(self.root).job(key).has_record()

    def _settle(self) -> None:
        """Take the jobs out of `pending` that others have finished, or that can never start."""
        active = {task.key for task, _ in self.running.values()}
        keys = {task.key for task in self.pending} | active
        for task in list(self.pending):
            name = f"{task.name} ({task.key})"
            if self._is_done(task.key):
                self.say(f"done by another process: {name}")
                self.pending.remove(task)
                continue
            for need in task.needs:
                is_lost = need not in keys and not self._is_done(need)
                if is_lost or need in self.failed:
                    is_unknown = is_lost and need not in self.failed
                    why = ", which has no record and is not selected" if is_unknown else ""
                    self.failed[task.key] = f"{name}: not started, it needs {need}{why}"
                    self.pending.remove(task)
                    break

    def _start(self) -> None:
        """Give every idle worker a job, the longest first where several run at once."""
        ready = [task for task in self.pending if all(map(self._is_done, task.needs))]
        if self.settings.jobs > 1:
            ready.sort(key=lambda task: -task.length)
        for task in ready:
            if self.busy.get(task.key, 0.0) > time.monotonic() - RETRY_S:
                continue
            if not self.idle and len(self.running) < self.settings.jobs:
                self.idle.append(self.worker(self.root, self.settings, self.answers))
            if not self.idle:
                return
            if reason := self._failed_elsewhere(task):
                self.pending.remove(task)
                self._fail(task, *reason)
                continue
            self.pending.remove(task)
            worker = self.idle.pop()
            self.running[worker] = (
                task,
                Events(RunDir(self.root).job(task.key), self.view.start(task.name)),
            )
            worker.start(task.key, task.processes)

    def _failed_elsewhere(self, task: Task) -> tuple[str, bool] | None:
        """Why another process has failed at a job since this one began: it is not tried again."""
        folder = self.root / task.key
        if task.key not in self.busy and not (folder / FAILURE).exists():
            return None
        from lewel_bench.harness.jobs.log import describe_error, failure

        error = failure(folder, self.began)
        return (describe_error(error), isinstance(error, ValueError)) if error else None

    def _take(self, worker: Worker, answer: Answer) -> None:
        """Take the answer of a worker to its job."""
        if worker not in self.running:
            return  # it ended after it had answered
        task, events = self.running.pop(worker)
        events.follow()
        if worker.process.poll() is None:
            self.idle.append(worker)
        elif self.stopped:
            self.pending.insert(0, task)
            return
        else:
            from lewel_bench.harness.jobs.log import Failed, write_failure

            answer = answer._replace(message=self._crash_message(task) or answer.message)
            write_failure(self.root / task.key, Failed(answer.message))
        if answer.outcome == "busy":
            self._wait(task)
        elif answer.outcome == "stopped":
            self.stopped = answer.message
            self.pending.insert(0, task)
        elif answer.outcome == "failed":
            self._fail(task, answer.message, answer.is_mistake)
        elif answer.outcome == "computed":
            self.computed.append(task.key)
        else:
            self.say(f"done by another process: {task.name} ({task.key})")
        self._advance()

    def _crash_message(self, task: Task) -> str:
        return JobDir(self.root / task.key).crash_message(self.began)

    def _wait(self, task: Task) -> None:
        self.busy[task.key] = time.monotonic()
        self.pending.insert(0, task)
        if self.waiting_for != task.key and not self.running:
            self.say(f"another process computes {task.name} ({task.key}): waiting for its record")
            self.waiting_for = task.key

    def _fail(self, task: Task, message: str, is_mistake: bool) -> None:
        self.mistakes = self.mistakes and is_mistake
        where = "" if is_mistake else f"; see {self.root / task.key / FAILURE}"
        self.failed[task.key] = f"{task.name} ({task.key}): {message}{where}"
        self.say(f"failed: {self.failed[task.key]}")

    def _advance(self) -> None:
        """Show what is done, and how long the rest takes if it goes on as before."""
        unfinished = [*self.pending, *(task for task, _ in self.running.values())]
        done = [self.tasks[key].length for key in self.computed]
        left = sum(task.length for task in unfinished)
        settled = len(self.tasks) - len(unfinished) - len(self.failed)
        seconds = (time.time() - self.began) * left / sum(done) if done else None
        self.view.advance(settled, len(self.tasks), seconds)
