"""Boxes: overlap, regression targets, matching to objects, sampling, pooling of features.

Boxes are (x1, y1, x2, y2) in pixels, in float32 whatever the precision of the network.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

Size = tuple[int, int]  # height, width
Weights = tuple[float, float]  # of a regression target's centre, of its size

MAX_LOG_SCALE = math.log(1000 / 16)  # a decoded side is at most 62.5 times its box's (Detectron)


def areas(boxes: Tensor) -> Tensor:
    """Areas (N,) of boxes (N, 4), in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair, 0 where they do not overlap: (N, 4), (M, 4) -> (N, M).

    One side at a time: half the time of (N, M, 2) tensors, and the same numbers.
    """
    width = torch.min(a[:, None, 2], b[:, 2]).sub_(torch.max(a[:, None, 0], b[:, 0])).clamp_(min=0)
    height = torch.min(a[:, None, 3], b[:, 3]).sub_(torch.max(a[:, None, 1], b[:, 1])).clamp_(min=0)
    shared = width.mul_(height)
    union = height.copy_(areas(a)[:, None] + areas(b)).sub_(shared)
    return torch.where(shared > 0, shared / union, 0.0)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (..., 4) cut to an image of `size`."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def filled(boxes: Tensor) -> Tensor:
    """Which boxes have an area: (N,) bool."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def encode(boxes: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """What to regress from `boxes` to `targets` (R-CNN, arXiv 1311.2524, appendix C): (N, 4)."""
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + 0.5 * target_size) - (boxes[:, :2] + 0.5 * size)
    return torch.cat([weights[0] * shift / size, weights[1] * torch.log(target_size / size)], dim=1)


def decode(deltas: Tensor, boxes: Tensor, weights: Weights) -> Tensor:
    """The inverse of `encode` for K predictions a box: (N, K, 4), (N, 4) -> (N, K, 4)."""
    deltas = deltas.float()
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]  # (N, 1, 2)
    centre = boxes[:, None, :2] + 0.5 * size
    centre = deltas[..., :2] / weights[0] * size + centre
    half = 0.5 * (torch.exp((deltas[..., 2:] / weights[1]).clamp(max=MAX_LOG_SCALE)) * size)
    return torch.cat([centre - half, centre + half], dim=-1)


def l1(predicted: Tensor, target: Tensor) -> Tensor:
    """The loss of regressed boxes, summed: smooth L1 with beta 0."""
    return (predicted - target).abs().sum()


def match(
    overlap: Tensor, low: float, high: float, keep_best: bool = False
) -> tuple[Tensor, Tensor]:
    """Each of M boxes' best object, and 1 (overlap >= high), 0 (< low) or -1 (between): (M,), (M,).

    `overlap` is (objects, M). With `keep_best` the boxes that overlap an object most are 1 too,
    ties included, though their own best object may be another. Without objects all are 0.
    """
    if not len(overlap):
        nothing = torch.zeros(overlap.shape[1], dtype=torch.int64, device=overlap.device)
        return nothing, nothing.to(torch.int8)
    best, owner = overlap.max(dim=0)
    hit = (best >= high).to(torch.int8)
    if low < high:
        hit[(best >= low) & (best < high)] = -1
    if keep_best:
        hit[(overlap == overlap.max(dim=1, keepdim=True).values).any(dim=0)] = 1
    return owner, hit


def draw(labels: Tensor, count: int, share: float, background: int) -> tuple[Tensor, Tensor]:
    """Positions of at most `count` random labels: objects, up to `share` of them, and background.

    Labels of -1 are left out. Draws from torch's global generator, objects first, as detectron2.
    """
    empty = labels == background
    objects = ((labels != -1) & ~empty).nonzero().squeeze(1)
    rest = empty.nonzero().squeeze(1)
    taken = min(len(objects), int(count * share))
    filled_up = min(len(rest), count - taken)
    some = torch.randperm(len(objects), device=labels.device)[:taken]
    others = torch.randperm(len(rest), device=labels.device)[:filled_up]
    return objects[some], rest[others]


def pool(
    levels: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int
) -> Tensor:
    """Features of each box by RoIAlign, all images' boxes in turn: (R, C, side, side).

    With several levels a box of 224 px is pooled from stride 16, one half or twice as large from
    the level beside it (FPN, arXiv 1612.03144, eq. 1), as far as there are levels.
    """
    flat = torch.cat(list(boxes))
    image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    rois = torch.cat([image, flat], dim=1)  # (R, 5)
    if len(levels) == 1:
        return _align(levels[0], rois, side, strides[0])
    first, last = int(math.log2(strides[0])), int(math.log2(strides[-1]))
    level = torch.floor(4 + torch.log2(torch.sqrt(areas(flat)) / 224 + 1e-8))
    level = level.clamp(first, last).to(torch.int64) - first
    pooled = levels[0].new_zeros(len(rois), levels[0].shape[1], side, side)
    for i, (x, stride) in enumerate(zip(levels, strides, strict=True)):
        (here,) = (level == i).nonzero(as_tuple=True)
        pooled.index_put_((here,), _align(x, rois[here], side, stride))
    return pooled


def _align(x: Tensor, rois: Tensor, side: int, stride: int) -> Tensor:
    precise = at_least_single(x)  # half precision would move boxes by pixels
    pooled: Tensor = roi_align(
        precise, rois.to(precise.dtype), side, 1 / stride, sampling_ratio=0, aligned=True
    )
    return pooled.to(x.dtype)


def at_least_single(x: Tensor) -> Tensor:
    """`x` in single precision where it is in less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
