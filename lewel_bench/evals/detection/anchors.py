"""Anchor boxes as detectron2 lays them out: unrounded, the first at the image's corner.

Boxes are (x1, y1, x2, y2) in pixels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

RATIOS = (0.5, 1.0, 2.0)  # height / width


class Anchors(nn.Module):
    """The anchors of each feature level: of sides `sizes[i]` where a cell is `strides[i]` wide."""

    def __init__(self, sizes: Sequence[Sequence[float]], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        for i, of_level in enumerate(sizes):
            self.register_buffer(f"cell{i}", cell_anchors(of_level), persistent=False)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps (B, C, h, w) -> anchors (h * w * A, 4), the A of a cell side by side."""
        return [
            _tile(self.get_buffer(f"cell{i}").float(), x.shape[-2], x.shape[-1], stride)
            for i, (x, stride) in enumerate(zip(levels, self.strides, strict=True))
        ]


def cell_anchors(sizes: Sequence[float]) -> Tensor:
    """Boxes of area size^2 centred on (0, 0), sizes slowest, ratios fastest: (A, 4)."""
    corners = []
    for size in sizes:
        for ratio in RATIOS:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            corners.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(corners, dtype=torch.float32)


def _tile(cell: Tensor, height: int, width: int, stride: int) -> Tensor:
    x = torch.arange(0, width * stride, stride, dtype=torch.float32, device=cell.device)
    y = torch.arange(0, height * stride, stride, dtype=torch.float32, device=cell.device)
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1)  # (h, w, 4)
    return (shifts.view(-1, 1, 4) + cell).view(-1, 4)
