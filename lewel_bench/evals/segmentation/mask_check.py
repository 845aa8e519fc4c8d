"""Is a segmentation data set fit for training? Everything wrong with it, before a job is queued."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lewel_bench.evals.detection.exif import STORED, is_turned, upright
from lewel_bench.evals.segmentation import image_sets, masks
from lewel_bench.evals.segmentation.image_sets import Pairs
from lewel_bench.evals.segmentation.masks import VOID
from lewel_bench.pretrain.problems import Problem
from lewel_bench.pretrain.shapes_labels import palette

Colour = tuple[int, ...]  # red, green, blue
_AS_VOID = (
    f"label {VOID} is void, not a class: in binary masks write 1, not {VOID}, for the foreground"
)
_REORDERED = (
    "PNG optimisers reorder palettes: save masks whose palette index is the label, or greyscale "
    "masks"
)


@dataclass
class _Seen:
    """An image and its mask."""

    problems: list[str] = field(default_factory=list)
    labels: frozenset[int] | None = None  # None where the mask cannot be read
    colours: dict[int, Colour] = field(default_factory=dict)  # of these labels, by a palette


def problems(root: Path) -> tuple[list[str], list[str]]:
    """What stops a run on the masks of a VOCdevkit, and notes; a sentence each, naming the file.

    Every image and every mask is decoded. Nothing is raised: a folder that cannot be read at all is
    a problem too.
    """
    root = Path(root)
    try:
        year, name = image_sets.training_set(root)
        classes = image_sets.classes(root, year)
    except ValueError as error:
        return [Problem.of(error)], []
    problems_: list[str] = []
    notes: list[str] = []
    if len(classes) < 2:
        reason = f"segmentation needs at least two classes, got 1: {classes[0]}"
        problems_.append(Problem(root, f"{reason}; {_AS_VOID}"))
    images: dict[str, str] = {}
    palettes = _Palettes()
    for split in (name, "val"):
        pairs, wrong = image_sets.listed(root, year, split)
        problems_ += wrong
        both = [image for image, _ in pairs if image in images]
        if both:
            problems_.append(
                f"{root}: {len(both)} images of {split} are in {images[both[0]]} too, first "
                f"{Path(both[0]).stem!r}: an image must be in one split only"
            )
        images |= dict.fromkeys((image for image, _ in pairs), split)
        absent = image_sets.absent(root, pairs)
        present = [p for p in pairs if all(os.path.lexists(root / file) for file in p)]
        seen = _files(root, tuple(present) if absent else pairs, len(classes))
        of_files = [*absent, *(problem for file in seen for problem in file.problems)]
        problems_ += of_files
        void = [
            mask
            for (_, mask), file in zip(present, seen, strict=True)
            if file.labels == frozenset([VOID])
        ]
        if pairs and len(void) == len(pairs):
            problems_.append(f"{root}: no mask of {split} has a label: there is nothing to learn")
            continue
        if void:
            notes.append(f"{root}: {len(void)} masks of {split} are all void, first {void[0]}")
        reordered = [
            problem
            for (_, mask), file in zip(present, seen, strict=True)
            for problem in palettes.problems(root / mask, file.colours)
        ]
        problems_ += reordered
        notes += [] if reordered else palettes.notes(root)
        if not of_files and len(classes) > 1:
            message = _absent_classes(split, classes, seen)
            if message:
                (notes if split == "val" else problems_).append(Problem(root, message))
    return problems_, list(dict.fromkeys(notes))


def _absent_classes(split: str, classes: Sequence[str], seen: Sequence[_Seen]) -> str | None:
    """What is to be said about classes without a pixel."""
    labels = frozenset().union(*(file.labels or () for file in seen))
    absent = [f"{name} ({i})" for i, name in enumerate(classes) if i not in labels]
    if not absent:
        return None
    which = f"{len(absent)} of {len(classes)} classes have no pixel in the masks of {split}: "
    which += ", ".join(absent[:5]) + (", …" if absent[5:] else "")
    if split == "val":
        return f"{which}; mIoU is the mean over the others"
    return f"{which}; they cannot be learned. Number classes consecutively; {_AS_VOID}"


class _Palettes:
    """Whether the palettes of masks say that their indices are not the labels.

    Colours of one's own are allowed. But the colour that PASCAL gives void is not another label's,
    and the colour that one mask gives a label is not another label's in the next.
    """

    def __init__(self) -> None:
        values = iter(palette())
        standard = list(zip(values, values, values, strict=True))
        self.standard: dict[Colour, int] = {c: i for i, c in enumerate(standard)}
        self.first: dict[Colour, tuple[int, Path]] = {}
        self.moved: dict[int, int] = {}

    def problems(self, path: Path, colours: dict[int, Colour]) -> list[str]:
        """What is wrong with the colours of a mask's labels."""
        if len(set(colours.values())) < len(colours):
            return []  # colours that tell nothing
        problems: list[str] = []
        for label, colour in colours.items():
            usual = self.standard.get(colour, label)
            before, file = self.first.setdefault(colour, (label, path))
            if usual == VOID != label:
                kind = f"the palette gives a label the colour of void: {_REORDERED}"
                detail = f"the palette gives label {label} the colour of void: {_REORDERED}"
            elif before != label:
                kind = f"the palette assigns other colours than the first mask's: {_REORDERED}"
                detail = (
                    f"the palette gives label {label} the colour that label {before} has in "
                    f"{file.name}: {_REORDERED}"
                )
            else:
                if usual != label:
                    self.moved[label] = usual
                continue
            problems.append(Problem(path, kind, detail))
        return problems[:1]

    def notes(self, root: Path) -> list[str]:
        """Of labels that have PASCAL's colour of another label in every mask."""
        pairs = [f"{label} that of {usual}" for label, usual in sorted(self.moved.items())]
        if not pairs:
            return []
        which = ", ".join(pairs[:5]) + (", …" if pairs[5:] else "")
        reason = (
            f"labels have the PASCAL colours of other labels ({which}): the palette indices are "
            "used, not the colours"
        )
        return [Problem(root, f"{reason}; {_REORDERED}")]


def _files(root: Path, pairs: Pairs, classes: int) -> list[_Seen]:
    """What is in images and masks, and what is wrong with them."""

    def look(pair: tuple[str, str]) -> _Seen:
        image, mask = (root / file for file in pair)
        seen, size = _Seen(), None
        try:
            size = upright(image).shape[:2]
        except ValueError as error:
            seen.problems.append(Problem.of(error))
        try:
            labels, colours = masks.read(mask, classes)
            present = np.unique(labels).tolist()
            seen.labels = frozenset(present)
            if colours is not None:
                seen.colours = {i: tuple(colours[3 * i : 3 * i + 3]) for i in present}
            if size is not None and labels.shape == size[::-1] != size and is_turned(image):
                seen.problems.append(Problem(image, STORED))
            elif size is not None:
                masks.check_size(mask, labels, size)
        except ValueError as error:
            seen.problems.append(Problem.of(error))
        return seen

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(look, pairs))
