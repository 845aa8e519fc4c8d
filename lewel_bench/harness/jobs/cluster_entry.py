"""Entry point of a job on a cluster: `-m lewel_bench.harness.jobs.cluster_entry FOLDER SETTINGS`.

It says with its exit code how it ended, see slurm.in_job.CODES. Of a pack it goes on with the next
cell as long as all goes well; a cell that fails ends the process, and the rest get a new one.
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
from lewel_bench.harness.jobs.log import write_failure
from lewel_bench.harness.plan import data_check as material
from lewel_bench.harness.plan import fits
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.harness.status import WORK, read_spec
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.report import Diverged, Stopped
from lewel_bench.slurm import attempt
from lewel_bench.slurm.in_job import EXIT, HALVINGS, Channel

# what may be over when the job is tried again
PASSING = (errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT)
LOCK_S = 30.0  # for a copy that lost its claim to notice


def main() -> int:
    """Compute the job of a folder, and those of its pack after it; the exit code."""
    terminal.prepare()
    folder: Path | None = Path(sys.argv[1])
    settings = _granted(MachineSettings.model_validate_json(sys.argv[2]))
    signals.listen()
    channel = Channel()
    while folder:
        if code := _compute(folder, settings, channel):
            return code
        # several processes have no pack, and end together
        folder = channel.next() if distributed.world() == 1 else None
    return 0


def _compute(folder: Path, settings: MachineSettings, channel: Channel) -> int:
    """Compute the job of a folder and commit its record; the exit code."""
    follow_group(folder.parent)
    job = read_spec(folder)
    try:
        distributed.start(jobs.machine(settings).device)
    except jobs.NoDevice as error:  # on this node; another may have one
        broken = jobs.NoDevice(f"node {attempt.node_name()}: {error}")
        write_failure(folder, broken)
        print(broken, file=sys.stderr)
        return EXIT["io"]
    lock = Lock(folder / WORK, LOCK_S)
    if distributed.rank() == 0:
        # it shows this machine that somebody works here; who may write, the claim says, also when
        # the holder is frozen and never lets go
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
            return 1  # what would help is in failure.json
        return EXIT["oom"]
    except (ValueError, OSError) as error:
        print(f"{job.name}: {error}", file=sys.stderr)
        number = getattr(error, "errno", None)
        return EXIT["disk full"] if number in FULL else EXIT["io"] if number in PASSING else 1
    finally:
        lock.release()
    return 0


def _granted(settings: MachineSettings) -> MachineSettings:
    """`settings` with CUDA asked for where SLURM granted a GPU and nobody chose a device: a node
    whose driver is broken must not train on its CPU."""
    if settings.device or not int(os.environ.get("SLURM_GPUS_ON_NODE") or 0):
        return settings
    return settings.model_copy(update={"device": "cuda"})


def _stop(channel: Channel) -> bool:
    """Asked after every step and before every save, so that a copy that lost its claim saves
    nothing; looks at most once a second."""
    global _looked
    channel.ready()
    if time.monotonic() - _looked > 1:
        attempt.check_claim()
        _looked = time.monotonic()
    return signals.asked_to_stop()


_looked = 0.0


def _halved(settings: MachineSettings, job: Job) -> MachineSettings:
    """Half the micro-batch for every time the job ran out of memory, where that is possible; the
    global batch and the batch-norm groups stay."""
    times = int(os.environ.get(HALVINGS, "0"))
    if not times:
        return settings
    try:
        micro = fits.half_micro_batch(job, distributed.world(), settings.micro_batch, times)
    except ValueError:  # SLURM ended it for its host memory
        return settings
    return settings.model_copy(update={"micro_batch": micro})


if __name__ == "__main__":
    code = main()
    try:
        sys.stdout.flush()
    except OSError:  # on a full disk Python would leave with a code of its own
        os._exit(code)
    sys.exit(code)
