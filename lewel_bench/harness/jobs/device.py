"""The device and the worker processes of this machine that a job computes with."""

import os

import torch

from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.pretrain.distributed import Machine


class NoDevice(ValueError):
    """The requested device does not work on this machine."""


def device(settings: MachineSettings) -> str:
    """The requested device, else CUDA if available. Raises NoDevice if it is missing."""
    name = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not torch.cuda.is_available():
        raise NoDevice(f"device {name}: CUDA does not work on this machine; use --device cpu")
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise NoDevice(f"device {name} does not exist: this machine has cuda:0 to cuda:{last}")
    return name


def device_count(settings: MachineSettings) -> int:
    """How many processes a job has unless the settings say otherwise: one per device."""
    return max(1, torch.cuda.device_count()) if settings.device in (None, "cuda") else 1


def share_cores(settings: MachineSettings) -> MachineSettings:
    """`settings` with the cores divided among the jobs that run at once.

    Raises ValueError where a job cannot share (a GPU, or several processes), and as `device` does.
    """
    if settings.jobs == 1:
        return settings
    if device(settings) != "cpu" or (settings.processes or 1) > 1:
        raise ValueError(
            f"--jobs {settings.jobs} divides the cores of a CPU among single-process jobs: use it "
            "with --device cpu, without --processes"
        )
    return settings.model_copy(update={"threads": settings.share})


def machine(settings: MachineSettings) -> Machine:
    """Where this process computes. Raises as `device` does."""
    name = device(settings)
    if name.startswith("cuda"):
        if name == "cuda":
            name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
        try:
            torch.cuda.set_device(name)
        except RuntimeError as error:
            raise NoDevice(f"device {name}: {str(error).splitlines()[0]}") from None
        torch.backends.cudnn.benchmark = True
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # on a CPU, a loader that takes a core from the computation stalls all of them
    spare = cores - 1 if name != "cpu" else cores // 4
    workers = settings.workers if settings.workers is not None else min(8, spare)
    return Machine(
        device=torch.device(name),
        workers=workers,
        micro_batch=settings.micro_batch,
        compile=settings.compile,
        save_every_s=settings.save_every_s,
    )
