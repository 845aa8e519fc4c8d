"""The pieces of momentum contrast (MoCo, arXiv 1911.05722): the momentum network ξ that follows the
online network θ, which BYOL has too, the queue of negatives, and shuffled batch norm."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lewel_bench.pretrain.distributed import gather, rank, world
from lewel_bench.pretrain.recipe import Ema
from lewel_bench.pretrain.schedule import cosine_momentum


class Momentum(nn.Module):
    """A copy of `online` without gradient, updated by ξ ← m ξ + (1 - m) θ.

    Without `ema.buffers` only parameters follow and batch norm uses its own batch statistics (MoCo,
    BYOL); with it the running statistics follow too and normalise, in training as well (EMAN, arXiv
    2101.08482).
    """

    def __init__(self, online: nn.Module, ema: Ema) -> None:
        super().__init__()
        self.network = deepcopy(online).requires_grad_(False)
        self.ema = ema
        self.train()

    def train(self, mode: bool = True) -> "Momentum":
        """As `nn.Module.train`, but EMAN always normalises with its running statistics."""
        return super().train(mode and not self.ema.buffers)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """The outputs of the momentum network, without gradient."""
        return self.network(*inputs)

    @torch.no_grad()
    def update(self, online: nn.Module, step: int, steps: int) -> None:
        """Follow `online` after optimizer step `step` (0-based) of `steps`."""
        m = self.ema.start
        if self.ema.schedule == "cosine":
            m = cosine_momentum(m, step, steps)
        xi: list[Tensor] = list(self.network.parameters())
        theta: list[Tensor] = list(online.parameters())
        if self.ema.buffers:
            for own, other in zip(self.network.buffers(), online.buffers(), strict=True):
                if own.is_floating_point():
                    xi.append(own)
                    theta.append(other)
                else:
                    own.copy_(other)  # num_batches_tracked
        torch._foreach_lerp_(xi, theta, 1 - m)


class Queue(nn.Module):
    """The last `size` keys, first in first out; random unit vectors until they have arrived."""

    keys: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", normalize(torch.randn(size, dim), dim=1))  # (K, c)

    @torch.no_grad()
    def push(self, keys: Tensor, step: int) -> None:
        """Replace the oldest by `keys` (G, c) of step `step`; every step brings G of them.

        The place follows from the step, so there is no pointer to keep. Raises ValueError when a
        batch is larger than the queue.
        """
        size, count = len(self.keys), len(keys)
        if count > size:
            raise ValueError(f"queue {size} is smaller than the batch {count}: set queue >= batch")
        start = step * count % size
        fits = min(count, size - start)
        self.keys[start : start + fits] = keys[:fits]
        self.keys[: count - fits] = keys[fits:]


def shuffled(
    encode: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, seed: int, step: int
) -> list[Tensor]:
    """`encode` of the whole global batch in its own order, batch-norm groups drawn at random.

    x (B, ...) are this rank's images; returns (G, ...) tensors on every rank. So a key's batch
    statistics come from other images than its query's and do not give the answer away (Section
    3.3, "Shuffling BN").
    """
    everyone = gather(x)
    count = len(everyone)
    # Drawn on the host from (seed, step): the same on every rank, and after a resume.
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    order = torch.from_numpy(random.permutation(count))
    mine = order[rank() * len(x) :][: len(x)].to(x.device, non_blocking=True)
    restore = order.argsort().to(x.device, non_blocking=True)
    return [gather(z)[restore] for z in encode(everyone[mine])]


def global_rows(keys: Tensor, rows: slice) -> slice:
    """The rows of the global batch's `keys` that hold the images `rows` of this rank's batch."""
    first = rank() * (len(keys) // world())
    return slice(first + rows.start, first + rows.stop)
