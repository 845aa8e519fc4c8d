"""Our scenes as detectron2's data sets: registered, put into batches, and as its evaluators' truth.

Its mapper makes the examples and its rule groups them (wide and other images apart); here each
draws from a generator of its own place in the endless stream, so that a run goes on where it was
killed with the very examples that it would have seen.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.structures import BoxMode

from lewel_bench.evals.detection.annotated_images import Scene, Scenes
from lewel_bench.files import write_atomically
from lewel_bench.pretrain import workers as processes
from lewel_bench.pretrain.distributed import rank, world

Record = dict[str, Any]  # of detectron2, one an image
Draw = tuple[int, int]  # place in the stream, number of the image


def register(name: str, scenes: Scenes, metric: str, truth: Path) -> None:
    """Make `scenes` known as `name`, with the ground truth for its evaluator below `truth`.

    VOC's evaluator takes the class names' files, COCO's one json file; both are written here,
    since a split need not be one that the data set has.
    """
    coco = metric == "coco"
    forget(name)
    DatasetCatalog.register(name, lambda: [_record(scenes, s, coco) for s in scenes.scenes])
    about = MetadataCatalog.get(name)
    about.set(
        thing_classes=list(scenes.classes),
        category_ids=scenes.category_ids,
        counted={int(n) for s in scenes.scenes for n in s.objects.labels[s.objects.counted()]},
    )
    if coco:
        about.set(
            json_file=str(truth / "truth.json"),
            thing_dataset_id_to_contiguous_id={
                number: place for place, number in enumerate(scenes.category_ids)
            },
        )
    else:
        about.set(dirname=str(truth), split="images", year=2007 if metric == "voc07" else 2012)


def forget(name: str) -> None:
    """Undo `register`, if it happened."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)


def write_truth(scenes: Scenes, metric: str, folder: Path) -> None:
    """The files that `register` promised to the evaluator of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    if metric == "coco":
        content = {"info": {}, **scenes.coco_json()}
        for number, record in enumerate(content["annotations"], 1):
            record["id"] = number  # 0 would count as no match
        write_atomically(folder / "truth.json", json.dumps(content))
        return
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for scene in scenes.scenes:
        (folder / "Annotations" / f"{scene.id}.xml").write_bytes(_xml(scene, scenes.classes))
    names = "".join(f"{scene.id}\n" for scene in scenes.scenes)
    write_atomically(folder / "ImageSets" / "Main" / "images.txt", names)


class Batches:
    """The training batches of a configuration from step `start` on (0-based), this rank's part."""

    def __init__(self, cfg: Any, name: str) -> None:
        records = get_detection_dataset_dicts([name], filter_empty=True)
        if not records:
            raise ValueError("no training image has an object: nothing to detect")
        self.wide = [r["width"] > r["height"] for r in records]
        self.work = _Examples(DatasetFromList(records, copy=False), DatasetMapper(cfg, True), cfg)
        self.seed, self.each = cfg.SEED, cfg.SOLVER.IMS_PER_BATCH // world()
        self.workers, self.start = cfg.DATALOADER.NUM_WORKERS, 0

    def __iter__(self) -> Iterator[list[Record]]:
        plan = islice(grouped(self.wide, self.each, self.seed), self.start, None)
        return processes.in_order(self.work, plan, self.workers, ahead=4)


class TestImages:
    """The images of a split for its evaluation, one after the other, this rank's part."""

    def __init__(self, cfg: Any, name: str) -> None:
        records = get_detection_dataset_dicts([name], filter_empty=False)
        self.indices = list(InferenceSampler(len(records)))
        self.work = _Tests(DatasetFromList(records, copy=False), DatasetMapper(cfg, False))
        self.workers = cfg.DATALOADER.NUM_WORKERS

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[list[Record]]:
        return processes.in_order(self.work, iter(self.indices), self.workers, ahead=8)


def grouped(wide: Sequence[bool], batch: int, seed: int) -> Iterator[list[Draw]]:
    """Batches of this rank out of detectron2's endless shuffled stream, each of wide images only
    or of others only."""
    waiting: dict[bool, list[Draw]] = {True: [], False: []}
    for turn, index in enumerate(TrainingSampler(len(wide), seed=seed)):
        bucket = waiting[wide[index]]
        bucket.append((turn * world() + rank(), index))
        if len(bucket) == batch:
            yield bucket.copy()
            bucket.clear()


class _Examples:
    """A batch as the mapper makes it, from what was drawn."""

    def __init__(self, records: Any, mapper: Callable[[Record], Record], cfg: Any) -> None:
        self.records, self.mapper, self.seed = records, mapper, cfg.SEED

    def __call__(self, drawn: list[Draw]) -> list[Record]:
        before = np.random.get_state()
        try:
            return [self._example(*draw) for draw in drawn]
        finally:
            np.random.set_state(before)

    def _example(self, place: int, index: int) -> Record:
        # detectron2's augmentations draw from NumPy's global generator
        np.random.seed(np.random.SeedSequence([self.seed, place]).generate_state(4))
        return self.mapper(self.records[index])


class _Tests:
    def __init__(self, records: Any, mapper: Callable[[Record], Record]) -> None:
        self.records, self.mapper = records, mapper

    def __call__(self, index: int) -> list[Record]:
        return [self.mapper(self.records[index])]


def _record(scenes: Scenes, scene: Scene, coco: bool) -> Record:
    o = scene.objects
    boxes, mode = (o.bbox, BoxMode.XYWH_ABS) if coco else (o.boxes, BoxMode.XYXY_ABS)
    annotations = []
    for box, label, crowd, polygons, rle in zip(
        boxes.tolist(), o.labels.tolist(), o.crowd.tolist(), o.polygons, o.rles, strict=True
    ):
        record: Record = {
            "bbox": box,
            "bbox_mode": mode,
            "category_id": label,
            "iscrowd": int(crowd),
        }
        if polygons:
            record["segmentation"] = [p.tolist() for p in polygons]
        elif rle is not None and not crowd:
            record["segmentation"] = rle
        annotations.append(record)
    return {
        "file_name": str(scenes.root / scene.file),
        "image_id": scene.id,
        "height": scene.height,
        "width": scene.width,
        "annotations": annotations,
    }


def _xml(scene: Scene, classes: Sequence[str]) -> bytes:
    """An annotation as detectron2's evaluator reads it: pixels from 1, whole numbers only (VOC2012
    has some that are not)."""
    root = ET.Element("annotation")
    o = scene.objects
    for box, label, difficult in zip(o.boxes, o.labels.tolist(), o.difficult, strict=True):
        element = ET.SubElement(root, "object")
        for tag, text in (
            ("name", classes[label]),
            ("pose", "Unspecified"),
            ("truncated", "0"),
            ("difficult", str(int(difficult))),
        ):
            ET.SubElement(element, tag).text = text
        corners = ET.SubElement(element, "bndbox")
        ones = box + np.array([1, 1, 0, 0])
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), ones.tolist(), strict=True):
            ET.SubElement(corners, tag).text = str(round(value))
    return ET.tostring(root)
