"""COCO's instance annotations: one json file a split, and what is wrong with it."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SLACK = (
    1.0  # px by which a box may pass the image's edge: annotators' rounding, clipped in training
)
LAYOUT = (
    "expected annotations/instances_train2017.json and instances_val2017.json, and the images in "
    "train2017 and val2017"
)
Record = dict[str, Any]


@dataclass
class Annotations:
    """The sound parts of an annotation file, and what is wrong with the others, each a sentence.

    `images` are sorted by id, `categories` too; `objects` are the annotations of each image by its
    id, without the polygons that have fewer than 3 points.
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
    found = Annotations(other if not path.exists() and other.exists() else path)
    try:
        content = json.loads(found.path.read_bytes())
        parts = [content[key] for key in ("images", "annotations", "categories")]
        if not all(isinstance(p, list) and all(isinstance(r, dict) for r in p) for p in parts):
            raise TypeError
    except OSError as error:
        found.problems.append(f"{found.path}: cannot be read: {error.strerror or error}; {LAYOUT}")
    except ValueError as error:
        found.problems.append(f"{found.path}: no sound json ({error}): replace the file")
    except (KeyError, TypeError):
        found.problems.append(
            f"{found.path}: is no COCO annotation file: expected lists 'images', 'annotations' and "
            f"'categories'"
        )
    else:
        _images(found, parts[0])
        _categories(found, parts[2])
        _objects(found, parts[1])
    return found


def _images(found: Annotations, images: Sequence[Record]) -> None:
    for image in _unique(found, "images", images):
        sides = [image.get("height"), image.get("width")]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            found.problems.append(
                f"{found.path}: image {image['id']} has height and width {sides}: whole numbers of "
                f"pixels above 0 are allowed"
            )
        elif not isinstance(image.get("file_name"), str):
            found.problems.append(f"{found.path}: image {image['id']} has no file_name")
        else:
            found.images.append(image)
    found.images.sort(key=lambda image: int(image["id"]))
    names = [image["file_name"] for image in found.images]
    for name in _doubled(names):
        found.problems.append(
            f"{found.path}: several images have the file name {name!r}: list each file once"
        )
    if not images:
        found.problems.append(f"{found.path}: lists no images")


def _categories(found: Annotations, categories: Sequence[Record]) -> None:
    for category in _unique(found, "categories", categories):
        if isinstance(category.get("name"), str):
            found.categories.append(category)
        else:
            found.problems.append(f"{found.path}: category {category['id']} has no name")
    found.categories.sort(key=lambda category: int(category["id"]))
    for name in _doubled([category["name"] for category in found.categories]):
        found.problems.append(
            f"{found.path}: several categories are named {name!r}: give each its own name"
        )
    if not categories:
        found.problems.append(f"{found.path}: lists no categories")


def _objects(found: Annotations, annotations: Sequence[Record]) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in found.images}
    known = {category["id"] for category in found.categories}
    found.objects = {number: [] for number in sizes}
    strangers: list[Any] = []
    for annotation in _unique(found, "annotations", annotations):
        image, category = annotation.get("image_id"), annotation.get("category_id")
        where = f"{found.path}: object {annotation['id']} of image {image}"
        if not isinstance(image, int | float):
            found.problems.append(f"{where} has the image_id {image!r}: a number is allowed")
            continue
        size = sizes.get(image)
        if size is None:
            strangers.append(annotation["id"])
            continue
        try:
            if not isinstance(category, int | float) or category not in known:
                raise ValueError(
                    f"has the unknown category {category}: allowed are the {len(known)} ids of "
                    f"'categories'"
                )
            if annotation.get("iscrowd", 0) not in (0, 1):
                raise ValueError(f"has iscrowd {annotation['iscrowd']!r}: 0 or 1 is allowed")
            _box(annotation.get("bbox"), *size)
            area = annotation.get("area")
            if not (isinstance(area, int | float) and 0 <= area < math.inf):
                raise ValueError(f"has the area {area!r}: a number from 0 is allowed")
            sound, notes = _shape(annotation, size)
        except ValueError as error:
            found.problems.append(f"{where} {error}")
            continue
        found.notes += [f"{where} {note}" for note in notes]
        found.objects[int(image)].append(sound)
    if strangers:
        found.notes.append(
            f"{found.path}: {len(strangers)} objects belong to images that are not listed, first "
            f"object {strangers[0]}: left out"
        )


