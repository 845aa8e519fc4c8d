"""Image folders in the ILSVRC layout: `ROOT/train/CLASS/*.jpg` and `ROOT/val/CLASS/*.jpg`."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
Split = Literal["train", "val"]

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")  # in any case
NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "test"),
}
LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled image files: `files` are paths below `root` with "/", sorted; `labels` (N,) index
    `classes`, which are sorted names of class folders."""

    root: Path
    files: tuple[str, ...]
    labels: Indices
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Indices) -> "Images":
        """The images at `indices`, in that order, with the same classes."""
        indices = np.asarray(indices, dtype=np.int64)
        files = tuple(self.files[i] for i in indices.tolist())
        return replace(self, files=files, labels=self.labels[indices])


def read_folder(root: Path, split: Split, classes: Sequence[str] | Path | None = None) -> Images:
    """The images of `ROOT/train` or `ROOT/val` (also `validation`, `valid` or `test`).

    `classes` restricts them to some class folders: names, or a file with one name a line
    (ImageNet-100). Labels number the sorted names of the classes; val is numbered as train is.
    Raises ValueError naming the path, what was found and what to do.
    """
    folder = _split_folder(Path(root), split)
    names = _class_folders(folder)
    if classes is not None:
        names = _chosen(
            folder, names, read_classes(classes) if isinstance(classes, Path) else classes
        )
    elif split == "val" and _find(Path(root), "train"):
        names = _numbered_as_train(Path(root), folder, names)
    if len(names) < 2:
        raise ValueError(
            f"{folder}: only one class folder ({names[0]!r}): put the images of each class into a "
            f"folder of its own, at least two"
        )
    found = {name for name in names if (folder / name).is_dir()}
    with ThreadPoolExecutor(8) as pool:  # network file systems answer each listing slowly
        listed = list(pool.map(lambda n: _files(folder, n) if n in found else [], names))
    for name, files in zip(names, listed, strict=True):
        if not files and name in found:
            raise ValueError(
                f"{folder / name}: class folder without images ({', '.join(EXTENSIONS)}): "
                f"add images or remove the folder"
            )
    labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(files) for files in listed])
    return Images(folder, tuple(f for files in listed for f in files), labels, tuple(names))


def read_classes(path: Path) -> list[str]:
    """The class names in a file, one a line; a description after the first blank is dropped."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: class list cannot be read: {error}") from None
    return [line.split()[0] for line in lines if line.strip()]


def _split_folder(root: Path, split: Split) -> Path:
    folder = _find(root, split)
    if folder:
        return folder
    allowed = " or ".join(f"{name}/" for name in NAMES[split])
    raise ValueError(f"{root}: no folder {allowed} ({_found(root)}); {LAYOUT}")


def _find(root: Path, split: Split) -> Path | None:
    return next((root / name for name in NAMES[split] if (root / name).is_dir()), None)


def _found(folder: Path) -> str:
    if not folder.exists():
        return "the folder does not exist"
    if not folder.is_dir():
        return "it is a file"
    names = sorted(entry.name for entry in _scan(folder))
    if not names:
        return "it is empty"
    return f"found {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}"


def _class_folders(folder: Path) -> list[str]:
    entries = list(_scan(folder))
    names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if names:
        return names
    flat = sum(is_image(e.name) for e in entries)
    if flat:
        raise ValueError(
            f"{folder}: {flat:,} image files without class folders: sort them into one folder a "
            f"class (for ImageNet's validation images with the official valprep.sh)"
        )
    raise ValueError(f"{folder}: no class folders ({_found(folder)}); {LAYOUT}")


def _chosen(folder: Path, names: list[str], classes: Sequence[str]) -> list[str]:
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice or not classes:
        what = f"names {twice[0]!r} twice" if twice else "is empty"
        raise ValueError(f"the class list {what}: list each class once")
    missing = sorted(set(classes) - set(names))
    if missing:
        raise ValueError(
            f"{folder}: no folder for {len(missing)} of the {len(classes)} listed classes, first "
            f"{missing[0]!r} ({_found(folder)}): add it or correct the class list"
        )
    return sorted(classes)


def _numbered_as_train(root: Path, folder: Path, names: list[str]) -> list[str]:
    train = _class_folders(_split_folder(root, "train"))
    foreign = sorted(set(names) - set(train))
    if foreign:
        raise ValueError(
            f"{folder}: {len(foreign)} classes are not in the training set, first {foreign[0]!r}: "
            f"rename or remove them, or name the classes to use"
        )
    return train


def _files(folder: Path, name: str) -> list[str]:
    return sorted(_walk(folder / name, name))


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    for entry in _scan(folder):
        if entry.name.startswith("."):
            continue  # left by operating systems and editors; torchvision would fail on them
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}/{entry.name}")
        elif is_image(entry.name):
            yield f"{prefix}/{entry.name}"


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read: {error.strerror or error}") from None


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
