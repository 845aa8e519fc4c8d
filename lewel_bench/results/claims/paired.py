"""Two models' predictions for the same images: how far their difference may be chance.

Shapes: N images, C classes, R resamples.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED

import numpy as np
from numpy.typing import NDArray

from lewel_bench.files import open_regular

RESAMPLES = 10_000
PICTURES = 1_000  # resamples of a confusion: each is a sum over all images
LARGEST = 2**29  # bytes of a file of predictions, packed or not; COCO's confusions take 130 MB
Interval = tuple[float, float]

SAME = ("files", "label")
# What a metric is computed from, as the evaluations write it: (N), (N, 5), (N, C, C).
METRICS = {
    "top1": {"files": 1, "label": 1, "top5": 2},
    "top5": {"files": 1, "label": 1, "top5": 2},
    "miou": {"files": 1, "confusion": 3},
}
UNREADABLE = (OSError, MemoryError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def interval(of: Path, over: Path, metric: str) -> tuple[Interval, int] | str:
    """The 95 % percentile interval, in points, of a difference in top1, top5 or miou under a
    bootstrap over the images that two files of predictions share, and their number; or why there
    is none. The same for the same files."""
    if metric not in METRICS:
        return f"no bootstrap over images for {metric}"
    try:
        first, theirs = _load(of, METRICS[metric]), _load(over, METRICS[metric])
    except UNREADABLE as error:
        return f"no per-image predictions: {error}"
    if any(not np.array_equal(first[name], theirs[name]) for name in first if name in SAME):
        return "the predictions of the two sides cover different images"
    random = np.random.default_rng(0)
    if metric == "miou" and first["confusion"].shape != theirs["confusion"].shape:
        return "the predictions of the two sides cover different classes"
    if metric == "miou":
        differences = _miou(first["confusion"], theirs["confusion"], random)
        count = len(first["confusion"])
    else:
        gained = _right(first, metric).astype(int) - _right(theirs, metric)  # (N,) of -1, 0, 1
        count = len(gained)
        # a resample is known by how many images it has of each kind
        shares = [(gained == kind).mean() for kind in (-1, 0, 1)]
        lost, _, won = random.multinomial(count, shares, RESAMPLES).T
        differences = 100 * (won - lost) / count
    low, high = np.percentile(differences, [2.5, 97.5])
    if not np.isfinite([low, high]).all():
        return "some bootstrap samples contain no labelled pixel"
    return (float(low), float(high)), count


def _load(path: Path, dimensions: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    with open_regular(path, LARGEST) as raw:
        if not zipfile.is_zipfile(raw):
            raise ValueError(f"{path} is not an .npz file")
        with zipfile.ZipFile(raw) as archive:
            entries = archive.infolist()
        # Python unpacks other members in one piece, whatever size they state
        if any(entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for entry in entries):
            raise ValueError(f"{path} uses an unsupported compression method")
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > LARGEST:
            raise ValueError(f"{path} unpacks to more than {LARGEST >> 20} MiB")
        raw.seek(0)
        file = np.load(raw, allow_pickle=False)
        arrays = {name: np.asarray(file[name]) for name in dimensions}
    for name, array in arrays.items():
        fits = array.ndim == dimensions[name] and len(array) == len(arrays["files"]) > 0
        fits &= name == "files" or array.dtype.kind in "iu"
        if not fits or (name == "confusion" and array.shape[1] != array.shape[2]):
            raise ValueError(f"{path} has {name} of shape {array.shape}, {array.dtype}")
    return arrays


def _right(predictions: dict[str, NDArray[Any]], metric: str) -> NDArray[np.bool_]:
    best = predictions["top5"][:, : 1 if metric == "top1" else 5]  # (N, 1 or 5)
    right: NDArray[np.bool_] = (best == predictions["label"][:, None]).any(1)
    return right


def _miou(of: NDArray[Any], over: NDArray[Any], random: np.random.Generator) -> NDArray[np.float64]:
    """The differences in mIoU of resampled images, whose confusions are (N, C, C)."""
    count, classes, _ = of.shape
    weights = random.multinomial(count, np.full(count, 1 / count), PICTURES).astype(float)  # (R, N)
    sums = [weights @ c.reshape(count, -1).astype(float) for c in (of, over)]  # (R, C * C)
    first, second = (miou(counts.reshape(-1, classes, classes)) for counts in sums)
    return first - second


def miou(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Percent (R,) of confusions (R, C, C): rows are true classes; a class that is neither there
    nor predicted is left out, as in the metric that a record holds."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    united = confusion.sum(2) + confusion.sum(1) - hits
    iou = np.divide(hits, united, out=np.full_like(hits, np.nan), where=united > 0)
    seen = (united > 0).sum(1).astype(float)  # (R,)
    mean: NDArray[np.float64] = np.full_like(seen, np.nan)
    np.divide(100 * np.nansum(iou, axis=1), seen, out=mean, where=seen > 0)
    return mean
