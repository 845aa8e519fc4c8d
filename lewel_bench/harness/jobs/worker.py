"""A worker process of the local runner: computes the jobs that it is given, one after another.

`python -m lewel_bench.harness.jobs.worker ROOT SETTINGS` reads a key and a number of processes from
each line of standard input, and answers each with an `Answer` in a line of JSON. When its input
ends, because the runner has finished or was killed, it saves and stops.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Literal, NamedTuple

from lewel_bench import terminal
from lewel_bench.files import Held, Lock, follow_group, is_held
from lewel_bench.harness.jobs import signals
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.harness.rundir import LOCK, WORK, JobDir
from lewel_bench.pretrain.report import Stopped


class Answer(NamedTuple):
    """What became of a job: `computed` now, `done` before, `busy` in another process, `stopped`
    after saving, or `failed`; with the reason, and whether it is the user's mistake (ValueError,
    OSError) and not an error of ours."""

    outcome: Literal["computed", "done", "busy", "stopped", "failed"]
    message: str = ""
    is_mistake: bool = False


def compute(folder: Path, settings: MachineSettings, processes: int = 1) -> Answer:
    """Compute the job of a folder in so many processes, unless it has a record or another process
    works on it. Whoever holds the lock of the folder computes it."""
    from lewel_bench.harness.jobs.log import describe_error

    if signals.asked_to_stop():
        return Answer("stopped", "nothing was running")
    try:
        with Lock(folder / LOCK):
            if is_held(folder / WORK):
                return Answer("busy")  # its parent was killed, its processes go on
            if JobDir(folder).has_record():
                return Answer("done")
            if processes > 1:
                _run_ranks(folder, settings, processes)
            else:
                from lewel_bench.harness.jobs import job

                job.run_folder(folder, settings)
            return Answer("computed")
    except Held:
        return Answer("busy")
    except Stopped as stopped:
        return Answer("stopped", str(stopped))
    except Exception as error:
        is_mistake = isinstance(error, ValueError | OSError)
        return Answer("failed", describe_error(error), is_mistake)


def _run_ranks(folder: Path, settings: MachineSettings, processes: int) -> None:
    """Compute a job in several processes under torchrun. Raises why they ended without a record."""
    from lewel_bench.harness.jobs.log import Failed, clear_failure, failure, write_failure

    command = [sys.executable, "-m", "lewel_bench.harness.jobs.ranks", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "lewel_bench.harness.jobs.job"]
    command += [str(folder), settings.model_dump_json()]
    clear_failure(folder)
    began = time.time()
    code = _exit_code(command)
    if JobDir(folder).has_record():
        return
    reason = failure(folder)
    last = JobDir(folder).last_events()[-1:]
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
        why = f"one of its {processes} processes was ended by {signal_message(code - 128)}"
        ended = Failed(JobDir(folder).crash_message(began) or why)
    write_failure(folder, ended)
    raise ended


def signal_message(number: int) -> str:
    """A signal that ended a process, with the usual reason."""
    name = signal.Signals(number).name
    return f"{name}, as the kernel does when memory runs out" if name == "SIGKILL" else name


def _exit_code(command: list[str]) -> int:
    """The exit code of torchrun. The first signal that comes here is passed on, once: torchrun
    sends it to every process, and each saves."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    )
    told = False
    while (code := process.poll()) is None:
        if signals.asked_to_stop() and not told:
            process.send_signal(signal.SIGTERM)
            told = True
        time.sleep(0.2)
    return code


def main() -> int:
    """Answer every key of standard input."""
    signals.listen("")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)  # blocked by `local.Worker`
    terminal.prepare()
    given, answers = os.dup(0), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what libraries print is no answer
    root, settings = Path(sys.argv[1]), MachineSettings.model_validate_json(sys.argv[2])
    follow_group(root)
    lines: SimpleQueue[str] = SimpleQueue()
    Thread(target=_read, args=(given, lines), daemon=True).start()
    while line := lines.get():
        key, processes = line.split()
        answer = compute(root / key, settings, int(processes))
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def _read(given: int, lines: "SimpleQueue[str]") -> None:
    """Pass on the lines that arrive; at the end save and stop. Not by way of `sys.stdin`: a forked
    loader would wait for ever for its lock, which this thread holds."""
    text = b""
    while more := os.read(given, 4096):
        *whole, text = (text + more).split(b"\n")
        for line in whole:
            lines.put(line.decode())
    signals.request_stop()
    lines.put("")


if __name__ == "__main__":
    sys.exit(main())
