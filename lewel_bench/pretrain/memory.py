"""Peak memory of a computation."""

from collections.abc import Callable
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


def watch(device: torch.device) -> Callable[[], int | None]:
    """A function that returns the peak since now, in bytes; None where it cannot be measured.

    Of a GPU: what tensors held of it, by this process. Of a CPU: what this process held in all,
    libraries included; only Linux says it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    try:
        (PROCESS / "clear_refs").write_text("5")  # proc(5): the peak is the present size again
    except OSError:
        return lambda: None
    return _resident


def _resident() -> int | None:
    lines = (PROCESS / "status").read_text().splitlines()
    kib = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kib is None else int(kib) * 1024
