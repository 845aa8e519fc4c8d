"""Check an image folder before a job is queued, and report all problems at once."""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from lewel_bench.pretrain.decode import FORMATS, decode_with_kind
from lewel_bench.pretrain.folder import NAMES, Images, counted, list_folder
from lewel_bench.pretrain.problems import Problem
from lewel_bench.value import printable

_SEED = 0  # of the sample: the same data set gets the same report
_MODES = {
    "L": "greyscale",
    "1": "greyscale",
    "I": "16-bit greyscale (scaled to 8 bits)",
    "I;16": "16-bit greyscale (scaled to 8 bits)",
    "I;16B": "16-bit greyscale (scaled to 8 bits)",
    "CMYK": "CMYK",
}
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class SplitReport:
    folder: Path
    images: int
    per_class: dict[str, int]  # class name -> images
    decoded: int  # images that were decoded for the check
    fingerprint: str


@dataclass(frozen=True)
class DataReport:
    """`problems` stop a run; `notes` list what was converted or skipped."""

    root: Path
    splits: dict[str, SplitReport]
    problems: list[str]
    notes: list[str]


def check(
    root: Path,
    *,
    classes: Sequence[str] | Path | None = None,
    sample: int = 2000,
    full: bool = False,
) -> DataReport:
    """The contents of `root` (in the layout of `folder.read_folder`) and all problems with it.

    Decodes all images of a split with `full` or if they are at most `sample`, else a random sample
    of that size. Raises nothing: a folder that cannot be read at all is reported as a problem.
    """
    splits: dict[str, SplitReport] = {}
    problems: list[str] = []
    notes: list[str] = []
    for split in NAMES:
        try:
            images, unreadable = list_folder(Path(root), split, classes)
            problems += unreadable
            mark = fingerprint(images)
        except ValueError as error:
            problems.append(Problem.of(error))
            continue
        if not len(images):
            continue
        chosen = _sample(len(images), len(images) if full else sample)
        counts = np.bincount(images.labels, minlength=len(images.classes)).tolist()
        per_class = dict(zip(images.classes, counts, strict=True))
        splits[split] = SplitReport(images.root, len(images), per_class, len(chosen), mark)
        bad, kinds = _decode_all(images, [images.files[i] for i in chosen])
        problems += bad
        notes += _notes(splits[split], images.left_out, kinds)
    return DataReport(Path(root), splits, problems, notes)


def fingerprint(images: Images) -> str:
    """12 hexadecimal digits that change with any file's name or size, but neither with the path
    of the folder nor with the order of its files. Raises ValueError naming a missing file."""

    def sizes(files: Sequence[str]) -> list[str]:
        return [f"{file}\0{_size(images.root / file)}\n" for file in files]

    digest = hashlib.sha256()
    for lines in _threads(sizes, sorted(images.files)):
        digest.update("".join(lines).encode())
    return digest.hexdigest()[:12]


def _decode_all(images: Images, files: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The problems of `files`, and the files of each kind that is converted to RGB."""
    problems: list[str] = []
    kinds: dict[str, list[str]] = defaultdict(list)

    def inspect_all(part: Sequence[str]) -> list[tuple[str, str, str]]:
        return [(file, *_inspect(images.root / file)) for file in part]

    for result in _threads(inspect_all, files):
        for file, problem, kind in result:
            if problem:
                problems.append(problem)
            elif kind:
                kinds[kind].append(file)
    return problems, kinds


def _inspect(path: Path) -> tuple[str, str]:
    """(problem, kind of file unless it is RGB and named for its format); both may be empty."""
    try:
        _, kind = decode_with_kind(path)
    except ValueError as error:
        return Problem.of(error), ""
    if kind.mode != "RGB" or kind.transparent:
        what = _MODES.get(kind.mode, f"{kind.mode}-mode")
        return "", f"{what} (transparency dropped)" if kind.transparent else what
    if kind.format not in ("JPEG", "MPO") and path.suffix.lower() in FORMATS["JPEG"]:
        return "", f"JPEG-named {kind.format}"
    return "", ""


def _notes(
    split: SplitReport, left_out: Mapping[str, int], kinds: dict[str, list[str]]
) -> list[str]:
    notes = [
        f"{split.folder}: converted to RGB: {len(files)} {kind}, first {printable(files[0])}"
        for kind, files in sorted(kinds.items())
    ]
    if split.decoded < split.images:
        notes.append(f"{split.folder}: {split.decoded:,} of {split.images:,} images were decoded")
    absent = [name for name, count in split.per_class.items() if not count]
    if absent:
        notes.append(
            f"{split.folder}: classes of the training set without images here: {len(absent)}, "
            f"first {absent[0]!r}"
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for name in split.per_class:
        alike[unicodedata.normalize("NFKC", name).casefold()].append(name)
    notes += [
        f"{split.folder}: class names differ only in case or Unicode form: "
        f"{', '.join(map(repr, names))}: are they the same class?"
        for names in alike.values()
        if len(names) > 1
    ]
    if left_out:
        notes.append(f"{split.folder}: skipped files: {counted(left_out)}")
    return notes


def _sample(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    draws = np.random.Philox(key=[_SEED, count]).random_raw(count)
    chosen: list[int] = np.sort(np.argsort(draws, kind="stable")[:most]).tolist()
    return chosen


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise ValueError(
            Problem(path, f"cannot be read: {error.strerror or type(error).__name__}")
        ) from None


def _threads(work: Callable[[Sequence[_T]], _R], items: Sequence[_T]) -> Iterable[_R]:
    """`work` on runs of `items`, in order: decoding and file access release the GIL."""
    pieces = [items[first : first + 256] for first in range(0, len(items), 256)]
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        yield from pool.map(work, pieces)
