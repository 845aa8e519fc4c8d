"""Further processes of one `run`: they share its run root, and who locks a job computes it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lewel_bench.harness import own
from lewel_bench.harness.job import device
from lewel_bench.harness.provenance import provenance
from lewel_bench.harness.site import MachineSettings
from lewel_bench.harness.status import COMMAND


def shared(settings: MachineSettings) -> MachineSettings:
    """`settings` with the cores divided among the jobs that run at once.

    Raises ValueError where a job has more to itself than cores (a GPU, or several processes), and
    for a device that is not there.
    """
    if settings.jobs == 1:
        return settings
    if device(settings) != "cpu" or (settings.processes or 1) > 1:
        raise ValueError(
            f"--jobs {settings.jobs} divides a CPU's cores among jobs of one process: use it with "
            "--device cpu, without --processes"
        )
    share = max(1, len(os.sched_getaffinity(0)) // settings.jobs)
    return settings.model_copy(update={"threads": settings.threads or share})


@contextmanager
def companions(settings: MachineSettings) -> Iterator[None]:
    """This command once more for each job but one that is to run at once.

    They end when no job is left, and save and stop where this process leaves with an exception;
    when it is killed they go on. What they do shows in the run root.
    """
    command = [sys.executable, "-m", "lewel_bench.harness.cli"]
    command += [*map(own.named, sys.argv[1:]), "--jobs", "1"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(settings.threads),
        COMMAND: provenance()["command"],
    }
    quiet = subprocess.DEVNULL
    started = [
        subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet)
        for _ in range(settings.jobs - 1)
    ]
    try:
        yield
    except BaseException:
        for one in started:
            one.terminate()
        raise
    finally:
        for one in started:
            one.wait()
