"""COCO's instance annotations: one json file a split, and what is wrong with it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as masks_of
from numpy.typing import NDArray

from lewel_bench.files import open_regular
from lewel_bench.pretrain.decode import MAX_PIXELS
from lewel_bench.pretrain.problems import Problem, shown

SLACK = (
    1.0  # px by which a box may pass the image's edge: annotators' rounding, clipped in training
)
LAYOUT = (
    "expected annotations/instances_train2017.json and instances_val2017.json, and the images in "
    "train2017 and val2017"
)
MAX_BYTES = 2**32  # of an annotation file; COCO's training split has 448 MB
# an empty list of 3 bytes takes 64 in memory; COCO's files have 100 bytes a list or object
MAX_CONTAINERS, BYTES_EACH = 100_000, 20
MAX_ID = 2**63 - 1
MAX_NAME = 4096  # characters of a file or category
TOLERANCE = 2.0  # px between a box and the extent of its mask, to say in which form the box is
ENOUGH = 10_000  # objects for that
NO_MASK = "left out where masks are trained and scored"
Record = dict[str, Any]


@dataclass
class Annotations:
    """The sound parts of an annotation file, and what is wrong with the others, each a sentence.

    `images` are sorted by id, `categories` too; `objects` are the annotations of each image by its
    id. Their "segmentation" is a list of polygons (2k,), run lengths (of several, their union), or
    None where none is usable.
    """

    path: Path
    images: list[Record] = field(default_factory=list)
    categories: list[Record] = field(default_factory=list)
    objects: dict[int, list[Record]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse(root: Path, split: str) -> Annotations:
    """The annotations of `train2017` or `val2017`. Raises nothing: see `problems`.

    `instances_train.json` is read where `instances_train2017.json` is not there.
    """
    folder = Path(root) / "annotations"
    path = folder / f"instances_{split}.json"
    other = folder / f"instances_{split.removesuffix('2017')}.json"
    annotations = Annotations(other if not path.exists() and other.exists() else path)
    try:
        content = _load(annotations.path)
        parts = [content[key] for key in ("images", "annotations", "categories")]
        if not all(isinstance(p, list) and all(isinstance(r, dict) for r in p) for p in parts):
            raise TypeError
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}; {LAYOUT}"
        annotations.problems.append(Problem(annotations.path, reason))
    except ValueError as error:
        annotations.problems.append(
            Problem(annotations.path, f"not valid JSON ({error}): replace the file")
        )
    except (KeyError, TypeError):
        reason = "is no COCO annotation file: expected lists 'images', 'annotations' and "
        annotations.problems.append(Problem(annotations.path, f"{reason}'categories'"))
    else:
        broken = _images(annotations, parts[0])
        _categories(annotations, parts[2])
        _objects(annotations, parts[1], broken)
    return annotations


def image_file(split: str, image: Record) -> str:
    """The file of an entry of 'images', below the data set's root."""
    return str(PurePosixPath(split, image["file_name"]))


