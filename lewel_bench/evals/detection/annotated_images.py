"""Images with objects: PASCAL VOC and COCO data sets in one form.

Shapes: N objects of an image, k points of a polygon. Boxes are (left, top, right, bottom) in pixels
from edge to edge.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewel_bench.evals.detection import coco, voc

Floats = NDArray[np.float64]
Polygons = tuple[Floats, ...]  # each (2k,): x1, y1, x2, y2, …


@dataclass(frozen=True, eq=False)
class Objects:
    """The ground truth of one image.

    `boxes` are what detectron2 makes of the file's; `bbox` are the file's own in COCO's form (left,
    top, width, height). `polygons` has a tuple an object, `rles` run lengths: the file's of crowds,
    COCO's string of other objects; one of both is empty or None, both where an object has no mask,
    as in VOC. `ids` are the annotations' own.
    """

    boxes: Floats  # (N, 4)
    labels: NDArray[np.int64]  # (N,), from 0
    crowd: NDArray[np.bool_]  # (N,)
    difficult: NDArray[np.bool_]  # (N,)
    areas: Floats  # (N,), in pixels; of the mask in COCO, of the box in VOC
    bbox: Floats  # (N, 4)
    ids: NDArray[np.int64]  # (N,)
    polygons: tuple[Polygons, ...]
    rles: tuple[dict[str, Any] | None, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def counted(self) -> NDArray[np.bool_]:
        """Which objects a metric counts, (N,)."""
        return ~(self.crowd | self.difficult)

    def masked(self) -> NDArray[np.bool_]:
        """Which objects have a mask, (N,)."""
        pairs = zip(self.polygons, self.rles, strict=True)
        return np.array([bool(polygons) or rle is not None for polygons, rle in pairs], dtype=bool)

    def take(self, kept: NDArray[np.bool_]) -> "Objects":
        """The objects that are `kept`, (N,)."""
        arrays = ("boxes", "labels", "crowd", "difficult", "areas", "bbox", "ids")
        return Objects(
            **{name: getattr(self, name)[kept] for name in arrays},
            polygons=tuple(compress(self.polygons, kept)),
            rles=tuple(compress(self.rles, kept)),
        )


@dataclass(frozen=True, eq=False)
class Scene:
    """An image: `file` is a path below the root of its data set with "/"; sizes in pixels."""

    file: str
    id: int
    height: int
    width: int
    objects: Objects


@dataclass(frozen=True, eq=False)
class Scenes:
    """A split of a data set; `category_ids` are the numbers of `classes` in prediction files, and
    `without_mask` says how many objects `with_masks` has left out."""

    root: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    scenes: tuple[Scene, ...]
    without_mask: int = 0

    def __len__(self) -> int:
        return len(self.scenes)

    def take(self, indices: Iterable[int]) -> "Scenes":
        """The scenes at `indices`, in that order, with the same classes."""
        return replace(self, scenes=tuple(self.scenes[int(i)] for i in indices))

    def untrainable(self) -> str | None:
        """Why nothing can be learnt from these scenes, if so."""
        if any(not s.objects.crowd.all() for s in self.scenes):
            return None
        return "no image has an object to train on"

    def with_masks(self) -> "Scenes":
        """The same images without the objects that have no mask, which detectron2 leaves out too.

        Raises ValueError where none has a mask.
        """
        masked = [scene.objects.masked() for scene in self.scenes]
        if any(map(len, masked)) and not any(mask.any() for mask in masked):
            raise ValueError(
                f"{self.root}: this protocol trains masks, but no object has a segmentation: add "
                f"segmentations, or evaluate boxes only with --set PROTOCOL.masks=false"
            )
        return replace(
            self,
            without_mask=sum(int((~mask).sum()) for mask in masked),
            scenes=tuple(
                scene if mask.all() else replace(scene, objects=scene.objects.take(mask))
                for scene, mask in zip(self.scenes, masked, strict=True)
            ),
        )

    def has_run_lengths(self) -> bool:
        """Whether an object that is no crowd has its mask as run lengths."""
        return any(
            rle is not None and not crowd
            for scene in self.scenes
            for rle, crowd in zip(scene.objects.rles, scene.objects.crowd.tolist(), strict=True)
        )

    def unmeasurable(self) -> str | None:
        """Why nothing can be measured on these scenes, if so."""
        if any(s.objects.counted().any() for s in self.scenes):
            return None
        return "no object counts, as crowds and difficult ones do not"

    def coco_json(self) -> dict[str, Any]:
        """The ground truth in COCO's format, with the files' own ids, boxes, areas and masks."""
        images = [
            {"id": s.id, "file_name": s.file, "height": s.height, "width": s.width}
            for s in self.scenes
        ]
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        objects = [record for scene in self.scenes for record in self._records(scene)]
        return {"images": images, "annotations": objects, "categories": categories}

    def _records(self, scene: Scene) -> list[dict[str, Any]]:
        o = scene.objects
        return [
            {
                "id": number,
                "image_id": scene.id,
                "category_id": self.category_ids[label],
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
                "segmentation": [p.tolist() for p in polygons] if rle is None else rle,
            }
            for number, label, bbox, area, crowd, polygons, rle in zip(
                o.ids.tolist(), o.labels.tolist(), o.bbox.tolist(), o.areas.tolist(),
                o.crowd.tolist(), o.polygons, o.rles, strict=True,
            )
        ]  # fmt: skip


def read_voc(
    root: Path, sets: Sequence[tuple[int, str]], classes: Sequence[str] | None = None
) -> Scenes:
    """The images of some image sets of a VOCdevkit, one after the other.

    `classes`: the sorted names that have lists of their own (ImageSets/Main/CLASS_train.txt) or,
    without such lists, occur: of VOC itself its twenty. Image ids are the digits of
    the name, or places in the lists where names have no digits of their own. Raises ValueError
    naming the file that is missing or broken, and why.
    """
    root = Path(root)
    names: list[tuple[int, str]] = []
    for year, name in sets:
        images, problems = voc.listed(root, year, name)
        _refuse(problems)
        names += [(year, image) for image in images]
    if len(set(names)) < len(names):
        raise ValueError(f"{root}: the sets {list(sets)} share images: name sets without overlap")
    annotations = voc.parse_all(root, names)
    for annotation in annotations:
        _refuse(annotation.problems)
    if classes is None:
        classes = voc.classes(root, sets) or sorted({n for a in annotations for n in a.names})
    number = {name: place for place, name in enumerate(classes)}
    first, scenes = 1, []
    files = voc.image_files(root, names)
    for file, key, annotated in zip(files, _image_ids(names), annotations, strict=True):
        objects = _voc_objects(annotated, number, first)
        first += len(objects)
        scenes.append(Scene(file, key, annotated.height, annotated.width, objects))
    return Scenes(root, tuple(classes), tuple(range(1, len(classes) + 1)), tuple(scenes))


def read_coco(root: Path, split: str) -> Scenes:
    """The images of `train2017` or `val2017` in the order of their ids, classes in that of theirs.

    Polygons of fewer than 3 points are left out, as detectron2 does; objects without a mask stay,
    see `Scenes.with_masks`. Raises ValueError naming the file, the object, and what is wrong with
    it.
    """
    root = Path(root)
    annotations = coco.parse(root, split)
    _refuse(annotations.problems)
    numbers = tuple(category["id"] for category in annotations.categories)
    place = {number: i for i, number in enumerate(numbers)}
    scenes = tuple(
        Scene(
            coco.image_file(split, image),
            image["id"],
            image["height"],
            image["width"],
            _coco_objects(annotations.objects[image["id"]], place),
        )
        for image in annotations.images
    )
    return Scenes(root, tuple(c["name"] for c in annotations.categories), numbers, scenes)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise ValueError(problems[0] + more)


def _voc_objects(annotation: voc.Annotation, number: dict[str, int], first: int) -> Objects:
    unknown = [name for name in annotation.names if name not in number]
    if unknown:
        raise ValueError(
            f"{annotation.path}: unknown class {unknown[0]!r}. Known: {', '.join(sorted(number))}"
        )
    boxes = np.array(annotation.boxes, dtype=np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    n = len(boxes)
    return Objects(
        boxes,
        np.array([number[name] for name in annotation.names], dtype=np.int64),
        np.zeros(n, dtype=bool),
        np.array(annotation.difficult, dtype=bool),
        sides.prod(1),
        np.concatenate([boxes[:, :2], sides], axis=1),
        np.arange(first, first + n),
        ((),) * n,
        (None,) * n,
    )


def _coco_objects(records: Sequence[dict[str, Any]], place: dict[int, int]) -> Objects:
    bbox = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)
    # detectron2 adds width and height in single precision (BoxMode.convert of a list)
    single = bbox.astype(np.float32)
    single[:, 2:] += single[:, :2]
    shapes = [r["segmentation"] for r in records]
    return Objects(
        single.astype(np.float64),
        np.array([place[r["category_id"]] for r in records], dtype=np.int64),
        np.array([bool(r.get("iscrowd", 0)) for r in records], dtype=bool),
        np.zeros(len(records), dtype=bool),
        np.array([r["area"] for r in records], dtype=np.float64),
        bbox,
        np.array([r["id"] for r in records], dtype=np.int64),
        tuple(tuple(s) if isinstance(s, list) else () for s in shapes),
        tuple(s if isinstance(s, dict) else None for s in shapes),
    )


def _image_ids(names: Sequence[tuple[int, str]]) -> list[int]:
    """2008_000002 becomes 2008000002; places from 1 where that is not one number an image."""
    digits = [name.replace("_", "") for _, name in names]
    if all(d.isdecimal() for d in digits):
        ids = [int(d) for d in digits]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(names) + 1))
