"""Image folders in the ILSVRC layout: `ROOT/train/CLASS/*.jpg` and `ROOT/val/CLASS/*.jpg`."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lewel_bench.files import read_regular
from lewel_bench.pretrain.decode import FORMATS
from lewel_bench.pretrain.problems import Problem, grouped
from lewel_bench.value import printable

Indices = np.ndarray[Any, np.dtype[np.int64]]
Split = Literal["train", "val"]

EXTENSIONS = tuple(name for names in FORMATS.values() for name in names)  # in any case
LONGEST_LIST = 2**24  # bytes of a list of classes
LEFT_OUT = 10  # kinds that are counted, the most frequent
NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "test"),
}
NOT_UTF8 = "the name is not UTF-8: rename it"
LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled image files: `files` are paths below `root` with "/", sorted; `labels` (N,) index
    `classes`, which are sorted names of class folders. `left_out` counts the files in `root` that
    are not read, by extension."""

    root: Path
    files: tuple[str, ...]
    labels: Indices
    classes: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Indices) -> "Images":
        """The images at `indices`, in that order, with the same classes."""
        indices = np.asarray(indices, dtype=np.int64)
        files = tuple(self.files[i] for i in indices.tolist())
        return replace(self, files=files, labels=self.labels[indices])


@dataclass
class _Listing:
    """The contents of a class folder, or of a split folder outside its class folders."""

    files: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)


def read_folder(root: Path, split: Split, classes: Sequence[str] | Path | None = None) -> Images:
    """The images of `ROOT/train` or `ROOT/val` (also `validation`, `valid` or `test`).

    `classes` restricts them to some class folders: names, or a file with one name per
    line (ImageNet-100). Labels number the sorted class names, in val as in train. Hidden files and
    folders are skipped. Raises ValueError naming the path, its contents and what to do.
    """
    images, problems = list_folder(root, split, classes)
    if problems:
        raise ValueError("\n".join(grouped(problems)))
    return images


def list_folder(
    root: Path, split: Split, classes: Sequence[str] | Path | None = None
) -> tuple[Images, list[Problem]]:
    """The images as `read_folder` returns them, and the files and folders that cannot be read.

    Raises ValueError if the layout is wrong.
    """
    folder = _split_folder(Path(root), split)
    names, outside = _class_folders(folder)
    if classes is not None:
        names = _chosen(
            folder, names, read_classes(classes) if isinstance(classes, Path) else classes
        )
    elif split == "val" and _find(Path(root), "train"):
        names = _numbered_as_train(Path(root), folder, names)
    if len(names) < 2 and not outside.problems:
        raise ValueError(
            f"{folder}: only one class folder ({names[0]!r}): at least two are needed, "
            f"each with the images of its class"
        )
    folders = {name for name in names if os.path.isdir(folder / name)}
    with ThreadPoolExecutor(8) as pool:  # network file systems answer each listing slowly
        listed = list(
            pool.map(lambda n: _class_folder(folder, n) if n in folders else _Listing(), names)
        )
    problems, left_out = list(outside.problems), Counter(outside.left_out)
    for name, listing in zip(names, listed, strict=True):
        problems += listing.problems
        left_out.update(listing.left_out)
        if not listing.files and not listing.problems and name in folders:
            inside = counted(_frequent(listing.left_out))
            raise ValueError(
                f"{folder / name}: class folder without images ("
                f"{f'it contains {inside}' if inside else 'it is empty'}; "
                f"{', '.join(name for name in FORMATS if FORMATS[name])} are read): add images or "
                f"remove the folder"
            )
    counts = np.array([len(listing.files) for listing in listed], dtype=np.int64)
    labels = np.repeat(np.arange(len(names), dtype=np.int64), counts)
    files = tuple(file for listing in listed for file in listing.files)
    return Images(folder, files, labels, tuple(names), _frequent(left_out)), problems


