"""The contract between a method and the loop that trains it."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from lewel_bench.pretrain.backbone import ResNet

Views = tuple[Tensor, Tensor]  # x1, x2: (B, 3, H, W) each


class Method(nn.Module, ABC):
    """What a method must answer; nothing is inherited.

    For each step the loop calls `keys` once with this process's whole batch, `forward` for each
    micro-batch of it (whole batch-norm groups) followed by the backward pass, then the optimizer,
    then `after_step`. What a loss compares across images comes from `keys`, so gradients do not
    depend on the micro-batch. A method gathers its keys over ranks itself, moves nothing between
    devices and never waits for one.
    """

    @property
    @abstractmethod
    def backbone(self) -> ResNet:
        """The trained network f_θ: what is evaluated."""

    @abstractmethod
    def keys(self, views: Views, step: int) -> Any:
        """Without gradient, what the losses of step `step` (0-based) share; None where nothing."""

    @abstractmethod
    def forward(self, views: Views, keys: Any, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over `views`, and detached scalars that show how the training goes.

        `views` are the images `rows` (start and stop given) of this process's batch.
        """

    @abstractmethod
    def after_step(self, keys: Any, step: int, steps: int) -> None:
        """Update what no gradient updates, after optimizer step `step` (0-based) of `steps`."""
