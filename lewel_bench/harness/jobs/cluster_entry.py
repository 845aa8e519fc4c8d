"""Entry point of a job on a cluster: `-m lewel_bench.harness.jobs.cluster_entry FOLDER SETTINGS`.

The exit code tells how it ended, see slurm.in_job.CODES. The process also computes the next jobs of
its pack; a job that fails ends the process, and the remaining jobs get a new one.
"""

import errno
import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from lewel_bench import terminal
from lewel_bench.files import FULL, ClaimLost, Held, Lock, follow_group
from lewel_bench.harness import view
from lewel_bench.harness.jobs import job as jobs
from lewel_bench.harness.jobs import signals
from lewel_bench.harness.jobs.device import NoDevice, machine
from lewel_bench.harness.jobs.log import write_failure
from lewel_bench.harness.plan import data_check as material
from lewel_bench.harness.plan import fits
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.harness.rundir import WORK, JobDir
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.report import Diverged, Stopped
from lewel_bench.slurm import attempt
from lewel_bench.slurm.in_job import EXIT, HALVINGS, Channel

# errors that may be gone when the job is tried again
PASSING = (errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT)
LOCK_S = 30.0  # for another copy to notice that it lost its claim


def main() -> int:
    """Compute the job of a folder and the next jobs of its pack; the exit code."""
    terminal.prepare()
    folder: Path | None = Path(sys.argv[1])
    settings = _with_allocated_device(MachineSettings.model_validate_json(sys.argv[2]))
    signals.listen()
    channel = Channel()
    while folder:
        if code := _compute(folder, settings, channel):
            return code
        # jobs of more than one process are not packed
        folder = channel.next() if distributed.world() == 1 else None
    return 0


def _compute(folder: Path, settings: MachineSettings, channel: Channel) -> int:
    """Compute the job of a folder and commit its record; the exit code."""
    follow_group(folder.parent)
    job = JobDir(folder).read_spec()
    try:
        distributed.start(machine(settings).device)
    except NoDevice as error:  # another node may have one
        node_error = NoDevice(f"node {attempt.node_name()}: {error}")
        write_failure(folder, node_error)
        print(node_error, file=sys.stderr)
        return EXIT["io"]
    lock = Lock(folder / WORK, LOCK_S)
    if distributed.rank() == 0:
        # it shows other processes of this machine that the job is running; the claim decides who
        # may write, also if the holder of the lock is frozen
        with suppress(Held):
            lock.acquire()
    report = view.plain(job.name)
    try:
        material.generated(job)
        stop = partial(_stop, channel)
        jobs.run(job, folder.parent, _halved(settings, job), report, stop, attempt.check_claim)
    except Stopped:
        return EXIT["stopped"]
    except ClaimLost as lost:
        print(lost, file=sys.stderr)
        return EXIT["fenced"]
    except Diverged:
        return EXIT["nan"]
    except (torch.OutOfMemoryError, MemoryError):
        try:
            fits.half_micro_batch(job, distributed.world(), settings.micro_batch)
        except ValueError:
            return 1  # failure.json tells what would help
        return EXIT["oom"]
    except (ValueError, OSError) as error:
        print(f"{job.name}: {error}", file=sys.stderr)
        number = getattr(error, "errno", None)
        return EXIT["disk full"] if number in FULL else EXIT["io"] if number in PASSING else 1
    finally:
        lock.release()
    return 0


def _with_allocated_device(settings: MachineSettings) -> MachineSettings:
    """`settings` with device cuda if SLURM allocated a GPU and no device was chosen: a node with a
    broken driver must not train on its CPU."""
    if settings.device or not int(os.environ.get("SLURM_GPUS_ON_NODE") or 0):
        return settings
    return settings.model_copy(update={"device": "cuda"})


def _stop(channel: Channel) -> bool:
    """Whether to stop; called after every step and before every save. Raises ClaimLost if another
    copy has taken over, so that this one saves nothing; checks the claim at most once a second."""
    global _checked
    channel.ready()
    if time.monotonic() - _checked > 1:
        attempt.check_claim()
        _checked = time.monotonic()
    return signals.asked_to_stop()


_checked = 0.0


def _halved(settings: MachineSettings, job: Job) -> MachineSettings:
    """`settings` with the micro-batch halved for every time the job ran out of memory, if possible;
    the global batch and the batch-norm groups are unchanged."""
    times = int(os.environ.get(HALVINGS, "0"))
    if not times:
        return settings
    try:
        micro = fits.half_micro_batch(job, distributed.world(), settings.micro_batch, times)
    except ValueError:  # it ran out of host memory
        return settings
    return settings.model_copy(update={"micro_batch": micro})


if __name__ == "__main__":
    code = main()
    try:
        sys.stdout.flush()
    except OSError:  # on a full disk Python would exit with another code
        os._exit(code)
    sys.exit(code)
