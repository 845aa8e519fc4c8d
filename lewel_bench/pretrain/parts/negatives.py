"""The queue of negatives and the shuffled batch norm of MoCo (arXiv 1911.05722)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lewel_bench.pretrain.distributed import gather, rank, world


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


def own(keys: Tensor, rows: slice) -> slice:
    """Where the images `rows` of this rank's batch stand among the global batch's `keys`."""
    first = rank() * (len(keys) // world())
    return slice(first + rows.start, first + rows.stop)
