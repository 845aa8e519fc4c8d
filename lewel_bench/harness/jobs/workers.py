"""Further processes of one `run`: they share its run root, and who locks a job computes it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from signal import Signals
from tempfile import TemporaryFile
from threading import Event, Thread
from typing import IO

from lewel_bench.harness.jobs import signals
from lewel_bench.harness.jobs.device import device
from lewel_bench.harness.jobs.provenance import provenance
from lewel_bench.harness.jobs.variables import BEGAN, COMMAND
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.harness.request import Command


def shared(settings: MachineSettings) -> MachineSettings:
    """`settings` with the cores divided among the jobs that run at once.

    Raises ValueError where a job has more to itself than cores (a GPU, or several processes), and
    for a device that is not there.
    """
    if settings.jobs == 1:
        return settings
    if device(settings) != "cpu" or (settings.processes or 1) > 1:
        raise ValueError(
            f"--jobs {settings.jobs} divides the cores of a CPU among single-process jobs: use it "
            "with --device cpu, without --processes"
        )
    return settings.model_copy(update={"threads": settings.share})


@contextmanager
def companions(settings: MachineSettings, again: Command) -> Iterator[None]:
    """The command `again` once for each job but one that is to run at once.

    They end when no job is left, and save and stop where this process leaves with an exception;
    when it is killed they go on. What they do shows in the run root; one that cannot start, or is
    killed, is named on standard error.
    """
    command = [sys.executable, "-m", "lewel_bench.harness.cli", *again.argv()]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(settings.threads),
        COMMAND: provenance()["command"],
        BEGAN: str(time.time()),
    }
    leaving = Event()
    with ExitStack() as files:
        started = []
        for _ in range(settings.jobs - 1):
            out, errors = (files.enter_context(TemporaryFile()) for _ in range(2))
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(
                command, env=environment, stdin=quiet, stdout=out, stderr=errors
            )
            watch = Thread(target=_watch, args=(process, out, errors, leaving), daemon=True)
            watch.start()
            started.append((process, watch))
        try:
            yield
        except BaseException:
            leaving.set()
            for process, _ in started:
                process.terminate()
            raise
        finally:
            leaving.set()
            for process, watch in started:
                process.wait()
                watch.join()


def _watch(
    process: "subprocess.Popen[bytes]", out: IO[bytes], errors: IO[bytes], leaving: Event
) -> None:
    """Say why a companion ended before it took part, or was killed; its jobs are others' now."""
    code = process.wait()
    if leaving.is_set() or signals.asked_to_stop() or code == 0:
        return
    out.seek(0)
    if code > 0 and out.read(1):
        return  # it took part: the jobs that failed are told by the runner
    errors.seek(0)
    last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    why = f"was ended by {Signals(-code).name}" if code < 0 else f"could not start: {''.join(last)}"
    print(f"a worker process of --jobs {why}. The others continue", file=sys.stderr)
