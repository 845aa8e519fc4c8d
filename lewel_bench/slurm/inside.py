"""What runs inside a job: starts the process that computes each cell, and watches over it.

`start` is all that submitit pickles, by its name, with two strings. The process that computes gets
the signals: the warning before the time limit or a preemption makes it save, and the job asks to
be started again; a SIGTERM makes it save too. Neither is needed for a correct result: periodic
checkpoints are.
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
from lewel_bench.slurm.retry import DONE, ERROR, FENCED, FULL, IO, KILLED, NAN, OOM, STOPPED

# What the process that computes says with its exit code; with any other it failed.
CODES = {0: DONE, 75: STOPPED, 76: FENCED, 77: NAN, 78: OOM, 79: IO, 81: FULL}
EXIT = {outcome: code for code, outcome in CODES.items()}

EXIT_FALLEN = 80

# set where a planner was woken by SLURM and no person watches: the file of its submission
WAKE = "LEWEL_BENCH_WAKE"
# open files of a process that computes: to its Watch, and from it for the next cells of a pack
CHANNEL = "LEWEL_BENCH_CHANNEL"
READY, NEXT = b"r", b"n"  # what it says there: the first step is done; the cell is done
HALVINGS = "LEWEL_BENCH_HALVINGS"  # how often the micro-batch is to be halved
UNEXPLAINED = "see its log"  # in the message of an attempt that left none
POLL_S, CLAIM_S, BEAT_S = 0.05, 1.0, 15.0
PART_S = 30.0  # how long a process has to end once its pack is done
LEAVE_S = 60.0  # how long a job that asked to be started again waits for SLURM to end it


def start(root: str, uid: str) -> None:
    """Compute the cells of this task; leaves the process with its exit code.

    It leaves by SystemExit, so submitit pickles no result: a result that a killed attempt left
    half-written would be refused for ever after.
    """
    ledger = Ledger(Path(root))
    submission = ledger.one(uid)
    if folder := os.environ.get("TMPDIR"):
        with suppress(OSError):
            Path(folder).mkdir(parents=True, exist_ok=True)
    if submission.wakes:
        environment = {**os.environ, WAKE: str(ledger.intent(uid))}
        sys.exit(subprocess.call([sys.executable, *submission.command], env=environment))
    sys.exit(Watch(ledger, submission).run())


class Watch:
    """One task of a submission, on one of its ranks."""

    def __init__(self, ledger: Ledger, submission: Submission) -> None:
        self.ledger, self.submission = ledger, submission
        self.task = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
        self.rank = int(os.environ.get("SLURM_PROCID", "0"))
        self.world = int(os.environ.get("SLURM_NTASKS", "1"))
        self.child: subprocess.Popen[bytes] | None = None
        self.heard = self.told = -1  # ends of pipes: what the child says, what it is told
        self.signals: list[int] = []
        self.progress = False
        # over submitit's: it would sit on a SIGTERM, and keep a budget of its own
        for one in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1):
            signal.signal(one, self._receive)

    def run(self) -> int:
        """The exit code of the task: 0 when every cell has a record."""
        failed = 0
        for key in self.submission.tasks[self.task]:
            if self.signals:
                break
            folder = self.ledger.root / key
            if (folder / self.submission.record).exists():
                continue
            outcome, code = self._cell(folder)
            self.progress = self.progress or outcome == DONE
            if outcome not in (DONE, STOPPED):
                failed = failed or code
                if self.world > 1:
                    break  # the others would wait for this rank for ever
        self._part()
        if self.signals and self.rank == 0 and not self._done():
            self._ask_for_more()
        return failed

    def _done(self) -> bool:
        """Whether every cell of this task has a record."""
        keys = self.submission.tasks[self.task]
        return all((self.ledger.root / key / self.submission.record).exists() for key in keys)

    def _cell(self, folder: Path) -> tuple[str, int]:
        mine = None
        if self.rank == 0:
            submission = self.submission
            mine = attempt.begin(
                folder, submission.uid, self.task, self.world, submission.halvings, submission.marks
            )
            with suppress(OSError):  # of an attempt before; the first rank that fails writes it
                (folder / FAILURE).unlink()
        began = time.time()
        if not self._hand_on(folder, mine):
            self._start(folder, mine)
        code, mine = self._wait(folder, mine)
        outcome, message = self._outcome(folder, code, began)
        if outcome != DONE:
            self._part()
        if self.world > 1 and outcome not in (DONE, STOPPED, FENCED):
            outcome, message = self._blame(folder, outcome, message)
        if mine:
            if newest_match(folder, self.submission.marks) != mine.mark:
                self.progress = True
            with suppress(OSError):  # a full disk must not hide what happened
                attempt.end(folder, mine, outcome, message)
        with suppress(OSError):
            print(f"{folder.name}: {outcome}{message and ': '}{message}", flush=True)
        return outcome, code if 0 < code < 128 else 1

    def _start(self, folder: Path, mine: Attempt | None) -> None:
        """Start the process that computes a cell, and those of its pack after it that it takes."""
        self._part()
        self.heard, says = os.pipe()
        asks, self.told = os.pipe()
        os.set_blocking(self.heard, False)
        words = (word.replace("{folder}", str(folder)) for word in self.submission.command)
        self.child = subprocess.Popen(
            [sys.executable, *words],
            env={**self._environment(folder, mine), CHANNEL: f"{says},{asks}"},
            pass_fds=(says, asks),
        )
        os.close(says)
        os.close(asks)
        if self.signals:  # it came while the process was started
            self.child.send_signal(self.signals[0])

    def _hand_on(self, folder: Path, mine: Attempt | None) -> bool:
        """Give the next cell of the pack to the process that has done the one before: importing
        torch takes longer than many a cell. Whether there is one, and it can take it."""
        if self.child is None or self.child.poll() is not None or mine is None:
            return False
        words = {"folder": str(folder), "claim": _claim(folder, mine)}
        try:
            os.write(self.told, json.dumps(words).encode() + b"\n")
        except BrokenPipeError:
            return False
        return True

    def _part(self) -> None:
        """Have a process that waits for another cell end."""
        for end in (self.heard, self.told):
            if end != -1:
                os.close(end)
        self.heard = self.told = -1
        if self.child is not None:
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(PART_S)
            self.child.kill()
            self.child.wait()
            self.child = None

    def _wait(self, folder: Path, mine: Attempt | None) -> tuple[int, Attempt | None]:
        """The exit code of the process, 0 when it waits for another cell, and the attempt; it is
        killed when the claim is lost."""
        assert self.child
        looked = beaten = time.monotonic()
        while True:
            code = None
            with suppress(subprocess.TimeoutExpired):
                code = self.child.wait(POLL_S)
            said = b""
            with suppress(BlockingIOError):
                said = os.read(self.heard, 64)
            if READY in said and mine and not mine.ready:
                with suppress(OSError):
                    mine = attempt.has_begun(folder, mine)
            if code is not None or NEXT in said:
                return code or 0, mine
            now = time.monotonic()
            if now - looked > CLAIM_S:
                looked = now
                lost = mine and not attempt.holds(folder, mine.name)
                if lost or self._fallen(folder):
                    self.child.kill()
                    self.child.wait()
                    return EXIT[FENCED] if lost else EXIT_FALLEN, mine
            if mine and now - beaten > BEAT_S:
                beaten = now
                with suppress(OSError):
                    attempt.beat(folder, mine)

    def _outcome(self, folder: Path, code: int, began: float) -> tuple[str, str]:
        if code == EXIT_FALLEN:
            return KILLED, "another rank had ended"
        if (folder / self.submission.record).exists() and code != EXIT[FENCED]:
            return DONE, ""
        if code < 0:
            return KILLED, f"by {signal.Signals(-code).name}"
        said = CODES.get(code, ERROR)
        if said == DONE:  # an exit code of 0 without a record
            if self.signals or self.rank:
                return (STOPPED if self.signals else DONE), ""
            return ERROR, "it ended without writing its record"
        if said == STOPPED:
            return said, retry.TIME_LIMIT if self._limited() else ""
        if said == FENCED:
            return said, ""
        failure = read_json(folder / FAILURE) if _since(folder / FAILURE, began) else None
        if failure is None and said == FULL:
            return said, f"no space left on the file system of {folder}, or over quota"
        return said, str((failure or {}).get("message", f"exit code {code}; {UNEXPLAINED}"))

    def _note(self, folder: Path) -> Path:
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        return folder / "ranks" / f"{self.submission.uid}-{self.task}-{restart}.json"

    def _fallen(self, folder: Path) -> bool:
        """Whether another rank has ended badly: this one would wait for it in a collective."""
        return self.world > 1 and self._note(folder).exists()

    def _blame(self, folder: Path, outcome: str, message: str) -> tuple[str, str]:
        """How the first rank to fall ended; what the others say follows from it."""
        note = self._note(folder)
        if self.rank == 0 and outcome == ERROR:
            time.sleep(1)  # a rank that was killed is seen at once, its peers raise a little later
        with suppress(OSError):
            create_json(note, {"outcome": outcome, "message": f"rank {self.rank}: {message}"})
        first = read_json(note) or {}
        return str(first.get("outcome", outcome)), str(first.get("message", message))

    def _environment(self, folder: Path, mine: Attempt | None) -> Mapping[str, str]:
        more = {HALVINGS: str(self.submission.halvings)}
        if mine:
            more[attempt.VARIABLE] = _claim(folder, mine)
        if self.world > 1:
            more |= _torch()
        return {**os.environ, **more}

    def _limited(self) -> bool:
        """Whether the warning was of the time limit; a preemption comes with the same signal."""
        warned = bool(self.signals) and self.signals[0] != signal.SIGTERM
        return warned and self.rank == 0 and not _preempted(attempt.this_job())

    def _left(self) -> list[list[Attempt]]:
        """The attempts, since the last retry, at each cell of this task without a record."""
        root, record = self.ledger.root, self.submission.record
        keys = [
            key for key in self.submission.tasks[self.task] if not (root / key / record).exists()
        ]
        return [retry.since_retry(attempt.history(root / key)) for key in keys]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.child and self.child.poll() is None:
            self.child.send_signal(number)

    def _ask_for_more(self) -> None:
        """Have SLURM start this job again, unless it ends for good or made no progress."""
        warned = self.signals[0] != signal.SIGTERM
        if not self.submission.requeue or (warned and not self.progress):
            return
        if any(len(retry.unpaid(since)) >= self.submission.max_attempts for since in self._left()):
            return  # the planner says so, and gives it up
        job = attempt.this_job()
        if not warned and not _preempted(job):
            return  # cancelled, or SLURM starts it again by itself
        try:
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
            refused = done.stderr.strip() if done.returncode else ""
        except OSError as error:  # a container without SLURM's commands
            refused = str(error)
        if refused:
            print(f"scontrol requeue {job}: {refused}", file=sys.stderr, flush=True)
            return
        print(f"saved; asked SLURM to start {job} again", flush=True)
        time.sleep(LEAVE_S)


def _claim(folder: Path, mine: Attempt) -> str:
    return f"{folder}:{mine.name}"


class Channel:
    """What a process that computes says to its Watch; mute where it has none."""

    def __init__(self) -> None:
        # taken out: a process that it starts has not these files
        ends = os.environ.pop(CHANNEL, "-1,-1").split(",")
        self.says, self.asks = map(int, ends)
        self.is_ready = False

    def ready(self) -> None:
        """Say that the first step of the cell is done."""
        if not self.is_ready:
            self.is_ready = True
            self._say(READY)

    def next(self) -> Path | None:
        """Say that the cell is done; the folder of the next, with its claim in the environment."""
        self.is_ready = False
        if self.asks == -1 or not self._say(NEXT):
            return None
        line = bytearray()
        while not line.endswith(b"\n"):
            if not (part := os.read(self.asks, 4096)):
                return None
            line += part
        words = json.loads(line)
        os.environ[attempt.VARIABLE] = words["claim"]
        return Path(words["folder"])

    def _say(self, word: bytes) -> bool:
        if self.says == -1:
            return False
        try:
            os.write(self.says, word)
        except BrokenPipeError:
            return False
        return True


def _torch() -> dict[str, str]:
    """submitit's environment for torch.distributed, as torchrun would give it."""
    from submitit.helpers import TorchDistributedEnvironment

    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    # every rank computes the same port; one that changes with a restart is not still taken, and
    # below 32768 the kernel does not hand ports out
    seed = os.environ["SLURM_JOB_ID"] + os.environ.get("SLURM_RESTART_COUNT", "0")
    os.environ["MASTER_PORT"] = str(20000 + int(seed) * 7919 % 12000)
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    # torchrun's default for several processes; equal threads make equal results
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return {"OMP_NUM_THREADS": threads, **{name: os.environ[name] for name in names}}


def _preempted(job: str) -> bool:
    """Whether SLURM has this job in a preemption's grace time: a SIGTERM comes with scancel, a
    requeue and the fall of another rank too."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "job", "-o", job], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return in_grace(shown.stdout)


def in_grace(shown: str) -> bool:
    """Whether `scontrol show job -o` shows a preemption; it leaves the time out, or writes None or
    Unknown, where there was none."""
    time = re.search(r"\bPreemptTime=(?!None|Unknown)\S", shown)
    return "JobState=RUNNING" in shown and time is not None


def _since(path: Path, began: float) -> bool:
    try:
        return path.stat().st_mtime >= began - 1
    except OSError:
        return False


def probe(root: str, uid: str) -> None:
    """What `doctor` asks of a node: that it sees the shared folder, this package, the data and
    SLURM's commands."""
    folder = Path(root)
    asked: dict[str, Any] = json.loads((folder / f"{uid}.asked.json").read_text())
    found = {
        "node": os.environ.get("SLURMD_NODENAME", ""),
        "python": sys.version.split()[0],
        "missing": [path for path in asked["paths"] if not Path(path).exists()],
        "lacks": [name for name in asked["commands"] if shutil.which(name) is None],
    }
    create_json(folder / f"{uid}.answer.json", found)
