"""PASCAL VOC's image sets for segmentation, the augmented one among them, and the classes."""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lewel_bench.evals.detection import voc
from lewel_bench.evals.segmentation.masks import VOID, mask
from lewel_bench.pretrain.folder import is_image
from lewel_bench.pretrain.problems import Problem

Pairs = tuple[tuple[str, str], ...]  # (image, mask), paths below the root with "/"

CLASSES = ("background", *voc.CLASSES)
AUGMENTED = "trainaug"  # VOC12's train set with the masks of SBD, under whichever name it is listed
LAYOUT = "expected VOC2012 in it, with ImageSets/Segmentation, JPEGImages and SegmentationClass"
_LISTS = ("SegmentationAug/train_aug", "Segmentation/trainaug", "Segmentation/train_aug")
_VOC12 = (1464, 1449)  # images of VOC12's train and val


def training_set(root: Path, augmented: bool | None = None) -> tuple[int, str]:
    """The year and the image set to train on: train, or trainaug; val is reported on.

    Of several years the last counts. With `augmented` None the augmented set is taken where it is
    listed. Raises ValueError where VOC12's own train set comes without it: the paper's number is
    that of train_aug. `augmented=False` trains on the plain set.
    """
    root = Path(root)
    year = _year(root)
    if augmented is None:
        augmented = _lists_augmented(root, year)
        sizes = tuple(len(read_list(_list(root, year, name))) for name in ("train", "val"))
        if not augmented and sizes == _VOC12:
            raise ValueError(
                f"{root / f'VOC{year}'}: VOC12 without the masks of SBD, on which the paper "
                f"trains: add SegmentationClassAug and ImageSets/Segmentation/aug.txt (made by "
                f"mmsegmentation's tools/dataset_converters/voc_aug.py) or trainaug.txt"
            )
    return year, AUGMENTED if augmented else "train"


def classes(root: Path, year: int) -> tuple[str, ...]:
    """The names of the labels: `labels.txt` in the root or the year's folder (one a line, the
    background first), else VOC's convention (the classes of ImageSets/Main, sorted, after the
    background), else as many as the masks have labels. A part of VOC whose masks keep its numbers
    has all its classes. Raises ValueError where masks are broken."""
    root = Path(root)
    for folder in (root / f"VOC{year}", root):
        if (folder / "labels.txt").is_file():
            return tuple(read_list(folder / "labels.txt", whole=True))
    named = voc.classes(root, ((year, "train"),))
    if named is None:
        return ("background", *(f"label {i}" for i in range(1, _labels(root, year) + 1)))
    if set(named) < set(voc.CLASSES) and _labels(root, year) > len(named):
        return CLASSES
    return ("background", *named)


def listed(root: Path, year: int, name: str) -> tuple[Pairs, list[str]]:
    """(image, mask) of each image of a set, and what is wrong with the list."""
    base = f"VOC{year}"
    try:
        if name != AUGMENTED:
            path = _list(root, year, name)
            return _once(_pairs(root, base, read_list(path), "SegmentationClass"), path)
        own = read_list(_list(root, year, "train"))
        pairs = _pairs(root, base, own, "SegmentationClass")
        path = _list(root, year, "aug")
        if not path.is_file():
            path = _augmented_list(root, year)
            augmented = {image for image, _ in _pairs(root, base, read_list(path), "")}
            pairs = [p for p in pairs if p[0] in augmented]
        known = {image for image, _ in pairs}
        rest = _pairs(root, base, read_list(path), "SegmentationClassAug")
        extra, problems = _once(rest, path)
    except ValueError as error:
        return (), [Problem.of(error)]
    return (*pairs, *(p for p in extra if p[0] not in known)), problems


def absent(root: Path, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each file that is not there."""
    files = [file for pair in pairs for file in pair]
    with ThreadPoolExecutor(8) as pool:
        exists = list(pool.map(lambda file: os.path.lexists(root / file), files, chunksize=64))
    reason = "missing, but listed in an image set: add the file or remove the line"
    return [
        Problem(root / file, reason)
        for file, present in zip(files, exists, strict=True)
        if not present
    ]


def read_list(path: Path, whole: bool = False) -> list[str]:
    """The lines of a list that are not empty; each is one class if `whole`, else an image."""
    try:
        lines = voc.read_lines(path)
    except ValueError as error:
        raise ValueError(Problem(path, f"list {error}; {LAYOUT}")) from None
    if not lines:
        raise ValueError(f"{path}: is empty: expected one {'class' if whole else 'image'} per line")
    return lines


def _year(root: Path) -> int:
    years = [
        int(match[1])
        for path in root.glob("VOC*")
        if (match := re.fullmatch(r"VOC(\d{4})", path.name))
        and (path / "ImageSets" / "Segmentation" / "train.txt").is_file()
    ]
    if not years:
        raise ValueError(f"{root}: not a VOC data set with segmentation; {LAYOUT}")
    return max(years)


def _list(root: Path, year: int, name: str) -> Path:
    return Path(root) / f"VOC{year}" / "ImageSets" / "Segmentation" / f"{name}.txt"


def _augmented_list(root: Path, year: int) -> Path:
    places = [Path(root) / f"VOC{year}" / "ImageSets" / f"{name}.txt" for name in _LISTS]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        f"{_list(root, year, 'aug')}: missing, as are {', '.join(map(str, places))}: the "
        f"augmented set needs one of them, and SegmentationClassAug"
    )


def _lists_augmented(root: Path, year: int) -> bool:
    try:
        return _list(root, year, "aug").is_file() or bool(_augmented_list(root, year))
    except ValueError:
        return False


def _pairs(root: Path, base: str, lines: Sequence[str], masks: str) -> list[tuple[str, str]]:
    """Of lines that each name an image, or its image and its mask (SBD's train_aug.txt)."""
    folder = f"{base}/JPEGImages"
    known = {file.rpartition(".")[0] for file in voc.listing(Path(root) / folder)}
    names = [voc.listed_name(line, known) for line in lines]
    images = voc.find_files(root, folder, names, ".jpg")
    labels = voc.find_files(root, f"{base}/{masks}", names, ".png")
    pairs = []
    for line, image, mask_file in zip(lines, images, labels, strict=True):
        words = line.split()
        if len(words) == 2 and all("/" in word for word in words):
            image, mask_file = (f"{base}/{word.lstrip('/')}" for word in words)
        pairs.append((image, mask_file))
    return pairs


def _once(pairs: list[tuple[str, str]], path: Path) -> tuple[Pairs, list[str]]:
    """The pairs without those of images that came before, and a sentence about these."""
    unique = dict(reversed(pairs))
    if len(unique) == len(pairs):
        return tuple(pairs), []
    images = [image for image, _ in pairs]
    seen: set[str] = set()
    twice = [i for i in images if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
    problem = (
        f"{path}: lists {len(twice)} images twice, first {Path(twice[0]).stem!r}: list each once"
    )
    return tuple({i: (i, unique[i]) for i in images}.values()), [problem]


def _labels(root: Path, year: int) -> int:
    """The highest label of any mask."""
    files = (root / f"VOC{year}").glob("SegmentationClass*/*")
    masks = sorted(path for path in files if is_image(path.name))
    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly
        return max(pool.map(_highest, masks, chunksize=64), default=0)


def _highest(path: Path) -> int:
    labels = mask(path)
    return int(labels[labels != VOID].max(initial=0))