def _load(path: Path) -> Any:
    """The content of a json file. Raises OSError, or ValueError saying what is wrong with it."""
    with open_regular(path, MAX_BYTES) as file:
        start = file.read(64)
        if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"["):
            raise ValueError("it is not a JSON object")
        data = start + file.read()
    containers = data.count(b"[") + data.count(b"{")
    if containers > max(MAX_CONTAINERS, len(data) // BYTES_EACH):
        raise ValueError(
            f"{containers:,} lists and objects in {len(data):,} bytes: too many for a COCO file"
        )
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None


def _images(result: Annotations, images: Sequence[Record]) -> set[int]:
    """Collects the sound images; returns the ids of the others."""
    broken: set[int] = set()
    for image in _unique(result, "images", images):
        try:
            _check_size(image.get("height"), image.get("width"))
            name = image.get("file_name")
            if not isinstance(name, str) or not name:
                raise ValueError("has no file_name")
            if not _is_name(name):
                raise ValueError(
                    "has an invalid file_name",
                    f"has the invalid file_name {shown(name)}",
                )
        except ValueError as error:
            broken.add(image["id"])
            result.problems.append(Problem(f"{result.path}: image {image['id']}", *error.args))
        else:
            result.images.append(image)
    result.images.sort(key=lambda image: int(image["id"]))
    for name in _doubled([image["file_name"] for image in result.images]):
        kind = "several images have the same file name: list each file once"
        detail = f"several images have the file name {name!r}: list each file once"
        result.problems.append(Problem(result.path, kind, detail))
    if not images:
        result.problems.append(Problem(result.path, "lists no images"))
    return broken


def _check_size(height: Any, width: Any) -> None:
    sides = [height, width]
    given = f"height and width {shown(sides)}"
    if any(isinstance(side, float) for side in sides):
        kind = "has height and width with a decimal point: write whole numbers of pixels"
        raise ValueError(kind, f"has {given}, with a decimal point: write whole numbers of pixels")
    if any(isinstance(side, str) for side in sides):
        kind = "has height and width in quotes: write numbers"
        raise ValueError(kind, f"has {given} as text: write numbers, without quotes")
    if not all(type(side) is int and side > 0 for side in sides):
        kind = "has no height and width: give whole numbers of pixels above 0"
        raise ValueError(kind, f"has {given}: give whole numbers of pixels above 0")
    if height * width > MAX_PIXELS:
        kind = f"is too large: the limit is {MAX_PIXELS:,} pixels"
        raise ValueError(kind, f"has {given}: the limit is {MAX_PIXELS:,} pixels")


def _categories(result: Annotations, categories: Sequence[Record]) -> None:
    for category in _unique(result, "categories", categories):
        name = category.get("name")
        if isinstance(name, str) and _is_name(name):
            result.categories.append(category)
        else:
            result.problems.append(
                Problem(f"{result.path}: category {category['id']}", "has no name")
            )
    result.categories.sort(key=lambda category: int(category["id"]))
    for name in _doubled([category["name"] for category in result.categories]):
        reason = f"several categories are named {name!r}: give each its own name"
        result.problems.append(Problem(result.path, reason))
    if not categories:
        result.problems.append(Problem(result.path, "lists no categories"))


def _objects(result: Annotations, annotations: Sequence[Record], broken: set[int]) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in result.images}
    known = {category["id"] for category in result.categories}
    result.objects = {number: [] for number in sizes}
    strangers: list[int] = []
    boxes = _BoxForm()
    outside: list[str] = []
    for annotation in _unique(result, "annotations", annotations):
        image: Any = annotation.get("image_id")
        where = f"{result.path}: object {annotation['id']} of image {shown(image)}"
        try:
            _check_number("image_id", image)
            if image in broken:
                continue
            size = sizes.get(image)
            if size is None:
                strangers.append(annotation["id"])
                continue
            _check_fields(annotation, known)
            shape, notes = _shape(annotation, size)
            boxes.see(annotation, shape)
        except ValueError as error:
            result.problems.append(Problem(where, *error.args))
            continue
        try:
            _check_box(annotation["bbox"], *size)
        except ValueError as error:
            outside.append(Problem(where, *error.args))
            continue
        result.notes += [Problem(where, *note) for note in notes]
        result.objects[int(image)].append({**annotation, "segmentation": shape})
    form = boxes.problem()
    result.problems += [Problem(result.path, form)] if form else outside
    if strangers:
        reason = "objects belong to images that are not listed, first object"
        result.notes.append(
            Problem(result.path, f"{len(strangers)} {reason} {strangers[0]}: left out")
        )


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, str):
        kind = f"has the {name} as text: write the number, without quotes"
        raise ValueError(kind, f"has the {name} {shown(value)} as text: write the number")
    if not isinstance(value, int | float):
        kind = f"has an {name} that is not a number"
        raise ValueError(kind, f"has the {name} {shown(value)}: it must be a number")


def _check_fields(annotation: Record, known: set[int]) -> None:
    """Raises ValueError for what is wrong with an object, whichever image it is of."""
    category, crowd = annotation.get("category_id"), annotation.get("iscrowd", 0)
    if isinstance(category, str):
        _check_number("category_id", category)
    if not isinstance(category, int | float) or category not in known:
        allowed = f"allowed are the {len(known)} ids of 'categories'"
        raise ValueError(
            f"has an unknown category: {allowed}",
            f"has the unknown category {shown(category)}: {allowed}",
        )
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
        kind = "has an iscrowd that is neither 0 nor 1"
        raise ValueError(kind, f"has iscrowd {shown(crowd)}: it must be 0 or 1")
    box, area = annotation.get("bbox"), annotation.get("area")
    if not (isinstance(box, list) and len(box) == 4 and _finite(box)):
        allowed = "it must be four numbers x, y, width, height"
        raise ValueError(f"has no box: {allowed}", f"has the box {shown(box)}: {allowed}")
    if not (isinstance(area, int | float) and 0 <= area < _LARGE):
        kind = "has no valid area: it must be a number of at least 0"
        raise ValueError(kind, f"has the area {shown(area)}: it must be a number of at least 0")


