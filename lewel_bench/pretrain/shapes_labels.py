"""Scenes as PASCAL VOC (xml, image sets, palette masks) and as COCO (json with polygons, RLE)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lewel_bench.pretrain.shapes_scene import CLASSES, Scene, Shape

Mask = NDArray[np.bool_]
SMALLEST = 16  # visible pixels; less is not labelled (void in VOC's masks)
VOID = 255
COCO_IDS = (1, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14, 15)  # with gaps, as COCO's own


class Label(NamedTuple):
    """A visible instance: class index, mask (H, W), box in pixels (left, top, right, bottom; right
    and bottom are exclusive) and PASCAL's flags."""

    kind: int
    mask: Mask
    box: tuple[int, int, int, int]
    truncated: bool
    occluded: bool
    difficult: bool
    crowd: bool


def labels(scene: Scene, shapes: Sequence[Shape], crowds: set[int]) -> list[Label]:
    """The instances of which enough is visible to be labelled, in the order of their numbers."""
    annotations = []
    for instance, kind in sorted({shape.instance: shape.kind for shape in shapes}.items()):
        mask = scene.instances == instance
        area = int(mask.sum())
        if area < SMALLEST:
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        inside, whole = scene.inside[instance], scene.whole[instance]
        difficult = area < 0.35 * whole or area < 60
        truncated, occluded = inside < 0.95 * whole, area < 0.9 * inside
        annotations.append(
            Label(kind, mask, box, truncated, occluded, difficult, instance in crowds)
        )
    return annotations


class Voc:
    """One year of a VOCdevkit."""

    def __init__(self, root: Path, year: int) -> None:
        self.root, self.year = root, year
        self.splits: dict[str, list[str]] = {}
        self.present: dict[
            str, dict[int, bool]
        ] = {}  # image -> class -> has an object that is not difficult
        folders = ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages")
        for folder in (*folders, "SegmentationClass", "SegmentationObject"):
            (root / folder).mkdir(parents=True)

    def add(
        self, split: str, number: int, scene: Scene, shapes: Sequence[Shape], crowds: set[int]
    ) -> None:
        """Writes the image, its xml and its masks. `crowds` must be empty: VOC has none."""
        assert not crowds
        name = f"{number:06d}" if self.year == 2007 else f"2008_{number:06d}"
        annotated = labels(scene, shapes, crowds)
        self.splits.setdefault(split, []).append(name)
        self.present[name] = {}
        for label in annotated:
            earlier = self.present[name].get(label.kind, False)
            self.present[name][label.kind] = earlier or not label.difficult
        jpeg(scene, self.root / "JPEGImages" / f"{name}.jpg")
        xml = _xml(name, f"VOC{self.year}", scene, annotated)
        (self.root / "Annotations" / f"{name}.xml").write_text(xml)
        by_class, by_object = np.zeros((2, *scene.instances.shape), np.uint8)
        for number_in_image, label in enumerate(annotated, 1):
            by_class[label.mask], by_object[label.mask] = label.kind + 1, number_in_image
        void = _borders(scene.instances) | ((scene.instances > 0) & (by_object == 0))
        for kind, values in (("Class", by_class), ("Object", by_object)):
            image = Image.fromarray(np.where(void, VOID, values).astype(np.uint8), mode="P")
            image.putpalette(palette())
            image.save(self.root / f"Segmentation{kind}" / f"{name}.png")

    def finish(self) -> None:
        """Writes the image sets; of a class: 1 present, 0 only difficult objects, -1 absent."""
        self.splits["trainval"] = sorted(self.splits["train"] + self.splits["val"])
        for split, names in self.splits.items():
            listing = "".join(f"{name}\n" for name in names)
            for task in ("Main", "Segmentation"):
                (self.root / "ImageSets" / task / f"{split}.txt").write_text(listing)
            for kind, title in enumerate(CLASSES):
                signs = {None: "-1", False: " 0", True: " 1"}
                lines = [f"{name} {signs[self.present[name].get(kind)]}\n" for name in names]
                file = self.root / "ImageSets" / "Main" / f"{title}_{split}.txt"
                file.write_text("".join(lines))


