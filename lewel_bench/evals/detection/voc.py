"""PASCAL VOC's annotations: image sets, xml files, and what is wrong with them.

Pixels there count from 1 and a box includes its last one; here a box runs from edge to edge, as
detectron2 reads it: (xmin - 1, ymin - 1, xmax, ymax).
"""

import contextlib
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lewel_bench.files import read_regular
from lewel_bench.pretrain.decode import MAX_PIXELS
from lewel_bench.pretrain.folder import is_image
from lewel_bench.pretrain.problems import Problem, shown

Box = tuple[float, float, float, float]
Sets = tuple[tuple[int, str], ...]  # (year, name of an image set)

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
LAYOUT = "expected VOC2007 or VOC2012 in it, with Annotations, ImageSets/Main and JPEGImages"
MAX_LIST = 2**26  # bytes: names of a million images
MAX_XML = 2**22  # bytes: some ten thousand objects
MAX_NAME = 256  # characters of a class
UNKNOWN = 1000  # listed images without annotation that are named one by one
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
        int(match[1]): path / "ImageSets" / "Main"
        for path in sorted(Path(root).glob("VOC*"))
        if (match := re.fullmatch(r"VOC(\d{4})", path.name))
        and (path / "ImageSets" / "Main").is_dir()
    }
    if {2007, 2012} <= set(years):
        if not (years[2007] / "test.txt").is_file():
            raise ValueError(
                f"{years[2007] / 'test.txt'}: missing: VOC2007 with VOC2012 reports on the "
                f"test set of 2007; extract its archive too"
            )
        return ((2007, "trainval"), (2012, "trainval")), ((2007, "test"),)
    if not years:
        raise ValueError(f"{root}: not a VOC data set; {LAYOUT}")
    if len(years) > 1:
        raise ValueError(
            f"{root}: contains {', '.join(map(str, years))}: keep 2007 with 2012, or a single year"
        )
    year, folder = next(iter(years.items()))
    tested = (folder / "test.txt").is_file()
    return ((year, "trainval" if tested else "train"),), ((year, "test" if tested else "val"),)


def listed(root: Path, year: int, name: str) -> tuple[list[str], list[str]]:
    """The images of a set, and what is wrong with the list."""
    path = _list(root, year, name)
    try:
        lines = read_lines(path)
    except ValueError as error:
        return [], [Problem(path, f"list of images {error}; {LAYOUT}")]
    known = {file[:-4] for file in listing(Path(root) / f"VOC{year}" / "Annotations")}
    names = [listed_name(line, known) for line in lines]
    problems: list[str] = []
    if not names:
        problems.append(Problem(path, "names no images: expected one name a line, without .jpg"))
    unique = list(dict.fromkeys(names))
    if len(unique) < len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        reason = f"names {len(twice)} images twice, first {shown(twice[0])}: list each image once"
        problems.append(Problem(path, reason))
    unknown = [name for name in unique if name not in known]
    if len(unknown) > UNKNOWN:
        reason = f"{len(unknown):,} of its images have no annotation, first {shown(unknown[0])}"
        problems.append(Problem(path, f"{reason}: correct the list, or add the files"))
        unique = [name for name in unique if name in known]
    return unique, problems


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not empty. Raises ValueError saying why it cannot be read."""
    try:
        text = read_regular(path, MAX_LIST).decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot be read: not UTF-8 ({error.reason}); convert it") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def listed_name(line: str, known: Container[str]) -> str:
    """The image that a line of a list names: the whole line, which may hold spaces, or what stands
    before a flag, without folder and extension; the first that is `known`."""
    if line in known or not set(" \t./\\") & set(line):
        return line
    flagged = re.fullmatch(r"(.*\S)\s+(?:-1|0|1)", line)
    names = [line, *([flagged[1]] if flagged else []), line.split()[0]]
    stems = [PurePosixPath(name).stem if is_image(name) else name for name in names]
    candidates = [*names, *stems, *(PurePosixPath(stem).name for stem in stems)]
    return next((name for name in candidates if name in known), flagged[1] if flagged else line)


def find_files(root: Path, folder: str, names: Iterable[str], extension: str) -> list[str]:
    """The file of each name in a folder below `root`, as a path below it: with this extension, else
    with another of an image; with this one where there is none."""
    files = listing(Path(root) / folder)
    present = set(files)
    others = {file.rpartition(".")[0]: file for file in reversed(files) if is_image(file)}
    usual = ((name, f"{name}{extension}") for name in names)
    chosen = (file if file in present else others.get(name, file) for name, file in usual)
    return [f"{folder}/{file}" for file in chosen]


def image_files(root: Path, images: Sequence[tuple[int, str]]) -> list[str]:
    """The files of images (year, name), in order, as paths below `root`."""
    file_of: dict[tuple[int, str], str] = {}
    for year in {year for year, _ in images}:
        names = [name for of, name in images if of == year]
        files = find_files(root, f"VOC{year}/JPEGImages", names, ".jpg")
        file_of.update(zip(((year, name) for name in names), files, strict=True))
    return [file_of[image] for image in images]


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it cannot be read."""
    with contextlib.suppress(OSError):
        return sorted(os.listdir(folder))
    return []


def classes(root: Path, sets: Sequence[tuple[int, str]]) -> tuple[str, ...] | None:
    """The classes that have lists of their own (ImageSets/Main/CLASS_train.txt), None if none."""
    names: set[str] = set()
    for year, name in sets:
        ending = f"_{name}.txt"
        folder = _list(root, year, name).parent
        names |= {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}
    return tuple(sorted(names)) or None


