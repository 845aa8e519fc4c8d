"""The code inside a SLURM job: starts the process that computes each job, and supervises it.

submitit pickles only the name of `start` and two strings. Signals are passed on to the computing
process: on the warning before the time limit or a preemption it saves, and the SLURM job requeues
itself; on SIGTERM it saves too. Results are correct without either, by periodic checkpoints.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lewel_bench.files import FAILURE, create_json, newest_match, read_json
from lewel_bench.slurm import attempt, retry
from lewel_bench.slurm.attempt import Attempt
from lewel_bench.slurm.ledger import Ledger, Submission
from lewel_bench.slurm.retry import DISK_FULL, DONE, ERROR, FENCED, IO, KILLED, NAN, OOM, STOPPED

# Exit codes of the computing process; any other is an error.
CODES = {0: DONE, 75: STOPPED, 76: FENCED, 77: NAN, 78: OOM, 79: IO, 81: DISK_FULL}
EXIT = {outcome: code for code, outcome in CODES.items()}

EXIT_OTHER_RANK = 80

# set in a planning job, which no user watches: the file of its submission
WAKE = "LEWEL_BENCH_WAKE"
# file descriptors of a computing process: to its TaskRunner, and from it for the next jobs
CHANNEL = "LEWEL_BENCH_CHANNEL"
READY, NEXT = b"r", b"n"  # messages to the TaskRunner: the first step is done; the job is done
HALVINGS = "LEWEL_BENCH_HALVINGS"  # how often to halve the micro-batch
NO_MESSAGE = "see the log"  # in the message of an attempt that recorded none
POLL_S, CLAIM_CHECK_S, HEARTBEAT_S = 0.05, 1.0, 15.0
EXIT_TIMEOUT_S = 30.0  # for a process to end once its pack is done
REQUEUE_WAIT_S = 60.0  # for SLURM to end a job that has requeued itself


def start(root: str, uid: str) -> None:
    """Compute the jobs of this task, and end the process with the task's exit code.

    SystemExit keeps submitit from pickling a result: one that a killed attempt left half-written
    would make every later attempt fail.
    """
    ledger = Ledger(Path(root))
    submission = ledger.submission(uid)
    if folder := os.environ.get("TMPDIR"):
        with suppress(OSError):
            Path(folder).mkdir(parents=True, exist_ok=True)
    if submission.wakes:
        environment = {**os.environ, WAKE: str(ledger.intent_path(uid))}
        sys.exit(subprocess.call([sys.executable, *submission.command], env=environment))
    sys.exit(TaskRunner(ledger, submission).run())


class TaskRunner:
    """Runs one task of a submission, on one of its ranks."""

    def __init__(self, ledger: Ledger, submission: Submission) -> None:
        self.ledger, self.submission = ledger, submission
        self.task = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
        self.rank = int(os.environ.get("SLURM_PROCID", "0"))
        self.world = int(os.environ.get("SLURM_NTASKS", "1"))
        self.child: subprocess.Popen[bytes] | None = None
        self.from_child = self.to_child = -1  # ends of pipes
        self.signals: list[int] = []
        self.progress = False
        # instead of submitit's handlers, which ignore SIGTERM and count requeues themselves
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def run(self) -> int:
        """Run the jobs of the task; its exit code, 0 if every job has a record or was stopped."""
        failed = 0
        for key in self.submission.tasks[self.task]:
            if self.signals:
                break
            folder = self.ledger.root / key
            if (folder / self.submission.record).exists():
                continue
            outcome, code = self._run_job(folder)
            self.progress = self.progress or outcome == DONE
            if outcome not in (DONE, STOPPED):
                failed = failed or code
                if self.world > 1:
                    break  # the other ranks would wait for this one for ever
        self._end_child()
        if self.signals and self.rank == 0 and not self._is_done():
            self._request_requeue()
        return failed

    def _is_done(self) -> bool:
        """Whether every job of this task has a record."""
        keys = self.submission.tasks[self.task]
        return all((self.ledger.root / key / self.submission.record).exists() for key in keys)

    def _run_job(self, folder: Path) -> tuple[str, int]:
        current = None
        if self.rank == 0:
            submission = self.submission
            current = attempt.begin(
                folder, submission.uid, self.task, self.world, submission.halvings, submission.marks
            )
            # of an earlier attempt; only the first rank that fails writes this file
            with suppress(OSError):
                (folder / FAILURE).unlink()
        began = time.time()
        if not self._hand_over(folder, current):
            self._start(folder, current)
        code, current = self._wait(folder, current)
        outcome, message = self._outcome(folder, code, began)
        if outcome != DONE:
            self._end_child()
        if self.world > 1 and outcome not in (DONE, STOPPED, FENCED):
            outcome, message = self._first_failure(folder, outcome, message)
        if current:
            if newest_match(folder, self.submission.marks) != current.mark:
                self.progress = True
            with suppress(OSError):  # a full disk must not hide what happened
                attempt.end(folder, current, outcome, message)
        with suppress(OSError):
            print(f"{folder.name}: {outcome}{message and ': '}{message}", flush=True)
        return outcome, code if 0 < code < 128 else 1

    def _start(self, folder: Path, current: Attempt | None) -> None:
        """Start the process that computes a job, and perhaps the next jobs of its pack."""
        self._end_child()
        self.from_child, child_out = os.pipe()
        child_in, self.to_child = os.pipe()
        os.set_blocking(self.from_child, False)
        words = (word.replace("{folder}", str(folder)) for word in self.submission.command)
        self.child = subprocess.Popen(
            [sys.executable, *words],
            env={**self._environment(folder, current), CHANNEL: f"{child_out},{child_in}"},
            pass_fds=(child_out, child_in),
        )
        os.close(child_out)
        os.close(child_in)
        if self.signals:  # it arrived while the process was started
            self.child.send_signal(self.signals[0])

    def _hand_over(self, folder: Path, current: Attempt | None) -> bool:
        """Pass the next job of the pack to the process that finished the previous one, since
        importing torch takes longer than many jobs. Returns whether such a process took it."""
        if self.child is None or self.child.poll() is not None or current is None:
            return False
        words = {"folder": str(folder), "claim": _claim(folder, current)}
        try:
            os.write(self.to_child, json.dumps(words).encode() + b"\n")
        except BrokenPipeError:
            return False
        return True

    def _end_child(self) -> None:
        """End the process that waits for another job, if any."""
        for end in (self.from_child, self.to_child):
            if end != -1:
                os.close(end)
        self.from_child = self.to_child = -1
        if self.child is not None:
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(EXIT_TIMEOUT_S)
            self.child.kill()
            self.child.wait()
            self.child = None

    def _wait(self, folder: Path, current: Attempt | None) -> tuple[int, Attempt | None]:
        """Wait for the job; the exit code, 0 if the process waits for another job, and the attempt.
        Kills the process if the claim is lost or another rank has failed."""
        assert self.child
        checked = beaten = time.monotonic()
        while True:
            code = None
            with suppress(subprocess.TimeoutExpired):
                code = self.child.wait(POLL_S)
            messages = b""
            with suppress(BlockingIOError):
                messages = os.read(self.from_child, 64)
            if READY in messages and current and not current.ready:
                with suppress(OSError):
                    current = attempt.record_first_step(folder, current)
            if code is not None or NEXT in messages:
                return code or 0, current
            now = time.monotonic()
            if now - checked > CLAIM_CHECK_S:
                checked = now
                lost = current and not attempt.has_claim(folder, current.name)
                if lost or self._other_rank_failed(folder):
                    self.child.kill()
                    self.child.wait()
                    return EXIT[FENCED] if lost else EXIT_OTHER_RANK, current
            if current and now - beaten > HEARTBEAT_S:
                beaten = now
                with suppress(OSError):
                    attempt.heartbeat(folder, current)

    def _outcome(self, folder: Path, code: int, began: float) -> tuple[str, str]:
        if code == EXIT_OTHER_RANK:
            return KILLED, "another rank failed"
        if (folder / self.submission.record).exists() and code != EXIT[FENCED]:
            return DONE, ""
        if code < 0:
            return KILLED, f"by {signal.Signals(-code).name}"
        outcome = CODES.get(code, ERROR)
        if outcome == DONE:  # an exit code of 0 without a record
            if self.signals or self.rank:
                return (STOPPED if self.signals else DONE), ""
            return ERROR, "the process ended without writing its record"
        if outcome == STOPPED:
            return outcome, retry.TIME_LIMIT if self._hit_time_limit() else ""
        if outcome == FENCED:
            return outcome, ""
        failure = read_json(folder / FAILURE) if _is_since(folder / FAILURE, began) else None
        if failure is None and outcome == DISK_FULL:
            return outcome, f"no space left on the file system of {folder}, or quota exceeded"
        return outcome, str((failure or {}).get("message", f"exit code {code}; {NO_MESSAGE}"))

    def _failure_note(self, folder: Path) -> Path:
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        return folder / "ranks" / f"{self.submission.uid}-{self.task}-{restart}.json"

    def _other_rank_failed(self, folder: Path) -> bool:
        """Whether another rank has failed: this rank would wait for it in a collective."""
        return self.world > 1 and self._failure_note(folder).exists()

    def _first_failure(self, folder: Path, outcome: str, message: str) -> tuple[str, str]:
        """Outcome and message of the first rank that failed; other failures follow from it."""
        note = self._failure_note(folder)
        if self.rank == 0 and outcome == ERROR:
            # the failure of a killed rank is known at once, its peers raise a little later
            time.sleep(1)
        with suppress(OSError):
            create_json(note, {"outcome": outcome, "message": f"rank {self.rank}: {message}"})
        first = read_json(note) or {}
        return str(first.get("outcome", outcome)), str(first.get("message", message))

    def _environment(self, folder: Path, current: Attempt | None) -> Mapping[str, str]:
        more = {HALVINGS: str(self.submission.halvings)}
        if current:
            more[attempt.CLAIM_VARIABLE] = _claim(folder, current)
        if self.world > 1:
            more |= _torch()
        return {**os.environ, **more}

    def _hit_time_limit(self) -> bool:
        """Whether the signal warned of the time limit; a preemption sends the same signal."""
        warned = bool(self.signals) and self.signals[0] != signal.SIGTERM
        return warned and self.rank == 0 and not _is_preempted(attempt.slurm_job_id())

    def _open_attempts(self) -> list[list[Attempt]]:
        """The attempts since the last retry at each job of this task without a record."""
        root, record = self.ledger.root, self.submission.record
        keys = [
            key for key in self.submission.tasks[self.task] if not (root / key / record).exists()
        ]
        return [retry.since_retry(attempt.history(root / key)) for key in keys]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.child and self.child.poll() is None:
            self.child.send_signal(number)

    def _request_requeue(self) -> None:
        """Requeue this SLURM job, unless it was cancelled or made no progress."""
        warned = self.signals[0] != signal.SIGTERM
        if not self.submission.requeue or (warned and not self.progress):
            return
        most = max((len(retry.short_allocations(a)) for a in self._open_attempts()), default=0)
        if most >= self.submission.max_attempts:
            return  # the planner gives the job up, and reports why
        job = attempt.slurm_job_id()
        if not warned and not _is_preempted(job):
            return  # cancelled, or requeued by SLURM itself
        try:
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
            problem = done.stderr.strip() if done.returncode else ""
        except OSError as error:  # a container without SLURM's commands
            problem = str(error)
        if problem:
            print(f"scontrol requeue {job}: {problem}", file=sys.stderr, flush=True)
            return
        print(f"saved; requeued SLURM job {job}", flush=True)
        time.sleep(REQUEUE_WAIT_S)


def _claim(folder: Path, current: Attempt) -> str:
    return f"{folder}:{current.name}"


class Channel:
    """The messages of a computing process to its TaskRunner; does nothing without one."""

    def __init__(self) -> None:
        # removed: child processes do not inherit these file descriptors
        ends = os.environ.pop(CHANNEL, "-1,-1").split(",")
        self.to_runner, self.from_runner = map(int, ends)
        self.is_ready = False

    def ready(self) -> None:
        """Report that the first step of the job is done."""
        if not self.is_ready:
            self.is_ready = True
            self._send(READY)

    def next(self) -> Path | None:
        """Report that the job is done; the folder of the next job, whose claim is then in the
        environment, or None."""
        self.is_ready = False
        if self.from_runner == -1 or not self._send(NEXT):
            return None
        line = bytearray()
        while not line.endswith(b"\n"):
            if not (part := os.read(self.from_runner, 4096)):
                return None
            line += part
        words = json.loads(line)
        os.environ[attempt.CLAIM_VARIABLE] = words["claim"]
        return Path(words["folder"])

    def _send(self, message: bytes) -> bool:
        if self.to_runner == -1:
            return False
        try:
            os.write(self.to_runner, message)
        except BrokenPipeError:
            return False
        return True


def _torch() -> dict[str, str]:
    """submitit's environment for torch.distributed, as torchrun would give it."""
    from submitit.helpers import TorchDistributedEnvironment

    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    # every rank computes the same port; it changes with a restart, when the old one may be in use,
    # and the kernel assigns none below 32768
    seed = os.environ["SLURM_JOB_ID"] + os.environ.get("SLURM_RESTART_COUNT", "0")
    os.environ["MASTER_PORT"] = str(20000 + int(seed) * 7919 % 12000)
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    # torchrun's default; the same number of threads gives the same results
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return {"OMP_NUM_THREADS": threads, **{name: os.environ[name] for name in names}}


def _is_preempted(job: str) -> bool:
    """Whether SLURM is preempting this job: scancel, requeue and the failure of another rank send
    SIGTERM too."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "job", "-o", job], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return shows_preemption(shown.stdout)


def shows_preemption(shown: str) -> bool:
    """Whether the output of `scontrol show job -o` shows a preemption. Without one the time is
    missing, None or Unknown."""
    time = re.search(r"\bPreemptTime=(?!None|Unknown)\S", shown)
    return "JobState=RUNNING" in shown and time is not None


def _is_since(path: Path, began: float) -> bool:
    try:
        return path.stat().st_mtime >= began - 1
    except OSError:
        return False


def probe(root: str, uid: str) -> None:
    """The test job of `doctor`: writes down whether a node sees the shared folder, this package,
    the data and SLURM's commands."""
    folder = Path(root)
    questions: dict[str, Any] = json.loads((folder / f"{uid}.asked.json").read_text())
    answer = {
        "node": os.environ.get("SLURMD_NODENAME", ""),
        "python": sys.version.split()[0],
        "missing": [path for path in questions["paths"] if not Path(path).exists()],
        "lacks": [name for name in questions["commands"] if shutil.which(name) is None],
    }
    create_json(folder / f"{uid}.answer.json", answer)