def _box(box: Any, height: int, width: int) -> None:
    """Raises ValueError saying what is wrong with a box (x, y, width, height)."""
    if not (isinstance(box, list) and len(box) == 4 and _finite(box)):
        raise ValueError(f"has the box {box!r}: four numbers x, y, width, height are allowed")
    x, y, w, h = box
    if w < 0 or h < 0:
        raise ValueError(
            f"has an inverted box {box}: width and height from 0 are allowed; correct or remove it"
        )
    if min(x, y) < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
        raise ValueError(
            f"has a box {box} (x, y, width, height) outside the image of {width}x{height} px: "
            f"correct or remove it"
        )


def _shape(annotation: Record, size: tuple[int, int]) -> tuple[Record, list[str]]:
    """The annotation with its sound polygons only, and notes; ValueError if it has none."""
    shape = annotation.get("segmentation")
    notes = []
    if not annotation["bbox"][2] or not annotation["bbox"][3]:
        notes.append(f"has an empty box {annotation['bbox']}: left out in training")
    if isinstance(shape, dict):
        _rle(shape, size)
        if not annotation.get("iscrowd"):
            raise ValueError(
                "has a run-length mask and is no crowd: polygons are allowed, or iscrowd 1"
            )
        return annotation, notes
    if not (isinstance(shape, list) and shape):
        raise ValueError(f"has the segmentation {shape!r}: a list of polygons is allowed")
    sound = []
    for polygon in shape:
        try:
            points = np.array(polygon, dtype=np.float64)
        except (TypeError, ValueError):
            points = np.empty((0, 0))
        if points.ndim != 1 or not np.isfinite(points).all():
            raise ValueError("has a polygon that is no list of numbers x1, y1, x2, y2, …")
        if len(points) >= 6 and len(points) % 2 == 0:
            sound.append(points)
    if len(sound) < len(shape):
        worst = next(p for p in shape if len(p) < 6 or len(p) % 2)
        what = (
            f"has a polygon of {len(worst)} numbers: x and y of at least 3 points are allowed (an "
            f"even count from 6)"
        )
        if not sound:
            raise ValueError(f"{what}; correct or remove it")
        notes.append(f"{what}: left out, its {len(sound)} other polygons stay")
    return {**annotation, "segmentation": sound}, notes


def _rle(shape: Record, size: tuple[int, int]) -> None:
    given, counts = shape.get("size"), shape.get("counts")
    if given != list(size):
        raise ValueError(
            f"has a mask of size {given} (height, width) in an image of {list(size)}: give it the "
            f"image's size"
        )
    if isinstance(counts, list):
        if not _finite(counts) or sum(counts) != size[0] * size[1] or min(counts) < 0:
            raise ValueError(
                f"has a mask whose runs do not add up to its {size[0] * size[1]} pixels"
            )
    elif not isinstance(counts, str):
        raise ValueError("has a mask without counts: a list of runs or COCO's string is allowed")


def _unique(found: Annotations, what: str, records: Iterable[Record]) -> list[Record]:
    """The records whose id is a whole number that none before them has."""
    seen: set[int] = set()
    kept = []
    for record in records:
        number = record.get("id")
        if type(number) is not int or number < 0:
            found.problems.append(
                f"{found.path}: an entry of {what!r} has the id {number!r}: whole numbers from 0 "
                f"are allowed"
            )
        elif number in seen:
            found.problems.append(
                f"{found.path}: several entries of {what!r} have the id {number}: give each its own"
            )
        else:
            seen.add(number)
            kept.append(record)
    return kept


def _doubled(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def _finite(values: Sequence[Any]) -> bool:
    # bool is an int; nothing writes true as a coordinate
    return all(isinstance(v, int | float) and -math.inf < v < math.inf for v in values)
