"""What tests of single methods need: a backbone of one layer, and views of any number."""

import torch
from torch import nn

from lewel_bench.pretrain.method import Views


class Features(nn.Module):
    """In place of a ResNet: a convolution, and so features of any size of image."""

    channels = 7

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 2, 2)

    def forward(self, x):
        return self.conv(x)


def views(count, *sides, epoch=0):
    """Views of `count` random images, one of each of `sides` pixels."""
    nothing = torch.zeros(len(sides), count)
    x = tuple(torch.randn(count, 3, side, side, dtype=torch.double) for side in sides)
    labels = torch.arange(count) % 3
    boxes = nothing[..., None].expand(-1, -1, 4)
    return Views(x, torch.arange(count), labels, boxes, nothing > 0, epoch)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