def counted(left_out: Mapping[str, int]) -> str:
    """`3 .heic, 2 .txt`: the counts of an `Images.left_out`, the most frequent first."""
    most_first = sorted(left_out.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{count:,} {kind}" for kind, count in most_first)


def read_classes(path: Path) -> list[str]:
    """The class names in a file, one per line; text after the first blank is ignored."""
    try:
        lines = read_regular(path, LONGEST_LIST).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: class list cannot be read: {reason}") from None
    return [line.split()[0] for line in lines if line.strip()]


def _split_folder(root: Path, split: Split) -> Path:
    folder = _find(root, split)
    if folder:
        return folder
    allowed = " or ".join(f"{name}/" for name in NAMES[split])
    raise ValueError(f"{root}: no folder {allowed} ({_contents_message(root)}); {LAYOUT}")


def _find(root: Path, split: Split) -> Path | None:
    return next((root / name for name in NAMES[split] if os.path.isdir(root / name)), None)


def _contents_message(folder: Path) -> str:
    if not os.path.lexists(folder):
        return "the folder does not exist"
    if os.path.exists(folder) and not os.path.isdir(folder):
        return "it is a file"
    try:
        names = sorted(printable(entry.name) for entry in _scan(folder))
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not names:
        return "it is empty"
    return f"found {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}"


def _class_folders(folder: Path) -> tuple[list[str], _Listing]:
    """The names of the class folders, sorted, and the other contents of `folder`."""
    names, outside = [], _Listing()
    try:
        entries = _scan(folder)
    except OSError as error:
        raise ValueError(_unreadable(folder, error)) from None
    for entry in entries:
        if _is_hidden(entry.name):
            outside.left_out["hidden"] += 1
            continue
        try:
            is_folder = entry.is_dir()
        except OSError as error:
            outside.problems.append(_unreadable(folder / entry.name, error))
            continue
        if not is_folder:
            kind = "images outside the class folders" if is_image(entry.name) else _kind(entry.name)
            outside.left_out[kind] += 1
        elif wrong := _wrong_folder(folder, entry):
            outside.problems.append(wrong)
        else:
            names.append(entry.name)
    if names or outside.problems:
        return sorted(names), outside
    flat = sum(is_image(e.name) for e in entries)
    if flat:
        raise ValueError(
            f"{folder}: {flat:,} image files without class folders: sort them into one folder a "
            f"class (for ImageNet's validation images with the official valprep.sh)"
        )
    raise ValueError(f"{folder}: no class folders ({_contents_message(folder)}); {LAYOUT}")


def _chosen(folder: Path, names: list[str], classes: Sequence[str]) -> list[str]:
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice or not classes:
        what = f"names {twice[0]!r} twice" if twice else "is empty"
        raise ValueError(f"the class list {what}: list each class once")
    missing = sorted(set(classes) - set(names))
    if missing:
        raise ValueError(
            f"{folder}: no folder for {len(missing)} of the {len(classes)} listed classes, first "
            f"{missing[0]!r} ({_contents_message(folder)}): add it or correct the class list"
        )
    return sorted(classes)


def _numbered_as_train(root: Path, folder: Path, names: list[str]) -> list[str]:
    train, _ = _class_folders(_split_folder(root, "train"))
    foreign = sorted(set(names) - set(train))
    if foreign:
        raise ValueError(
            f"{folder}: {len(foreign)} classes are not in the training set, first {foreign[0]!r}: "
            f"rename or remove them, or name the classes to use"
        )
    return train


def _class_folder(folder: Path, name: str) -> _Listing:
    """The images of a class, in its folder and its subfolders, each read once."""
    listing = _Listing()
    waiting, seen = [name], set()
    while waiting:
        prefix = waiting.pop()
        try:
            status = os.stat(folder / prefix)
            entries = _scan(folder / prefix)
        except OSError as error:
            listing.problems.append(_unreadable(folder / prefix, error))
            continue
        if (status.st_dev, status.st_ino) in seen:
            what = "the folder is reached twice, through a link: remove the link"
            listing.problems.append(Problem(folder / prefix, what))
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            _add(listing, folder, f"{prefix}/{entry.name}", entry, waiting)
    listing.files.sort()
    return listing


def _add(
    listing: _Listing, folder: Path, file: str, entry: os.DirEntry[str], waiting: list[str]
) -> None:
    name = entry.name
    try:
        if _is_hidden(name):
            listing.left_out["hidden"] += 1
        elif entry.is_dir():
            if wrong := _wrong_folder((folder / file).parent, entry):
                listing.problems.append(wrong)
            else:
                waiting.append(file)
        elif not is_image(name):
            listing.left_out[_kind(name)] += 1
        elif not _is_utf8(name):
            listing.problems.append(Problem(folder / file, NOT_UTF8))
        elif entry.is_file():
            listing.files.append(file)
        else:
            entry.stat()  # raises where a link leads nowhere
            listing.problems.append(Problem(folder / file, "is not a regular file: remove it"))
    except OSError as error:
        listing.problems.append(_unreadable(folder / file, error))


def _wrong_folder(folder: Path, entry: os.DirEntry[str]) -> Problem | None:
    if not _is_utf8(entry.name):
        return Problem(folder / entry.name, NOT_UTF8)
    if entry.is_symlink():
        here = folder.resolve()
        if Path(entry.path).resolve() in (here, *here.parents):
            what = "the link leads back to a folder that it is in: remove it"
            return Problem(folder / entry.name, what)
    return None


def _unreadable(path: Path, error: OSError) -> Problem:
    return Problem(path, f"cannot be read: {error.strerror or type(error).__name__}")


def _is_hidden(name: str) -> bool:
    """Whether operating systems and editors leave such files; torchvision would fail on them."""
    return name.startswith(".") or name == "__MACOSX"


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(name: str) -> str:
    return printable(Path(name).suffix.lower()) or "without an extension"


def _frequent(left_out: Counter[str]) -> dict[str, int]:
    most = dict(sorted(left_out.items(), key=lambda entry: (-entry[1], entry[0]))[:LEFT_OUT])
    others = left_out.total() - sum(most.values())
    return most | ({"others": others} if others else {})


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def is_image(name: str) -> bool:
    """Whether a file name has the extension of an image, in any case."""
    return name.lower().endswith(EXTENSIONS)
