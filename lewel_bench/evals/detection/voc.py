"""PASCAL VOC's annotations: image sets, xml files, and what is wrong with them.

Pixels there count from 1 and a box includes its last one; here a box runs from edge to edge, as
detectron2 reads it: (xmin - 1, ymin - 1, xmax, ymax).
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

Box = tuple[float, float, float, float]
Sets = tuple[tuple[int, str], ...]  # (year, name of an image set)

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
LAYOUT = "expected VOC2007 or VOC2012 in it, with Annotations, ImageSets/Main and JPEGImages"
SLACK = (
    1.0  # px by which a box may pass the image's edge: annotators' rounding, clipped in training
)


@dataclass
class Annotation:
    """One xml file, and what is wrong with it, each a sentence."""

    path: Path
    height: int = 0
    width: int = 0
    numbers: list[int] = field(default_factory=list)  # of the sound objects, from 1
    names: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def splits(root: Path) -> tuple[Sets, Sets]:
    """The image sets to train on and to report on.

    With 2007 and 2012: both trainvals, and 2007's test, as the papers do. With one year: trainval
    and test where there is a test set, else train and val.
    """
    years = {
        int(found[1]): path / "ImageSets" / "Main"
        for path in sorted(Path(root).glob("VOC*"))
        if (found := re.fullmatch(r"VOC(\d{4})", path.name))
        and (path / "ImageSets" / "Main").is_dir()
    }
    if {2007, 2012} <= set(years):
        if not (years[2007] / "test.txt").is_file():
            raise ValueError(
                f"{years[2007] / 'test.txt'}: missing: with VOC2007 and VOC2012 the numbers are "
                f"those of 2007's test set; extract its archive too"
            )
        return ((2007, "trainval"), (2012, "trainval")), ((2007, "test"),)
    if not years:
        raise ValueError(f"{root}: no VOC data set; {LAYOUT}")
    if len(years) > 1:
        raise ValueError(
            f"{root}: which year? Found {', '.join(map(str, years))}: allowed are 2007 with 2012, "
            f"or one year"
        )
    year, folder = next(iter(years.items()))
    tested = (folder / "test.txt").is_file()
    return ((year, "trainval" if tested else "train"),), ((year, "test" if tested else "val"),)


def listed(root: Path, year: int, name: str) -> tuple[list[str], list[str]]:
    """The images of a set, and what is wrong with the list."""
    path = _list(root, year, name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        return [], [f"{path}: list of images cannot be read: {reason}; {LAYOUT}"]
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        return [], [f"{path}: names no images: expected one name a line, without .jpg"]
    if len(set(names)) == len(names):
        return names, []
    twice = sorted({n for n in names if names.count(n) > 1})
    problem = f"{path}: names {len(twice)} images twice, first {twice[0]!r}: list each image once"
    return list(dict.fromkeys(names)), [problem]


def classes(root: Path, sets: Sequence[tuple[int, str]]) -> tuple[str, ...] | None:
    """The classes that have lists of their own (ImageSets/Main/CLASS_train.txt), None if none."""
    found: set[str] = set()
    for year, name in sets:
        ending = f"_{name}.txt"
        folder = _list(root, year, name).parent
        found |= {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}
    return tuple(sorted(found)) or None


def parse_all(root: Path, images: Sequence[tuple[int, str]]) -> list[Annotation]:
    """The annotations of images (year, name), in order."""
    paths = [Path(root) / f"VOC{year}" / "Annotations" / f"{name}.xml" for year, name in images]
    pieces = [paths[first : first + 256] for first in range(0, len(paths), 256)]
    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly
        return [a for some in pool.map(lambda p: [parse(x) for x in p], pieces) for a in some]


def parse(path: Path) -> Annotation:
    """What an xml file holds. Raises nothing: everything wrong is in `problems`."""
    found = Annotation(path)
    try:
        root = ET.fromstring(path.read_bytes())
    except OSError as error:
        found.problems.append(f"{path}: annotation cannot be read: {error.strerror or error}")
        return found
    except ET.ParseError as error:
        found.problems.append(f"{path}: no well-formed xml ({error}): replace the file")
        return found
    try:
        found.height, found.width = (_size(root, side) for side in ("height", "width"))
    except ValueError as error:
        found.problems.append(f"{path}: {error}")
        return found
    for number, element in enumerate(root.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        try:
            box = _box(element)
            difficult = (element.findtext("difficult") or "").strip()
            if not name:
                raise ValueError("has no name: give its class")
            if difficult not in ("", "0", "1"):
                raise ValueError(f"has difficult = {difficult!r}: 0 or 1 is allowed")
            _check(box, found.height, found.width)
        except ValueError as error:
            found.problems.append(f"{path}: object {number} ({name or 'no name'}) {error}")
            continue
        found.numbers.append(number)
        found.names.append(name)
        found.boxes.append((box[0] - 1, box[1] - 1, box[2], box[3]))
        found.difficult.append(difficult == "1")
    return found


def _list(root: Path, year: int, name: str) -> Path:
    return Path(root) / f"VOC{year}" / "ImageSets" / "Main" / f"{name}.txt"


def _size(root: ET.Element, side: str) -> int:
    text = root.findtext(f"size/{side}")
    if text is None or not text.strip().isdigit() or not int(text):
        raise ValueError(f"size/{side} is {text!r}: a whole number of pixels above 0 is allowed")
    return int(text)


def _box(element: ET.Element) -> Box:
    values = []
    corners = element.find("bndbox")
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = None if corners is None else corners.findtext(key)
        try:
            values.append(float(text))  # type: ignore[arg-type]  # None is caught
        except (TypeError, ValueError):
            raise ValueError(f"has {key} = {text!r} in bndbox: a number is allowed") from None
    return values[0], values[1], values[2], values[3]


def _check(box: Box, height: int, width: int) -> None:
    if not (box[0] <= box[2] and box[1] <= box[3]):
        raise ValueError(
            f"has an inverted box {_shown(box)}: allowed are xmin <= xmax and ymin <= ymax; "
            f"correct or remove it"
        )
    low, high = 1 - SLACK, (width + SLACK, height + SLACK)
    if not (min(box[:2]) >= low and box[2] <= high[0] and box[3] <= high[1]):
        raise ValueError(
            f"has a box {_shown(box)} outside the image of {width}x{height} px: allowed are 1 to "
            f"{width} and 1 to {height}; correct or remove it"
        )


def _shown(box: Box) -> str:
    return "({:g}, {:g}, {:g}, {:g})".format(*box)
