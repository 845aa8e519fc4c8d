"""The images of a job: what trains, what chooses among candidates, and what is reported."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lewel_bench.evals.dense import Detection
from lewel_bench.evals.outcome import DenseSplits, Splits
from lewel_bench.evals.protocol import Semi, check_held_out
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.harness.plan.plan import Dataset, Dense, Job
from lewel_bench.pretrain import check
from lewel_bench.pretrain.folder import Images, read_folder
from lewel_bench.pretrain.subset import holdout, subset, subset_from_list
from lewel_bench.results.comparable import names_digest, published
from lewel_bench.results.record import Contents

SEED = 0  # held-out images and drawn subsets are the same for every seed of a job


def of(job: Job) -> Splits | DenseSplits[Any]:
    """The images that train, that choose among the candidates, and that are reported."""
    return dense(job) if isinstance(job.protocol, Dense) else classified(job)


def classified(job: Job) -> Splits:
    """The class folders' images of a classification job."""
    assert job.protocol is not None and not isinstance(job.protocol, Dense)
    everything = read(job.data, "train")
    reported = read(job.data, "val")
    if job.protocol.runner == "knn":
        return Splits(everything, reported, reported)
    sizes = np.bincount(everything.labels)
    check_held_out(job.protocol, len(everything), int(np.maximum(sizes - 1, 0).sum()))
    rest, held = holdout(everything, job.protocol.held_out, SEED)
    if not isinstance(job.protocol, Semi):
        return Splits(everything.take(rest), everything.take(held), reported)
    labelled = _labelled(job.data, job.protocol, everything)
    inside = set(labelled.files)
    outside = np.array([i for i in held if everything.files[i] not in inside], dtype=np.int64)
    return Splits(labelled, everything.take(outside), reported)


def _labelled(data: Dataset, protocol: Semi, images: Images) -> Images:
    if protocol.name in data.lists:
        published = PROTOCOLS[protocol.name]
        if isinstance(published, Semi) and protocol.fraction != published.fraction:
            raise ValueError(
                f"{protocol.name}.fraction {protocol.fraction:g}: {data.name} has a published list "
                f"for {published.fraction:g} only"
            )
        return images.take(subset_from_list(images, Path(data.lists[protocol.name])))
    return images.take(subset(images, protocol.fraction, SEED))


@cache
def _listed(root: Path, which: Literal["train", "val"], classes: str | None) -> Images:
    """One listing a process: an ImageNet has more than a million files."""
    return read_folder(root, which, Path(classes) if classes else None)


def read(data: Dataset, which: Literal["train", "val"]) -> Images:
    """One split of a data set."""
    return _listed(Path(data.root), which, data.classes)


def dense(job: Job) -> DenseSplits[Any]:
    """The scenes of a detection or segmentation job; nothing is held out of a final's training.

    Raises ValueError where more is to be held out than there is.
    """
    assert isinstance(job.protocol, Dense)
    train, report = _scenes(
        Path(job.data.root), job.data.layout, job.protocol.runner, published=job.data.id == "voc"
    )
    if isinstance(job.protocol, Detection) and job.protocol.masks:
        train, report = train.with_masks(), report.with_masks()
    if job.kind == "final":
        return DenseSplits(train, None, report)
    count, held = len(train), job.protocol.held_out
    check_held_out(job.protocol, count, count - 1)
    order = np.random.Generator(np.random.Philox(SEED)).permutation(count)
    return DenseSplits(train.take(np.sort(order[held:])), train.take(np.sort(order[:held])), report)


def wholes(job: Job, found: Splits | DenseSplits[Any]) -> dict[str, Contents]:
    """What the whole splits hold from which the images of each role were taken."""
    if isinstance(found, Splits):
        train, report = (contents(read(job.data, which)) for which in ("train", "val"))
        select = report if found.select is found.report else train
        return {"train": train, "select": select, "report": report}
    train = contents(found.train, more=len(found.select or ()))
    return {"train": train, "select": train, "report": contents(found.report)}


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
            train, val = _scenes(Path(data.root), data.layout, task, published=data.id == "voc")
        except ValueError as error:
            return [str(error)]
        parts = {"train": train, "val": val}
    option = "" if data.layout == "folders" else f"{data.layout}="
    return [
        f"{data.root}: {which} has {len(part):,} images of {len(part.classes):,} classes, "
        f"{differs}: complete it, or use it as data of your own with --data {option}{data.root}"
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
    found = voc.classes(root, sets) or {n for a in voc.parse_all(root, images) for n in a.names}
    if not set(found) <= set(voc.CLASSES):
        return []
    return [
        f"{root}: PASCAL VOC's classes without VOC2007, which voc07_det_c4 trains on and is tested "
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


@cache
def _scenes(root: Path, layout: str, runner: str, published: bool) -> tuple[Any, Any]:
    """(training, reported) scenes; one reading a process. What is `published` as VOC must be all of
    it: years and SBD's masks."""
    if runner == "segmentation":
        from lewel_bench.evals.segmentation import data as pictures

        return pictures.read(root, augmented=True if published else None)
    from lewel_bench.evals.detection import scenes, voc

    if layout == "coco":
        return scenes.read_coco(root, "train2017"), scenes.read_coco(root, "val2017")
    sets, reported = voc.splits(root)
    if published and len(sets) == 1:
        raise ValueError(
            f"{root} holds VOC{sets[0][0]} only: the data set voc is VOC2007 (trainval, test) and "
            "VOC2012. Add the other year, or name other data with --data voc=PATH"
        )
    train = scenes.read_voc(root, sets)
    return train, scenes.read_voc(root, reported, train.classes)
