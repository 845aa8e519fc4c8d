"""Encoder f, global average pooling and projector g."""

from typing import NamedTuple

from torch import Tensor, nn

from lewel_bench.pretrain.backbone import ResNet


class Encoding(NamedTuple):
    """z = g(y) (B, d), y = GAP(f(x)) (B, D)."""

    z: Tensor
    y: Tensor


class Encoder(nn.Module):
    """Images (B, 3, H, W) to `Encoding`."""

    def __init__(self, backbone: ResNet, g: nn.Module) -> None:
        super().__init__()
        self.backbone, self.g = backbone, g

    def forward(self, x: Tensor) -> Encoding:
        y = self.backbone(x).mean((2, 3))  # (B, D)
        return Encoding(self.g(y), y)
