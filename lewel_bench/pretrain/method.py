"""The contract between a method and the loop that trains it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor, nn

from lewel_bench.pretrain.backbone import ResNet


@dataclass(frozen=True)
class Views:
    """The views of some images of this process, and what is known of those images.

    Iterates over the views: `x1, x2 = views`. B images, V views.
    """

    x: tuple[Tensor, ...]  # (B, 3, S, S) each, normalised
    index: Tensor  # int64 (B,), places in the training set
    labels: Tensor  # int64 (B,), for supervised training alone
    # (V, B, 4): top, left, height, width of each crop as shares of the whole image, before its flip
    boxes: Tensor
    flips: Tensor  # bool (V, B), mirrored left to right
    epoch: int = 0  # 0-based

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)

    def rows(self, rows: slice) -> "Views":
        """The images `rows` of these."""
        return Views(
            tuple(x[rows] for x in self.x),
            self.index[rows],
            self.labels[rows],
            self.boxes[:, rows],
            self.flips[:, rows],
            self.epoch,
        )


class TrainingSet(Protocol):
    """The images that a method is trained on."""

    def __len__(self) -> int: ...

    def features(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` (B, 3, S, S) -> (B, d) of the centre of every image: (N, d) in the order of
        `Views.index`, without gradient and the same on every rank. Every rank must call it."""


class Method(nn.Module, ABC):
    """A pre-training method. Only `forward` is required; the rest has a default.

    A class is made with `(backbone, norm, *, ...)`; of `ema`, `seed`, `images` and `classes` (of
    the training set) it gets those that it names, and its recipe's arguments. Everything that
    outlives a step is a parameter or a buffer of a size known then, so that a run can be resumed.

    For each step the loop calls `keys` once with this process's whole batch, `forward` for each
    micro-batch of it (whole batch-norm groups) followed by the backward pass, then `after_backward`
    and the optimizer, then `after_step`. What a loss compares across images comes from `keys`, so
    gradients do not depend on the micro-batch; `forward` may leave there, by rows, what
    `after_step` needs. A method gathers over ranks itself, moves nothing between devices and never
    waits for one.
    """

    # True where gradients flow from one image to another (SimCLR, Barlow Twins, SwAV): such a
    # batch is never split into micro-batches.
    joint: bool = False

    @abstractmethod
    def forward(self, views: Views, keys: Any, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over `views`, and detached scalars that show how the training goes.

        `views` are the images `rows` (start and stop given) of this process's batch.
        """

    @property
    def backbone(self) -> ResNet:
        """The trained network f_θ, which is evaluated: that of the encoder `online` by default."""
        online = self._modules.get("online")
        if online is None or "backbone" not in online._modules:
            raise ValueError(
                f"{type(self).__name__} has no backbone: assign an encoder with one to "
                "self.online, or define the property backbone"
            )
        return cast(ResNet, online.backbone)

    @property
    def projector(self) -> nn.Module | None:
        """The head that can be read at every position of f's features (..., D), as LEWEL does to
        make its maps; it is stored with the backbone. None where there is no such head.

        A method that assigns a module of this name has one.
        """
        return self._modules.get("projector")

    def keys(self, views: Views, step: int) -> Any:
        """Without gradient, what the losses of step `step` (0-based) share. Default: None, images
        are compared with themselves only."""
        return None

    def before_epoch(self, epoch: int, images: TrainingSet) -> None:
        """Prepare epoch `epoch` (0-based), before its first step and once only.

        A run resumed within an epoch does not ask again: what it decides must be in buffers.
        """

    def after_backward(self, keys: Any) -> None:
        """Change gradients before the optimizer reads them."""

    def after_step(self, keys: Any, step: int, steps: int) -> None:
        """Update what no gradient updates, after optimizer step `step` (0-based) of `steps`."""


def answer(method: Method, output: object) -> tuple[Tensor, dict[str, Tensor]]:
    """What `forward` of a method gave. Raises ValueError where it is not what `Method` asks."""
    match output:
        case (Tensor() as loss, dict() as diagnostics) if loss.ndim == 0 and loss.requires_grad:
            return loss, diagnostics
        case (Tensor() as loss, dict()):
            shown = "a detached loss" if loss.ndim == 0 else f"a loss of shape {tuple(loss.shape)}"
        case tuple():
            shown = f"({', '.join(type(part).__name__ for part in output)})"
        case _:
            shown = f"a {type(output).__name__}"
    raise ValueError(
        f"{type(method).__name__}.forward returned {shown}: it must return the mean loss, a scalar "
        "with its gradient, and a dict of detached scalars, see lewel_bench.pretrain.method.Method"
    )
