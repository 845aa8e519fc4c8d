"""Images with a class for every pixel, in PASCAL VOC's layout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lewel_bench.evals.detection.exif import upright
from lewel_bench.evals.segmentation import image_sets
from lewel_bench.evals.segmentation.image_sets import Pairs
from lewel_bench.evals.segmentation.masks import VOID, Pixels, check_size, mask


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and masks of one split, in the order of its list."""

    root: Path
    classes: tuple[str, ...]
    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> "LabelledImages":
        """The images at `indices`, in that order, with the same classes."""
        return replace(self, pairs=tuple(self.pairs[int(i)] for i in indices))

    def untrainable(self) -> str | None:
        """Why nothing can be learnt from these images, if so."""
        if len(self.classes) > 1:
            return None
        return f"segmentation needs at least two classes, got 1: {self.classes[0]}"

    def unmeasurable(self) -> str | None:
        """Why nothing can be measured on these images, if so. Raises ValueError naming a mask
        that cannot be read."""
        masks = (mask(self.root / file) for _, file in self.pairs)
        return None if any((labels != VOID).any() for labels in masks) else "no mask has a label"

    def names(self) -> list[str]:
        """What the files of predictions are called: the mask's name, with its path where two masks
        share one."""
        names = [Path(mask).stem for _, mask in self.pairs]
        if len(set(names)) == len(names):
            return names
        return [mask.rpartition(".")[0].replace("/", "_") for _, mask in self.pairs]


def read(root: Path, augmented: bool | None = None) -> tuple[LabelledImages, LabelledImages]:
    """The training and the reported images of a VOCdevkit.

    See `image_sets.training_set` and `read_voc_seg` for which they are, and for what is raised.
    """
    year, name = image_sets.training_set(root, augmented)
    names = image_sets.classes(root, year)
    train = read_voc_seg(root, ((year, name),), names)
    return train, read_voc_seg(root, ((year, "val"),), names)


def read_voc_seg(
    root: Path, sets: Sequence[tuple[int, str]], names: Sequence[str] | None = None
) -> LabelledImages:
    """The images of some image sets (year, name), one after the other.

    `trainaug` is VOC's train set and SBD's further images, however they are listed: masks of
    train are VOC's own, all others from SegmentationClassAug, as in mmseg's data set. `names` are
    the classes, by default those of `image_sets.classes`. Raises ValueError naming a list that is
    missing, empty or names an image twice, and the first missing file.
    """
    root = Path(root)
    pairs: list[tuple[str, str]] = []
    for year, name in sets:
        listed, problems = image_sets.listed(root, year, name)
        if problems:
            raise ValueError(problems[0])
        pairs += listed
    missing = image_sets.absent(root, pairs)
    if missing:
        raise ValueError(missing[0] + (f" (and {len(missing) - 1} more)" if missing[1:] else ""))
    return LabelledImages(root, tuple(names or image_sets.classes(root, sets[0][0])), tuple(pairs))


def pair(pictures: LabelledImages, index: int) -> tuple[Pixels, Pixels]:
    """Image (H, W, 3) and labels (H, W) of one image. Raises ValueError naming the file."""
    files = [pictures.root / file for file in pictures.pairs[index]]
    pixels, labels = upright(files[0]), mask(files[1], len(pictures.classes))
    check_size(files[1], labels, pixels.shape[:2])
    return pixels, labels
