"""The images of an evaluation: what trains, what chooses among candidates, what is reported."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.outcome import DenseSplits, Splits
from lewel_bench.evals.protocol import check_held_out
from lewel_bench.pretrain.folder import Images, Indices, read_folder
from lewel_bench.pretrain.subset import holdout, subset, subset_from_list

if TYPE_CHECKING:
    from lewel_bench.evals.classification import Linear, Semi
    from lewel_bench.evals.dense import Dense

SEED = 0  # held-out images and drawn subsets are the same for every seed of a job
LISTED_FRACTIONS = {"semi_1pct": 0.01, "semi_10pct": 0.1}  # of the lists of google-research/simclr


def read(data: Dataset, which: Literal["train", "val"]) -> Images:
    """One split of class folders."""
    return _listed(Path(data.root), which, data.classes)


@cache
def _listed(root: Path, which: Literal["train", "val"], classes: str | None) -> Images:
    """One listing a process: an ImageNet has more than a million files."""
    return read_folder(root, which, Path(classes) if classes else None)


def of_knn(data: Dataset) -> Splits:
    """All training images; nothing is chosen, so the reported images stand for the select split."""
    images, reported = read(data, "train"), read(data, "val")
    return Splits(images, reported, reported)


def of_linear(protocol: "Linear", data: Dataset) -> Splits:
    """The training images less those held out, these, and the reported images."""
    images, reported = read(data, "train"), read(data, "val")
    rest, held_out = _hold_out(protocol, images)
    return Splits(images.take(rest), images.take(held_out), reported)


def of_semi(protocol: "Semi", data: Dataset) -> Splits:
    """The labelled subset, the held-out images outside it, and the reported images."""
    images, reported = read(data, "train"), read(data, "val")
    _, held_out = _hold_out(protocol, images)
    labelled = _labelled(protocol, data, images)
    files = set(labelled.files)
    outside = np.array([i for i in held_out if images.files[i] not in files], dtype=np.int64)
    return Splits(labelled, images.take(outside), reported)


def _hold_out(protocol: "Linear | Semi", images: Images) -> tuple[Indices, Indices]:
    sizes = np.bincount(images.labels)
    most = int(np.maximum(sizes - 1, 0).sum())  # each class keeps an image
    check_held_out(protocol.name, protocol.held_out, len(images), most)
    return holdout(images, protocol.held_out, SEED)


def _labelled(protocol: "Semi", data: Dataset, images: Images) -> Images:
    if protocol.name not in data.lists:
        return images.take(subset(images, protocol.fraction, SEED))
    listed = LISTED_FRACTIONS.get(protocol.name, protocol.fraction)
    if protocol.fraction != listed:
        raise ValueError(
            f"{protocol.name}.fraction {protocol.fraction:g}: {data.name} has a published list "
            f"for {listed:g} only"
        )
    return images.take(subset_from_list(images, Path(data.lists[protocol.name])))


def of_dense(protocol: "Dense", train: Any, report: Any, *, final: bool) -> DenseSplits[Any]:
    """The scenes of a detection or segmentation job; nothing is held out of a final's training.

    Raises ValueError where more is to be held out than `train` has.
    """
    if final:
        return DenseSplits(train, None, report)
    count, held_out = len(train), protocol.held_out
    check_held_out(protocol.name, held_out, count, count - 1)
    order = np.random.Generator(np.random.Philox(SEED)).permutation(count)
    select = train.take(np.sort(order[:held_out]))
    return DenseSplits(train.take(np.sort(order[held_out:])), select, report)


def read_scenes(data: Dataset) -> tuple[Any, Any]:
    """The (training, reported) scenes of a detection data set, in VOC's or COCO's layout."""
    root = Path(data.root)
    return _coco(root) if data.layout == "coco" else _voc(root, _is_published_voc(data))


def read_labelled_images(data: Dataset) -> tuple[Any, Any]:
    """The (training, reported) images of a segmentation data set, in VOC's layout."""
    return _pictures(Path(data.root), _is_published_voc(data))


def _is_published_voc(data: Dataset) -> bool:
    """Whether it must be all of VOC, its years and SBD's masks, rather than own data."""
    return data.id == "voc"


@cache
def _coco(root: Path) -> tuple[Any, Any]:
    from lewel_bench.evals.detection import annotated_images

    return annotated_images.read_coco(root, "train2017"), annotated_images.read_coco(
        root, "val2017"
    )


@cache
def _voc(root: Path, published: bool) -> tuple[Any, Any]:
    from lewel_bench.evals.detection import annotated_images, voc

    sets, reported = voc.splits(root)
    if published and len(sets) == 1:
        raise ValueError(
            f"{root} holds VOC{sets[0][0]} only: the data set voc is VOC2007 (trainval, test) and "
            "VOC2012. Add the other year, or set another path with --data voc=PATH"
        )
    train = annotated_images.read_voc(root, sets)
    return train, annotated_images.read_voc(root, reported, train.classes)


@cache
def _pictures(root: Path, published: bool) -> tuple[Any, Any]:
    from lewel_bench.evals.segmentation import labelled_images as pictures

    return pictures.read(root, augmented=True if published else None)