def _check_box(box: Sequence[float], height: int, width: int) -> None:
    """Raises ValueError saying what is wrong with a box (x, y, width, height)."""
    x, y, w, h = box
    if w < 0 or h < 0:
        rule = "width and height from 0 are allowed; correct or remove it"
        raise ValueError(
            f"has an inverted box: {rule}", f"has an inverted box {shown(box)}: {rule}"
        )
    if min(x, y) < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
        raise ValueError(
            "has a box (x, y, width, height) outside its image: correct or remove it",
            f"has a box {shown(box)} (x, y, width, height) outside the image of {width}x{height} "
            f"px: correct or remove it",
        )


class _BoxForm:
    """In which form the boxes of a file are: COCO's, corners, or fractions of the image.

    A box is compared with the extent of its mask; without a mask, its area with the object's.
    """

    def __init__(self) -> None:
        self.count = self.corners = self.sides = 0
        self.highest = 0.0

    def see(self, annotation: Record, shape: Any) -> None:
        if annotation.get("iscrowd") or self.count == ENOUGH:
            return
        x, y, w, h = (float(v) for v in annotation["bbox"])
        self.count += 1
        self.highest = max(self.highest, x, y, w, h)
        if shape is None:
            near = 1 + annotation["area"] / 100
            sides = abs(w * h - annotation["area"]) <= near
            corners = w > x and h > y and abs((w - x) * (h - y) - annotation["area"]) <= near
        else:
            right, bottom = _extent(shape)
            sides = max(abs(x + w - right), abs(y + h - bottom)) <= TOLERANCE
            corners = max(abs(w - right), abs(h - bottom)) <= TOLERANCE
        self.corners += corners and not sides
        self.sides += sides and not corners

    def problem(self) -> str | None:
        """What is wrong with the form of most boxes, if anything."""
        if self.corners > self.sides:
            return (
                f"the boxes of {self.corners} of {self.count} objects fit as corners (x1, y1, x2, "
                f"y2), but COCO's are (x, y, width, height): subtract x1 from x2 and y1 from y2"
            )
        if self.count and 0 < self.highest <= 1:
            return (
                "all boxes lie between 0 and 1: COCO's are in pixels; multiply them by the width "
                "and height of their images"
            )
        return None


def _extent(shape: Any) -> tuple[float, float]:
    """The right and bottom edge of a mask."""
    if isinstance(shape, dict):
        x, y, w, h = masks_of.toBbox([shape])[0].tolist()
        return x + w, y + h
    return max(p[::2].max() for p in shape), max(p[1::2].max() for p in shape)


def _shape(annotation: Record, size: tuple[int, int]) -> tuple[Any, list[tuple[str, ...]]]:
    """The mask of an object, see Annotations, and notes. Raises ValueError."""
    given = annotation.get("segmentation")
    notes: list[tuple[str, ...]] = []
    if not annotation["bbox"][2] or not annotation["bbox"][3]:
        kind = "has an empty box: left out in training"
        notes.append((kind, f"has an empty box {annotation['bbox']}: left out in training"))
    shape: Any
    if isinstance(given, dict):
        shape = _rle(given, size)
        if annotation.get("iscrowd"):
            return given, notes
    elif not given:
        return None, [*notes, (f"has no segmentation: {NO_MASK}",)]
    elif not isinstance(given, list):
        allowed = "polygons or run lengths are allowed"
        raise ValueError(
            f"has an unsupported segmentation: {allowed}",
            f"has the segmentation {shown(given)}: {allowed}",
        )
    elif all(isinstance(part, dict) for part in given):
        parts = [_rle(part, size) for part in given]
        shape = parts[0] if len(parts) == 1 else _text_counts(masks_of.merge(parts))
    else:
        shape, short = _polygons(given, size)
        if short is not None:
            rule = "x and y of at least 3 points are allowed (an even count from 6)"
            stay = f"left out, its {len(shape)} other polygons stay" if shape else NO_MASK
            notes.append(
                (
                    f"has a polygon of too few numbers: {rule}: {'left out' if shape else stay}",
                    f"has a polygon of {short} numbers: {rule}: {stay}",
                )
            )
            if not shape:
                return None, notes
    if isinstance(shape, dict) and not masks_of.area([shape])[0]:
        return None, [*notes, (f"has an empty mask: {NO_MASK}",)]
    return shape, notes


