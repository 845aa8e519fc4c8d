"""What splits hold: their images, classes and fingerprints, and what differs from the published."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.outcome import DenseSplits, Splits
from lewel_bench.evals.splits import read, read_labelled_images, read_scenes
from lewel_bench.pretrain import check
from lewel_bench.pretrain.folder import Images
from lewel_bench.results.comparable import names_digest, published
from lewel_bench.results.record import Contents

READERS: dict[str, Callable[[Dataset], tuple[Any, Any]]] = {
    "detection": read_scenes,
    "segmentation": read_labelled_images,
}


def wholes(data: Dataset, splits: Splits | DenseSplits[Any]) -> dict[str, Contents]:
    """What the whole splits hold from which the images of each role were taken."""
    if isinstance(splits, Splits):
        train, report = (contents(read(data, which)) for which in ("train", "val"))
        select = report if splits.select is splits.report else train
        return {"train": train, "select": select, "report": report}
    train = contents(splits.train, more=len(splits.select or ()))
    return {"train": train, "select": train, "report": contents(splits.report)}


def contents(part: Any, more: int = 0) -> Contents:
    """What a split holds, with `more` images that were held out of it."""
    per_class = None
    if isinstance(part, Images):
        counts = np.bincount(part.labels, minlength=len(part.classes))
        per_class = (int(counts.min()), int(counts.max()))
    return Contents(
        images=len(part) + more,
        classes=len(part.classes),
        names=names_digest(part.classes),
        per_class=per_class,
    )


def unlike_published(data: Dataset, task: str) -> list[str]:
    """What in a data set that the site file names is not as published, where it is one of the
    paper's: a key says no more of it than its name. Of own data, nothing. `task` is "images" or
    what runs on scenes."""
    name = f"{data.id}_{task}" if data.id == "voc" else data.id
    known = published().get(name)
    if known is None:
        return []
    parts: dict[str, Any]
    if data.layout == "folders":
        parts = {which: read(data, which) for which in ("train", "val")}
    else:
        try:
            train, val = READERS[task](data)
        except ValueError as error:
            return [str(error)]
        parts = {"train": train, "val": val}
    option = "" if data.layout == "folders" else f"{data.layout}="
    return [
        f"{data.root}: {which} has {len(part):,} images of {len(part.classes):,} classes, "
        f"{differs}: complete it, or use it as your own data with --data {option}{data.root}"
        for which, part in parts.items()
        if (differs := known.differs(contents(part), which))
    ]


def voc_without_2007(root: Path) -> list[str]:
    """That a VOCdevkit is a part of PASCAL VOC which lacks the year that detection is trained and
    tested on; nothing of own data in its layout, which has other classes."""
    from lewel_bench.evals.detection import voc

    if (root / "VOC2007").is_dir():
        return []
    sets, _ = voc.splits(root)
    images = [(year, name) for year, set_ in sets for name in voc.listed(root, year, set_)[0]]
    classes = voc.classes(root, sets) or {n for a in voc.parse_all(root, images) for n in a.names}
    if not set(classes) <= set(voc.CLASSES):
        return []
    return [
        f"{root}: PASCAL VOC's classes without VOC2007, which voc07_det_c4 trains and tests "
        "on: add VOC2007, or name the folder VOC2007 if the data are your own (segmentation needs "
        "VOC2012 only)"
    ]


def fingerprint(part: Any) -> str:
    """12 hexadecimal digits of the files of a split and, of scenes, of their objects."""
    if isinstance(part, Images):
        known = (part.root, hash(part.files))
        if known not in _FINGERPRINTS:
            _FINGERPRINTS[known] = check.fingerprint(part)
        return _FINGERPRINTS[known]
    digest = hashlib.sha256()
    for scene in getattr(part, "scenes", ()):
        digest.update(f"{scene.file}\0{(part.root / scene.file).stat().st_size}\n".encode())
        digest.update(scene.objects.boxes.tobytes() + scene.objects.labels.tobytes())
    for pair in getattr(part, "pairs", ()):
        sizes = [f"{file}\0{(part.root / file).stat().st_size}\n" for file in pair]
        digest.update("".join(sizes).encode())
    return digest.hexdigest()[:12]


_FINGERPRINTS: dict[tuple[Path, int], str] = {}  # of class folders, which hold a million files
