"""PASCAL VOC's average precision of one class, as detectron2's `voc_eval` computes it.

All thresholds are passed at once: which object a detection overlaps most does not depend on them.
Shapes: D detections and G objects of a class, P pairs of them, T thresholds of IoU. Boxes are in
pixels counted from 1 and include their last pixel.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
THRESHOLDS = np.arange(50, 100, 5) / 100.0  # of IoU


def class_ap(
    gt_image: Ints,
    gt_boxes: Floats,
    difficult: NDArray[np.bool_],
    image: Ints,
    scores: Floats,
    boxes: Floats,
    eleven_points: bool,
) -> Floats:
    """AP of a class at each threshold, 0 to 1; 0 without objects that count.

    `gt_image` (G,), sorted, and `image` (D,) are places of images; boxes (G, 4) and (D, 4).
    """
    positives = int((~difficult).sum())
    if not positives or not len(scores):
        return np.zeros(len(THRESHOLDS))
    order = np.argsort(-scores)  # detectron2's very call: it decides among equal scores
    overlap, best = _best(gt_image, gt_boxes, image[order], boxes[order])
    aps = []
    for threshold in THRESHOLDS:
        hit = overlap > threshold
        counted = hit & ~difficult[best]
        first = np.zeros(len(hit), dtype=bool)  # the first to find its object
        first[np.flatnonzero(counted)[np.unique(best[counted], return_index=True)[1]]] = True
        wrong = ~hit | (counted & ~first)
        tp, fp = np.cumsum(first), np.cumsum(wrong)
        recall = tp / positives
        precision = tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
        aps.append(_area(recall, precision, eleven_points))
    return np.array(aps)


def _best(gt_image: Ints, gt_boxes: Floats, image: Ints, boxes: Floats) -> tuple[Floats, Ints]:
    """The largest IoU of each detection with an object of its image (-inf without any), and which
    object that is, the first of equals."""
    begin = np.searchsorted(gt_image, image)
    count = np.searchsorted(gt_image, image, side="right") - begin
    overlap, best = np.full(len(boxes), -np.inf), np.zeros(len(boxes), dtype=np.int64)
    some = np.flatnonzero(count)
    if not len(some):
        return overlap, best
    many = count[some]
    starts = np.cumsum(many) - many
    gt = np.arange(many.sum()) - np.repeat(starts - begin[some], many)  # (P,)
    pairs = _iou(boxes[np.repeat(some, many)], gt_boxes[gt])
    overlap[some] = np.maximum.reduceat(pairs, starts)
    equal = np.flatnonzero(pairs == np.repeat(overlap[some], many))
    best[some] = gt[equal[np.searchsorted(equal, starts)]]
    return overlap, best


def _iou(a: Floats, b: Floats) -> Floats:
    """IoU of boxes (P, 4) whose last pixels belong to them."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    sides = np.maximum(high - low + 1, 0)
    inner = sides[:, 0] * sides[:, 1]
    areas = [(x[:, 2] - x[:, 0] + 1) * (x[:, 3] - x[:, 1] + 1) for x in (a, b)]
    iou: Floats = inner / (areas[0] + areas[1] - inner)
    return iou


def _area(recall: Floats, precision: Floats, eleven_points: bool) -> float:
    """The area under the curve of precision over recall."""
    if eleven_points:
        ap = 0.0
        for level in np.arange(0.0, 1.1, 0.1):
            reached = recall >= level
            ap += float(precision[reached].max()) / 11 if reached.any() else 0.0
        return ap
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([0.0], precision, [0.0]))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    change = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[change + 1] - recall[change]) * precision[change + 1]).sum())
