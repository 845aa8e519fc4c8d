"""Where two views of an image show the same thing, from where each was cut.

A box (left, top, right, bottom) says where a view lies in its image, in any unit; a view that was
flipped has left > right. A window is a box inside a view, from 0 to 1 across it. B images.
"""

import torch
from torch import Tensor

from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.parts.losses import full


def corners(views: Views) -> tuple[Tensor, ...]:
    """The box (B, 4) of each view, in shares of the image's width and height."""
    top, left, height, width = views.boxes.unbind(-1)  # (V, B) each
    ends = (
        torch.where(views.flips, left + width, left),
        torch.where(views.flips, left, left + width),
    )
    return torch.stack([ends[0], top, ends[1], top + height], -1).unbind(0)


def centres(box: Tensor, shape: tuple[int, int]) -> Tensor:
    """Where the cells (h, w) of a view's feature map have their centres in the image: (B, h·w, 2)
    of box (B, 4)."""
    h, w = shape
    y, x = torch.meshgrid(
        (torch.arange(h, device=box.device) + 0.5) / h,
        (torch.arange(w, device=box.device) + 0.5) / w,
        indexing="ij",
    )
    inside = torch.stack([x, y], -1).flatten(0, 1).to(box)  # (h·w, 2)
    corner, end = box[:, None, :2], box[:, None, 2:]
    return corner + (end - corner) * inside


def near(box: Tensor, other: Tensor, shape: tuple[int, int], threshold: float) -> Tensor:
    """Which pixels of two views are closer in the image than `threshold` diagonals of a cell of
    the larger view: Eq. 1, (B, P, P) bool."""
    h, w = shape
    cell = box.new_tensor([w, h])
    diagonal = torch.stack([((b[:, 2:] - b[:, :2]) / cell).norm(dim=1) for b in (box, other)])
    # one minus the other: the quick way by products loses the digits that the threshold needs
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(centres(box, shape), centres(other, shape), compute_mode=exact)
    return distance < threshold * diagonal.amax(0)[:, None, None]


def windows(size: int, stride: int, side: int) -> Tensor:
    """The square windows of `size` cells, `stride` cells apart, in a map of `side` cells: (n, 4).

    One that would end at the border of the map is left out, as in ReSim's code. Raises ValueError
    for a map of `size` cells or fewer, which has none.
    """
    if side <= size:
        raise ValueError(
            f"a feature map of {side}x{side} cells has no window of {size}x{size} inside: "
            "set a larger image_size"
        )
    first = torch.arange(0, side - size, stride, dtype=torch.float64) / side
    y, x = torch.meshgrid(first, first, indexing="ij")
    low = torch.stack([x, y], -1).flatten(0, 1)  # (n, 2)
    return torch.cat([low, low + size / side], 1).float()


def moved(inside: Tensor, box: Tensor, other: Tensor) -> Tensor:
    """The windows (n, 4) of views at `box` (B, 4), seen from the views at `other`: (B, n, 4)."""
    in_image = _corner(box) + _size(box) * inside.to(box)
    return (in_image - _corner(other)) / _size(other)


def contained(window: Tensor) -> Tensor:
    """Whether windows (..., 4) lie inside the view: (...) bool."""
    return (window.amin(-1) >= 0) & (window.amax(-1) < 1)


def pool(F: Tensor, window: Tensor) -> Tensor:
    """The mean of F (B, D, h, w) over windows (B, n, 4), F between cells being bilinear: (B, n, D).

    Precise RoI pooling (arXiv 1807.11590) to one bin: an integral without sampling points. As
    there, cell i lies at i and not at i + 1/2, and F falls to 0 beyond its border.
    """
    h, w = F.shape[2:]
    scaled = full(window) * window.new_tensor([w, h, w, h])
    left, top, right, bottom = scaled.unbind(-1)  # (B, n) each
    weight = _cover(top, bottom, h)[..., None] * _cover(left, right, w)[..., None, :]
    with torch.autocast(F.device.type, enabled=False):
        return weight.flatten(2).to(full(F)) @ full(F).flatten(2).transpose(1, 2)


def _corner(box: Tensor) -> Tensor:
    return box[:, None, [0, 1, 0, 1]]  # (B, 1, 4)


def _size(box: Tensor) -> Tensor:
    return box[:, None, [2, 3, 2, 3]] - _corner(box)


def _cover(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """The share of each of `cells` in the mean over [low, high] (B, n): (B, n, cells)."""
    at = torch.arange(cells, device=low.device).to(low)
    return (_area(high[..., None] - at) - _area(low[..., None] - at)) / (high - low)[..., None]


def _area(t: Tensor) -> Tensor:
    """The area under max(0, 1 - |u|) up to u = t."""
    t = t.clamp(-1, 1)
    return 0.5 + t - t * t.abs() / 2
