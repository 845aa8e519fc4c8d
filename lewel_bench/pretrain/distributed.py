"""The machine of a job, and the operations that differ between one process and many."""

import contextlib
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

_PATIENT: list[Any] = []  # a group of all ranks without a short timeout


@dataclass(frozen=True)
class Machine:
    """The hardware settings of a job; none of them may change a result.

    `workers` is the number of loader processes, `micro_batch` the images of one forward pass on
    this device (None: all of them), `save_every_s` the seconds between checkpoints.
    """

    device: torch.device = torch.device("cpu")
    workers: int = 0
    micro_batch: int | None = None
    compile: bool = False
    save_every_s: float = 300.0


def rank() -> int:
    """The rank of this process, 0 for a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes of this job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: int) -> int:
    """Images of a batch on each process. Raises ValueError if they cannot be shared equally."""
    if batch < world() or batch % world():
        raise ValueError(
            f"batch {batch} is not divisible by {world()} processes: use a number of processes "
            "that divides it"
        )
    return batch // world()


def start(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment, if it does."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        _PATIENT[:] = [dist.new_group(backend="gloo", timeout=timedelta(days=7))]


def wait(patient: bool = False) -> None:
    """Return when every rank has called this; with `patient` even after hours, as when one rank
    computes for all (NCCL gives up after 10 minutes)."""
    if world() > 1:
        dist.barrier(_PATIENT[0] if patient and _PATIENT else None)


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """`x` of every rank concatenated along dim 0 in rank order, without gradient."""
    if world() == 1:
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def join(x: Tensor) -> Tensor:
    """`x` of every rank concatenated along dim 0 in rank order, with gradient.

    A rank's part gets the sum of the gradients of all ranks' losses, of which
    DistributedDataParallel then takes the mean: as if one process had computed all of it.
    """
    if world() == 1:
        return x
    joined: Tensor = _Join.apply(x)
    return joined


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.count = len(x)
        return gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        joined_grad = total(grad.contiguous())
        return joined_grad[rank() * ctx.count :][: ctx.count]


@torch.no_grad()
def average(tensors: list[Tensor]) -> None:
    """Replace floating tensors by their mean over ranks, in place, with one reduction."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1).float() for t in tensors])
    dist.all_reduce(flat)
    flat /= world()
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """`x` summed over ranks, in place."""
    if world() > 1:
        dist.all_reduce(x)
    return x


def data_parallel(model: nn.Module) -> nn.Module:
    """`model` with gradients averaged over ranks; itself where there is only one.

    Buffers are not broadcast: the loops average batch-norm statistics themselves, and a broadcast
    would drop those of the other ranks.
    """
    if world() == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.15 renames the argument; torch 2.11 knows this name only
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def sync_gradients(model: nn.Module, due: bool) -> contextlib.AbstractContextManager[Any]:
    """A context whose backward pass averages gradients over ranks only if `due`, as after the last
    micro-batch; `model` is from `data_parallel`."""
    if isinstance(model, DistributedDataParallel) and not due:
        return model.no_sync()
    return contextlib.nullcontext()


def random_states(device: torch.device) -> list[dict[str, Tensor]]:
    """The states of torch's random generators on every rank, in rank order."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    if world() == 1:
        return [own]
    states: list[Any] = [None] * world()
    dist.all_gather_object(states, own)
    return states


def set_random_state(states: list[dict[str, Tensor]], device: torch.device) -> None:
    """Restore this rank's part of `random_states`, which another number of ranks may have saved."""
    own = states[rank() % len(states)]
    torch.set_rng_state(own["cpu"].cpu())
    if "cuda" in own and device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"].cpu(), device)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` holds on any rank; every rank must ask at the same point."""
    if world() == 1:
        return flag
    answer = torch.tensor(int(flag), device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer)
