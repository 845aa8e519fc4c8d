"""Peak memory of a computation."""

from collections.abc import Callable
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


def watch(device: torch.device) -> Callable[[], int | None]:
    """A function that returns the peak since this call, in bytes; None if it cannot be measured.

    On a GPU: the memory allocated for tensors of this process. On a CPU: the resident memory of
    this process, libraries included (Linux only).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    try:
        (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak to the current size
    except OSError:
        return lambda: None
    return _resident


def _resident() -> int | None:
    lines = (PROCESS / "status").read_text().splitlines()
    kib = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kib is None else int(kib) * 1024
