"""Is a segmentation data set fit for training? Everything wrong with it, before a job is queued."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lewel_bench.evals.detection.upright import upright
from lewel_bench.evals.segmentation import lists, masks
from lewel_bench.evals.segmentation.lists import Pairs
from lewel_bench.evals.segmentation.masks import VOID

_Seen = tuple[str | None, bool]  # what is wrong, whether a pixel is labelled


def problems(root: Path) -> tuple[list[str], list[str]]:
    """What stops a run on the masks of a VOCdevkit, and notes; a sentence each, naming the file.

    Every image and every mask is decoded. Nothing is raised: a folder that cannot be read at all is
    a problem too.
    """
    root = Path(root)
    try:
        year, name = lists.training_set(root)
        classes = lists.classes(root, year)
    except ValueError as error:
        return [str(error)], []
    found: list[str] = []
    notes: list[str] = []
    if len(classes) < 2:
        found.append(
            f"{root}: segmentation needs at least two classes, and there is one: {classes[0]}"
        )
    images: dict[str, str] = {}
    for split in (name, "val"):
        pairs, wrong = lists.listed(root, year, split)
        found += wrong
        both = [image for image, _ in pairs if image in images]
        if both:
            found.append(
                f"{root}: {len(both)} pictures of {split} are in {images[both[0]]} too, first "
                f"{Path(both[0]).stem!r}: a picture belongs to one split"
            )
        images |= dict.fromkeys((image for image, _ in pairs), split)
        of_files, void = _files(root, pairs, len(classes))
        found += of_files
        if pairs and len(void) == len(pairs):
            found.append(f"{root}: no mask of {split} has a label: there is nothing to learn")
        elif void:
            notes.append(f"{root}: {len(void)} masks of {split} are all void, first {void[0]}")
    return found, notes


def _files(root: Path, pairs: Pairs, classes: int) -> tuple[list[str], list[str]]:
    """What is wrong with images and masks, and the masks without any label."""
    found = lists.absent(root, pairs)
    there = [p for p in pairs if all((root / file).is_file() for file in p)] if found else pairs

    def look(pair: tuple[str, str]) -> Iterable[_Seen]:
        image, mask = (root / file for file in pair)
        size, labels = None, None
        try:
            size = upright(image).shape[:2]
        except ValueError as error:
            yield str(error), True
        try:
            labels = masks.mask(mask, classes)
            if size is not None:
                masks.check_size(mask, labels, size)
        except ValueError as error:
            yield str(error), True
        yield None, labels is None or bool(np.any(labels != VOID))

    void = []
    with ThreadPoolExecutor(8) as pool:
        for (_, mask), seen in zip(there, pool.map(lambda p: list(look(p)), there), strict=True):
            found += [problem for problem, _ in seen if problem]
            if not all(labelled for _, labelled in seen):
                void.append(mask)
    return found, void