def _polygons(
    shape: Sequence[Any], size: tuple[int, int]
) -> tuple[list[NDArray[np.float64]], int | None]:
    """The polygons of at least 3 points, and the length of one that has fewer."""
    sound: list[NDArray[np.float64]] = []
    short = None
    for polygon in shape:
        try:
            points = np.array(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            points = np.empty((0, 0))
        if points.ndim == 1 and (len(points) < 6 or len(points) % 2):
            short = len(points)
            continue
        # drawing takes time and memory as the polygon is long, within the image or not
        highest = np.abs(points).max() if points.ndim == 1 else np.nan
        if not highest < np.inf:
            raise ValueError(
                "has a polygon that is not a flat list of finite numbers x1, y1, x2, y2, …"
            )
        if highest > 2 * max(size):
            rule = "correct or remove it"
            raise ValueError(
                f"has a polygon far outside its image: {rule}",
                f"has a polygon that reaches to {highest:g} px in an image of {size[1]}x{size[0]} "
                f"px: {rule}",
            )
        sound.append(points)
    return sound, short


def _rle(shape: Record, size: tuple[int, int]) -> Record:
    """Run lengths as COCO's string. Raises ValueError where they are not those of a mask."""
    given, counts = shape.get("size"), shape.get("counts")
    if given != list(size):
        rule = "give it the image's size (height, width)"
        raise ValueError(
            f"has a mask whose size differs from its image's: {rule}",
            f"has a mask of size {shown(given)} in an image of {list(size)}: {rule}",
        )
    if isinstance(counts, list):
        whole = _finite(counts) and all(c >= 0 and c == int(c) for c in counts)
        if not whole or sum(counts) != size[0] * size[1]:
            kind = "has a mask whose runs do not add up to its pixels"
            raise ValueError(
                kind, f"has a mask whose runs do not add up to its {size[0] * size[1]} pixels"
            )
        runs = {"size": list(size), "counts": [int(c) for c in counts]}
        return _text_counts(masks_of.frPyObjects(runs, *size))
    if not isinstance(counts, str):
        raise ValueError(
            "has a mask without counts: give a list of runs or COCO's compressed string"
        )
    runs_of_string = _runs(counts)
    if runs_of_string is None or runs_of_string.sum() != size[0] * size[1]:
        raise ValueError("has a mask whose counts are not a valid COCO run-length string")
    return {"size": list(size), "counts": counts}


def _runs(text: str) -> NDArray[np.int64] | None:
    """The runs in a string of COCO's: 5 bits a character, the sixth says that more follow; from the
    fourth run on the difference to the one before the last. None where that is no mask."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)
    if not len(ends) or codes.min() < 0 or codes.max() > 63 or ends[-1] != len(codes) - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= ((codes[ends] & 16) > 0).astype(np.int64) << (5 * lengths)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs if runs.min() >= 0 and runs.max() <= MAX_PIXELS else None


def _text_counts(rle: Record) -> Record:
    counts = rle["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in rle["size"]], "counts": text}


def _unique(result: Annotations, what: str, records: Iterable[Record]) -> list[Record]:
    """The records whose id is a whole number that none before them has."""
    seen: set[int] = set()
    kept = []
    for record in records:
        number = record.get("id")
        if type(number) is not int or not 0 <= number <= MAX_ID:
            rule = f"use whole numbers from 0 to {MAX_ID}"
            detail = f"an entry of {what!r} has the id {shown(number)}: {rule}"
            kind = f"entries of {what!r} have an id that is not a whole number: {rule}"
            result.problems.append(Problem(result.path, kind, detail))
        elif number in seen:
            kind = f"several entries of {what!r} have the same id: give each its own"
            detail = f"several entries of {what!r} have the id {number}: give each its own"
            result.problems.append(Problem(result.path, kind, detail))
        else:
            seen.add(number)
            kept.append(record)
    return kept


def _doubled(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def _finite(values: Sequence[Any]) -> bool:
    # bool is an int; nothing writes true as a coordinate
    return all(isinstance(v, int | float) and -_LARGE < v < _LARGE for v in values)


_LARGE = 1e15  # beyond it no coordinate is exact, and sums and products overflow


def _is_name(text: str) -> bool:
    """Whether a text is short and can be written in UTF-8."""
    try:
        return len(text) <= MAX_NAME and b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
