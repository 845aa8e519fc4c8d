"""Encoder f, global average pooling and projector g."""

from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

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
        """Projection z and pooled features y of images (B, 3, H, W)."""
        y = self.backbone(x).mean((2, 3))  # (B, D)
        return Encoding(self.g(y), y)


def zero_last_gains(backbone: ResNet) -> ResNet:
    """`backbone` with every residual branch starting at zero (arXiv 1706.02677, Section 5.1)."""
    for block in backbone.modules():
        if isinstance(block, Bottleneck):
            nn.init.zeros_(block.bn3.weight)
        elif isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
    return backbone
