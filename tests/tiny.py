"""A one-layer backbone and random views, for tests of single methods."""

import torch
from torch import nn

from lewel_bench.pretrain.method import Views


class Features(nn.Module):
    """Replaces a ResNet: one convolution, for images of any size."""

    channels = 7

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 2, 2)

    def forward(self, x):
        return self.conv(x)


def views(count, *sides, epoch=0):
    """Views of `count` random images: one view per size in `sides`, in pixels."""
    nothing = torch.zeros(len(sides), count)
    x = tuple(torch.randn(count, 3, side, side, dtype=torch.double) for side in sides)
    labels = torch.arange(count) % 3
    boxes = nothing[..., None].expand(-1, -1, 4)
    return Views(x, torch.arange(count), labels, boxes, nothing > 0, epoch)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
