"""The momentum network ξ that follows the online network θ."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

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
        return super().train(mode and not self.ema.buffers)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
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
