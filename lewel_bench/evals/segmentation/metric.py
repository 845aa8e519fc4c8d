"""Mean intersection over union. Shapes: H, W of an image, C classes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewel_bench.evals.segmentation.masks import VOID, Pixels

Counts = NDArray[np.int64]


def confusion(predicted: Pixels, truth: Pixels, classes: int) -> Counts:
    """Pixels (C, C) of each true class (row) that were given each class; void ones not counted."""
    known = truth != VOID
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def scores(counts: Counts, classes: tuple[str, ...]) -> dict[str, Any]:
    """miou, pixel_acc and class_acc in percent, and the IoU "per_class", of a split's confusion.

    As mmseg's IoUMetric: a class that is neither there nor predicted has no IoU (None) and is left
    out of the mean; one that is predicted but not there counts with 0. Without any labelled pixel
    the numbers are nan.
    """
    hits, present, given = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore"):
        iou = 100 * hits / (present + given - hits)  # (C,)
        recall = 100 * hits / present
        pixel_acc = 100 * hits.sum() / present.sum()
    return {
        "miou": _mean(iou),
        "pixel_acc": float(pixel_acc),
        "class_acc": _mean(recall),
        "per_class": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(classes, iou, strict=True)
        },
    }


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
