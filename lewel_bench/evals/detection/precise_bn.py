"""PreciseBN: batch-norm statistics measured anew with the weights that are there (arXiv 2105.07576,
Section 3), as fvcore's `update_bn_stats` does."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lewel_bench.pretrain import distributed

Batch = TypeVar("Batch")


@torch.no_grad()
def measure(model: nn.Module, forward: Callable[[Batch], Any], batches: Iterable[Batch]) -> None:
    """Replace the running statistics of every batch norm in training mode by those of `batches`.

    Mean and variance are those of the values of all batches together. `forward` runs `model` on a
    batch. A layer that no batch reaches keeps its statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    populations = {m: _Population() for m in norms}
    counts: dict[_BatchNorm, int] = {}  # this rank's values a channel in the present batch
    device = next(model.parameters()).device

    def count(module: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        assert module not in counts, "a batch norm is used twice in one forward pass"
        counts[module] = inputs[0].numel() // inputs[0].shape[1]

    hooks = [m.register_forward_pre_hook(count) for m in norms]
    momenta = [m.momentum for m in norms]
    try:
        for m in norms:
            m.momentum = 1.0  # a running statistic is then that of the batch
        for batch in batches:
            counts.clear()
            forward(batch)
            own = torch.tensor([counts.get(m, 0) for m in norms], device=device)
            # on several ranks the norms are SyncBatchNorm's, whose statistics are of all values
            for m, n in zip(norms, distributed.total(own).tolist(), strict=True):
                if n:
                    populations[m].add(m.get_buffer("running_mean"), m.get_buffer("running_var"), n)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for hook in hooks:
            hook.remove()
    for m, seen in populations.items():
        if seen.count:
            m.get_buffer("running_mean").copy_(seen.mean)
            m.get_buffer("running_var").copy_(seen.square - seen.mean.square())


class _Population:
    """Mean, and mean of the squares, of `count` values a channel."""

    def __init__(self) -> None:
        self.mean, self.square, self.count = torch.zeros(()), torch.zeros(()), 0

    def add(self, mean: Tensor, unbiased: Tensor, count: int) -> None:
        """Take in `count` values of this mean and variance."""
        self.count += count
        share = count / self.count
        square = mean.square() + unbiased * ((count - 1) / count)
        self.mean = self.mean + (mean - self.mean) * share
        self.square = self.square + (square - self.square) * share