def parse_all(root: Path, images: Sequence[tuple[int, str]]) -> list[Annotation]:
    """The annotations of images (year, name), in order."""
    paths = [Path(root) / f"VOC{year}" / "Annotations" / f"{name}.xml" for year, name in images]
    pieces = [paths[first : first + 256] for first in range(0, len(paths), 256)]
    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly
        return [a for some in pool.map(lambda p: [parse(x) for x in p], pieces) for a in some]


def parse(path: Path) -> Annotation:
    """What an xml file holds. Raises nothing: everything wrong is in `problems`."""
    annotation = Annotation(path)
    try:
        root = _tree(read_regular(path, MAX_XML))
        annotation.height, annotation.width = _size(root)
    except OSError as error:
        reason = f"annotation cannot be read: {error.strerror or error}"
        annotation.problems.append(Problem(path, reason))
        return annotation
    except ValueError as error:
        annotation.problems.append(Problem(path, *error.args))
        return annotation
    for number, element in enumerate(root.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        try:
            box = _box(element)
            difficult = (element.findtext("difficult") or "").strip()
            if not 0 < len(name) <= MAX_NAME:
                raise ValueError("has no name: give its class")
            if difficult not in ("", "0", "1"):
                rule = "it must be 0 or 1"
                raise ValueError(
                    f"has an invalid value of difficult: {rule}",
                    f"has difficult = {shown(difficult)}: {rule}",
                )
            _check(box, annotation.height, annotation.width)
        except ValueError as error:
            kind, detail = error.args[0], error.args[-1]
            place = f"object {number} ({shown(name)[1:-1] or 'no name'})"
            annotation.problems.append(Problem(path, f"an object {kind}", f"{place} {detail}"))
            continue
        annotation.numbers.append(number)
        annotation.names.append(name)
        annotation.boxes.append((box[0] - 1, box[1] - 1, box[2], box[3]))
        annotation.difficult.append(difficult == "1")
    return annotation


# Of domain names: decoding one takes time with the square of its length.
_OF_DOMAINS = ("punycode", "idna")
_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding=["']([A-Za-z0-9._-]+)""")


def _tree(data: bytes) -> ET.Element:
    """The root of an xml file. Raises ValueError saying why it is none."""
    declared = _ENCODING.match(data.removeprefix(b"\xef\xbb\xbf")[:256])
    encoding = declared[1].decode() if declared else "utf-8"
    if encoding.lower() in _OF_DOMAINS:
        raise ValueError(f"declares the encoding {encoding}, which cannot be used for files")
    try:
        return ET.fromstring(data)
    except ET.ParseError as error:
        reason = str(error)
    except (ValueError, LookupError):  # expat knows the encodings of single bytes only
        with contextlib.suppress(ValueError, LookupError, ET.ParseError):
            return ET.fromstring(data.decode(encoding))
        reason = f"cannot be decoded as {encoding}"
    try:
        data.decode(encoding)
    except (ValueError, LookupError):
        if not declared:
            raise ValueError(
                "is not in UTF-8 and declares no encoding: convert it, for example "
                "with iconv -f GBK -t UTF-8, or name the encoding in its first line "
                '(<?xml version="1.0" encoding="gbk"?>)'
            ) from None
        reason = f"is not in the encoding {encoding} that it declares"
    raise ValueError(
        "not well-formed XML: replace the file", f"not well-formed XML ({reason}): replace the file"
    )


def _list(root: Path, year: int, name: str) -> Path:
    return Path(root) / f"VOC{year}" / "ImageSets" / "Main" / f"{name}.txt"


def _size(root: ET.Element) -> tuple[int, int]:
    """Height and width."""
    sides = []
    for side in ("height", "width"):
        text = root.findtext(f"size/{side}")
        if text is None or not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or not int(text):
            rule = "it must be a whole number of pixels above 0"
            raise ValueError(f"has no size/{side}: {rule}", f"size/{side} is {shown(text)}: {rule}")
        sides.append(int(text))
    if sides[0] * sides[1] > MAX_PIXELS:
        rule = f"the limit is {MAX_PIXELS:,} pixels"
        raise ValueError(f"is too large: {rule}", f"size is {sides[1]}x{sides[0]}: {rule}")
    return sides[0], sides[1]


def _box(element: ET.Element) -> Box:
    values = []
    corners = element.find("bndbox")
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = None if corners is None else corners.findtext(key)
        try:
            values.append(float(text))  # type: ignore[arg-type]  # None is caught
        except (TypeError, ValueError):
            rule = "a number is allowed"
            raise ValueError(
                f"has no {key} in bndbox: {rule}", f"has {key} = {shown(text)} in bndbox: {rule}"
            ) from None
    return values[0], values[1], values[2], values[3]


def _check(box: Box, height: int, width: int) -> None:
    if not (box[0] <= box[2] and box[1] <= box[3]):
        rule = "allowed are xmin <= xmax and ymin <= ymax; correct or remove it"
        raise ValueError(
            f"has an inverted box: {rule}", f"has an inverted box {_shown(box)}: {rule}"
        )
    low, high = 1 - SLACK, (width + SLACK, height + SLACK)
    if not (min(box[:2]) >= low and box[2] <= high[0] and box[3] <= high[1]):
        raise ValueError(
            "has a box outside its image: correct or remove it",
            f"has a box {_shown(box)} outside the image of {width}x{height} px: x must be 1 to "
            f"{width}, y 1 to {height}; correct or remove it",
        )


def _shown(box: Box) -> str:
    return "({:g}, {:g}, {:g}, {:g})".format(*box)
