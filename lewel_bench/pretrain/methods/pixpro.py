"""PixPro: what a pixel's surroundings say of it agrees with the same place in the other view.

Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual
Representation Learning", CVPR 2021, arXiv 2011.10043, Section 3.2.

B images, D channels of f, P pixels of the feature map, d = dim. Notation: x pixel vectors, y
propagated pixel vectors, x' those of the momentum network, A which pixels are near, θ online,
ξ target.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import PixProSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import full, mse, unit
from lewel_bench.pretrain.parts.momentum import Momentum
from lewel_bench.pretrain.parts.regions import corners, near
from lewel_bench.pretrain.recipe import Ema


class Pixels(NamedTuple):
    x: Tensor  # (B, P, d) pixel vectors
    z: Tensor | None  # (B, P, d) of the instance branch
    y: Tensor  # (B, D) GAP(F)
    shape: tuple[int, int]  # P = h·w


class PixelEncoder(nn.Module):
    """Encoder f with the projection head of pixels, and one of instances where asked."""

    def __init__(
        self, backbone: ResNet, norm: Norm, hidden: int, dim: int, instances: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.g = _head(backbone.channels, hidden, dim, norm)
        self.g_instance = _head(backbone.channels, hidden, dim, norm) if instances else None

    def forward(self, x: Tensor) -> Pixels:
        F = self.backbone(x)
        shape = (F.shape[2], F.shape[3])
        F = F.flatten(2).transpose(1, 2)  # (B, P, D)
        z = self.g_instance(F) if self.g_instance is not None else None
        return Pixels(self.g(F), z, F.mean(1), shape)


class PixPro(Method):
    """PixPro, with the instance branch (Section 3.3) where `alpha` gives it a weight."""

    def __init__(
        self, settings: PixProSettings, backbone: Callable[[], ResNet], norm: Norm, *, ema: Ema
    ) -> None:
        super().__init__()
        self.gamma, self.threshold, self.alpha = settings.gamma, settings.threshold, settings.alpha
        dim, hidden, instances = settings.dim, settings.hidden, settings.alpha > 0
        self.online = PixelEncoder(backbone(), norm, hidden, dim, instances)
        self.target = Momentum(self.online, ema)
        self.transform = nn.Linear(dim, dim)  # g of Eq. 3: one layer
        self.q = _head(dim, hidden, dim, norm) if instances else None

    def forward(self, views: Views, keys: None, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Consistency of propagated pixels that are near in the image, in both directions."""
        (x1, x2), (box1, box2) = views, corners(views)
        o1, o2 = self.online(x1), self.online(x2)
        t1, t2 = self.target(x1), self.target(x2)
        A = near(box1, box2, o1.shape, self.threshold)  # (B, P, P)
        loss = self._loss(o1, t2, A) + self._loss(o2, t1, A.transpose(1, 2))
        pairs = full(A.sum(2)).mean()  # of a pixel
        return loss, {"feature_std": feature_std(o1.y), "pairs": pairs}

    def _loss(self, online: Pixels, target: Pixels, A: Tensor) -> Tensor:
        y = propagate(online.x, self.transform(online.x), self.gamma)
        loss = consistency(y, target.x, A)
        if self.q is not None and online.z is not None and target.z is not None:
            # averaged after the head and its batch norm have seen every pixel, as the code
            loss = loss + self.alpha * mse(self.q(online.z).mean(1), target.z.mean(1))
        return loss

    def after_step(self, keys: None, step: int, steps: int) -> None:
        """Update the momentum network."""
        self.target.update(self.online, step, steps)


def propagate(x: Tensor, transformed: Tensor, gamma: float) -> Tensor:
    """y_i = Σ_j max(cos(x_i, x_j), 0)^γ g(x_j), g(x_j) of unit length: Eq. 3 and 4, (B, P, d)."""
    x = unit(x)
    with torch.autocast(x.device.type, enabled=False):
        similarity = (x @ x.transpose(1, 2)).clamp_min(0) ** gamma  # (B, P, P)
        return similarity @ unit(transformed)


def consistency(y: Tensor, x: Tensor, A: Tensor) -> Tensor:
    """2 - 2 cos(y_i, x'_j), mean over the near pairs of an image, then over images.

    Eq. 5 has -cos, the code -2 cos; an image without near pixels counts 0.
    """
    with torch.autocast(y.device.type, enabled=False):
        distance = 2 - 2 * unit(y) @ unit(x.detach()).transpose(1, 2)  # (B, P, P)
    return ((distance * A).sum((1, 2)) / A.sum((1, 2)).clamp_min(1)).mean()


def _head(inputs: int, hidden: int, outputs: int, norm: Norm) -> nn.Sequential:
    # the code's first layer has a bias too, which its batch norm takes off again
    return mlp(inputs, hidden, outputs, norm, bias=(False, True), init="torch")
