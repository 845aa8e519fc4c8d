"""Masks: targets drawn from polygons, the loss, and masks pasted into an image, as detectron2.

F regions that are objects, K classes, masks of M x M pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, grid_sample
from torchvision.ops import roi_align

from lewel_bench.evals.detection.boxes import Size, at_least_single

THRESHOLD = 0.5
PASTED_AT_ONCE = 2**28  # pixels on a GPU: 1 GiB of float32

Polygons = Sequence[NDArray[np.float64]]  # of one object: (2 k,) as x, y, x, y, ... in pixels
Pixels = NDArray[np.uint8]  # of one object: its mask (H, W) in the whole image


def rasterise(
    objects: Sequence[Polygons | Pixels], boxes: NDArray[np.float32], side: int
) -> Tensor:
    """What each box (F, 4) shows of its object, as (F, side, side) bool.

    Polygons are moved and stretched so that the box is the mask, then drawn by COCO's rule; pixels
    are pooled, as by detectron2's BitMasks.
    """
    drawn = torch.zeros(len(objects), side, side, dtype=torch.bool)
    outlines = {i: s for i, s in enumerate(objects) if not isinstance(s, np.ndarray)}
    if outlines:
        drawn[list(outlines)] = _drawn(list(outlines.values()), boxes[list(outlines)], side)
    for i, (shape, box) in enumerate(zip(objects, boxes, strict=True)):
        if isinstance(shape, np.ndarray):
            drawn[i] = _pooled(shape, box, side)
    return drawn


def decoded(rle: dict[str, Any]) -> Pixels:
    """The mask (H, W) of run lengths, as a list or as COCO's string."""
    if isinstance(rle["counts"], list):
        rle = coco.frPyObjects(rle, *rle["size"])
    pixels: Pixels = coco.decode(rle)
    return pixels


def _pooled(mask: Pixels, box: NDArray[np.float32], side: int) -> Tensor:
    # nothing beyond a pixel around the box is read
    left, top = np.maximum(np.floor(box[:2]).astype(int) - 2, 0).tolist()
    right, bottom = (np.ceil(box[2:]).astype(int) + 2).tolist()
    part = torch.from_numpy(mask[top:bottom, left:right].astype(np.float32))
    roi = torch.from_numpy(np.concatenate([[0], box - [left, top, left, top]]).astype(np.float32))
    pooled: Tensor = roi_align(part[None, None], roi[None], (side, side), 1.0, 0, aligned=True)
    return pooled[0, 0] >= THRESHOLD


def _drawn(objects: Sequence[Polygons], boxes: NDArray[np.float32], side: int) -> Tensor:
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(0.1))
    scale = (np.float32(side) / size).astype(np.float64)  # (F, 2); the quotient in float32
    moved = [
        ((polygon.reshape(-1, 2) - corner) * ratio).ravel()
        for polygons, corner, ratio in zip(objects, boxes[:, :2], scale, strict=True)
        for polygon in polygons
    ]
    drawn = iter(coco.frPyObjects(moved, side, side))
    whole = [
        next(drawn) if len(polygons) == 1 else coco.merge([next(drawn) for _ in polygons])
        for polygons in objects
    ]
    return torch.from_numpy(coco.decode(whole)).permute(2, 0, 1).bool()


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of each region's own class: (F, K, M, M), (F,), (F, M, M)."""
    own = logits[torch.arange(len(logits), device=logits.device), labels]
    return binary_cross_entropy_with_logits(own, targets.to(own.dtype))


def probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each region's own class: (F, K, M, M), (F,) -> (F, M, M)."""
    own = logits[torch.arange(len(logits), device=logits.device), labels]
    return at_least_single(own).sigmoid()


def paste(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Probabilities (N, M, M) stretched over their boxes (N, 4) and cut at .5: (N, H, W) bool.

    On a CPU each in the neighbourhood of its box, on a GPU many at once: the numbers are the same.
    """
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    if masks.device.type == "cpu":
        for i, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
            x1, y1 = (int(v) for v in (box[:2].floor() - 1).clamp(min=0))
            x2 = int(box[2].ceil().add(1).clamp(max=width))
            y2 = int(box[3].ceil().add(1).clamp(max=height))
            pasted[i, y1:y2, x1:x2] = _stretch(mask[None], box[None], (y1, y2), (x1, x2))[0]
        return pasted
    chunk = max(1, PASTED_AT_ONCE // (height * width))
    for first in range(0, len(masks), chunk):
        some = slice(first, first + chunk)
        pasted[some] = _stretch(masks[some], boxes[some], (0, height), (0, width))
    return pasted


def _stretch(
    masks: Tensor, boxes: Tensor, rows: tuple[int, int], columns: tuple[int, int]
) -> Tensor:
    """The part of the pasted masks in these rows and columns of the image."""
    y = torch.arange(*rows, dtype=torch.float32, device=boxes.device) + 0.5
    x = torch.arange(*columns, dtype=torch.float32, device=boxes.device) + 0.5
    y = (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1  # (N, h)
    x = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1  # (N, w)
    shape = (len(boxes), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    seen = grid_sample(masks[:, None], grid.to(masks.dtype), align_corners=False)
    return seen[:, 0] >= THRESHOLD