class Coco:
    """A COCO 2017 folder: instances of train and val."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        self.annotations: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        self.count = 0
        for folder in ("annotations", "train2017", "val2017"):
            (root / folder).mkdir(parents=True)

    def add(
        self, split: str, number: int, scene: Scene, shapes: Sequence[Shape], crowds: set[int]
    ) -> None:
        """Writes the image and keeps its annotations for `finish`."""
        height, width = scene.instances.shape
        file = f"{number:012d}.jpg"
        jpeg(scene, self.root / f"{split}2017" / file)
        self.images[split].append(
            {"id": number, "file_name": file, "height": height, "width": width, "license": 1}
        )
        for label in labels(scene, shapes, crowds):
            self.count += 1
            left, top, right, bottom = label.box
            shape: Any = rle(label.mask) if label.crowd else polygons(label.mask)
            area = int(label.mask.sum()) if label.crowd else _filled_area(shape, label.mask.shape)
            self.annotations[split].append(
                {
                    "id": self.count,
                    "image_id": number,
                    "category_id": COCO_IDS[label.kind],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": area,
                    "iscrowd": int(label.crowd),
                    "segmentation": shape,
                }
            )

    def finish(self) -> None:
        """Writes annotations/instances_{train,val}2017.json."""
        categories = [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in zip(COCO_IDS, CLASSES, strict=True)
        ]
        for split, images in self.images.items():
            content = {
                "info": {"description": "lewel-bench shapes", "year": 2017, "version": "1.0"},
                "licenses": [{"id": 1, "name": "generated", "url": ""}],
                "images": images,
                "annotations": self.annotations[split],
                "categories": categories,
            }
            file = self.root / "annotations" / f"instances_{split}2017.json"
            file.write_text(json.dumps(content))


def polygons(mask: Mask) -> list[list[int]]:
    """The outer outlines of a mask along pixel edges, each as x1, y1, x2, y2, …

    Clockwise on the screen. Holes are filled, since COCO's polygons cannot hold any.
    """
    following = _edges(mask)
    objects = []
    while following:
        start = next(iter(following))
        path, here, heading = [start], start, (0, 0)
        while True:
            ends = following[here]
            # where two pixels touch at a corner, the right turn keeps them apart
            right = (here[0] - heading[1], here[1] + heading[0])
            end = right if right in ends else next(iter(ends))
            ends.remove(end)
            if not ends:
                del following[here]
            heading, here = (end[0] - here[0], end[1] - here[1]), end
            if here == start:
                break
            path.append(here)
        if _twice_area(path) > 0:
            objects.append([value for point in _corners(path) for value in point])
    return objects


def rle(mask: Mask) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths, column by column, beginning with a run of zeros."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0)) if flat.size else np.empty(0, np.int64)
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def _edges(mask: Mask) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """From each corner (x, y), where the boundary goes on, the object to the right of it."""
    padded = np.pad(mask, 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    sides = [((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1))]
    sides += [((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0))]
    for (dy, dx), begin, end in sides:
        outside = ~np.roll(padded, (-dy, -dx), (0, 1))[1:-1, 1:-1]
        for y, x in np.argwhere(mask & outside).tolist():
            corner = (x + begin[0], y + begin[1])
            following.setdefault(corner, []).append((x + end[0], y + end[1]))
    return following


def _twice_area(path: Sequence[tuple[int, int]]) -> int:
    points = np.array(path)
    x, y = points[:, 0], points[:, 1]
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _corners(path: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The path without the points in the middle of a straight line."""
    before, after = [path[-1], *path[:-1]], [*path[1:], path[0]]
    return [p for a, p, b in zip(before, path, after, strict=True) if a[0] != b[0] and a[1] != b[1]]


def _filled_area(outlines: list[list[int]], size: tuple[int, ...]) -> int:
    """The number of pixels inside any of the outlines."""
    turns = np.zeros((size[0], size[1] + 1), np.int64)
    for outline in outlines:
        points = np.array(outline).reshape(-1, 2)
        for (x, y), (_, end) in zip(points, np.roll(points, -1, 0), strict=True):
            turns[min(y, end) : max(y, end), x] += np.sign(y - end)
    return int((turns.cumsum(1) > 0).sum())


def _borders(instances: NDArray[np.uint8]) -> Mask:
    """Pixels next to a pixel of another instance (or background): PASCAL's void border, 2 pixels
    wide."""
    border = np.zeros(instances.shape, bool)
    for here, target in (
        ((slice(1, None),), (slice(-1),)),
        ((..., slice(1, None)), (..., slice(-1))),
    ):
        different = instances[here] != instances[target]
        border[here] |= different
        border[target] |= different
    return border


def palette() -> list[int]:
    """PASCAL VOC's colour map: the bits of the label, three at a time, from the top bit down."""
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (np.arange(256) >> (3 * bit + channel) & 1) << (7 - bit)
    return [int(value) for value in colours.ravel()]


def jpeg(scene: Scene, path: Path) -> None:
    """Writes the pixels as a JPEG of quality 92."""
    Image.fromarray(scene.pixels).save(path, "JPEG", quality=92)


def _xml(name: str, folder: str, scene: Scene, annotated: Sequence[Label]) -> str:
    """PASCAL's annotation; boxes there count pixels from 1 and include the last one."""
    height, width = scene.instances.shape
    lines = ["<annotation>", f"\t<folder>{folder}</folder>", f"\t<filename>{name}.jpg</filename>"]
    lines += ["\t<source>", "\t\t<database>lewel-bench shapes</database>", "\t</source>"]
    lines += ["\t<size>", f"\t\t<width>{width}</width>", f"\t\t<height>{height}</height>"]
    lines += ["\t\t<depth>3</depth>", "\t</size>", "\t<segmented>1</segmented>"]
    for label in annotated:
        left, top, right, bottom = label.box
        lines += ["\t<object>", f"\t\t<name>{CLASSES[label.kind]}</name>"]
        lines += ["\t\t<pose>Unspecified</pose>", f"\t\t<truncated>{label.truncated:d}</truncated>"]
        lines += [f"\t\t<occluded>{label.occluded:d}</occluded>"]
        lines += [f"\t\t<difficult>{label.difficult:d}</difficult>", "\t\t<bndbox>"]
        lines += [f"\t\t\t<xmin>{left + 1}</xmin>", f"\t\t\t<ymin>{top + 1}</ymin>"]
        lines += [f"\t\t\t<xmax>{right}</xmax>", f"\t\t\t<ymax>{bottom}</ymax>"]
        lines += ["\t\t</bndbox>", "\t</object>"]
    return "\n".join([*lines, "</annotation>", ""])
