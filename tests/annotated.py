"""Small VOC and COCO data sets for tests, and predictions close to their ground truth."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import DATA, drawn
from PIL import Image

SIZES = [(60, 80), (80, 60), (64, 64), (50, 97)]  # (height, width), in turn


def photo(path: Path, height: int, width: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn(height, width, seed)).save(path, quality=90)


def xml(height: int, width: int, objects: list[tuple[Any, ...]]) -> str:
    """PASCAL's annotation of `objects` (name, xmin, ymin, xmax, ymax, difficult)."""
    text = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>{difficult}</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d, difficult in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{text}</annotation>"


def make_voc(
    root: Path, sets: dict[tuple[int, str], int], classes: tuple[str, ...] = ("cat", "cow", "dog")
) -> Path:
    """A VOCdevkit with the given number of images in each set. Classes, boxes and difficulty are
    random, some images have no object. VOC2007's names are numbers, others begin with a year."""
    rng = np.random.default_rng(0)
    number = 0
    for (year, name), count in sets.items():
        folder = root / f"VOC{year}"
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "Annotations").mkdir(exist_ok=True)
        names = []
        for _ in range(count):
            number += 1
            image = f"{number:06d}" if year == 2007 else f"2008_{number:06d}"
            height, width = SIZES[number % len(SIZES)]
            objects = []
            for _ in range(int(rng.integers(0, 5))):
                x, y = rng.integers(1, width - 20), rng.integers(1, height - 20)
                w, h = rng.integers(8, 40, 2)
                box = (x, y, min(x + w, width), min(y + h, height))
                objects.append((rng.choice(classes), *box, int(rng.random() < 0.2)))
            photo(folder / "JPEGImages" / f"{image}.jpg", height, width, number)
            (folder / "Annotations" / f"{image}.xml").write_text(xml(height, width, objects))
            names.append(image)
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(names) + "\n")
    return root


def make_coco(root: Path, counts: dict[str, int], crowds: bool = True) -> Path:
    """A COCO folder whose ids have gaps and are not in order; some images have no object, some have
    a crowd, some objects two polygons."""
    rng = np.random.default_rng(1)
    categories = [{"id": n, "name": name} for n, name in ((7, "kite"), (2, "car"), (4, "bus"))]
    (root / "annotations").mkdir(parents=True)
    number, key = 100, 1
    for split, count in counts.items():
        images, annotations = [], []
        for _ in range(count):
            number -= 1
            height, width = SIZES[number % len(SIZES)]
            photo(root / split / f"{number:012d}.jpg", height, width, number)
            images.append(
                {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width}
            )
            for _ in range(int(rng.integers(0, 5))):
                key += 3
                crowd = crowds and rng.random() < 0.2
                shape, box, area = (
                    _crowd(rng, height, width) if crowd else _outline(rng, height, width)
                )
                annotations.append(
                    {"id": key, "image_id": number, "category_id": int(rng.choice([2, 4, 7])),
                     "bbox": box, "area": area, "iscrowd": int(crowd), "segmentation": shape}
                )  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _outline(rng: np.random.Generator, height: int, width: int) -> tuple[Any, list[float], float]:
    polygons = []
    for _ in range(int(rng.integers(1, 3))):
        x, y, r = rng.uniform(15, width - 15), rng.uniform(15, height - 15), rng.uniform(6, 14)
        turn = np.sort(rng.uniform(0, 2 * np.pi, 9))
        points = np.stack([x + r * np.cos(turn), y + r * np.sin(turn)], axis=1)
        polygons.append(np.round(points, 2))
    everything = np.concatenate(polygons)
    low, high = everything.min(0), everything.max(0)
    area = 0.0
    for p in polygons:
        a, b = p.T
        area += abs(float(a @ np.roll(b, -1) - b @ np.roll(a, -1))) / 2
    box = [round(float(v), 2) for v in (*low, *(high - low))]
    return [p.ravel().tolist() for p in polygons], box, area


def _crowd(rng: np.random.Generator, height: int, width: int) -> tuple[Any, list[float], float]:
    x, y = (int(v) for v in rng.integers(2, 20, 2))
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + 25, x : x + 30] = 1
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return {"counts": counts, "size": [height, width]}, [float(x), float(y), 30.0, 25.0], 750.0


def real(archive: str, folder: Path) -> Path:
    """A test archive extracted into `folder`; skips without it."""
    path = DATA / archive
    if not path.is_file():
        pytest.skip(f"{archive} is not at hand (set LEWEL_BENCH_TEST_DATA)")
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    return folder


def guesses(scenes: Any, seed: int = 0, masks: bool = False) -> list[dict[str, Any]]:
    """Predictions of a mediocre detector: shifted ground truth, some of it doubled or of a wrong
    class, some boxes far from any object, many equal scores."""
    from lewel_bench.evals.detection.metrics import as_predictions

    rng = np.random.default_rng(seed)
    results = []
    for scene in scenes.scenes:
        o = scene.objects
        times = rng.integers(0, 3, len(o))
        boxes = np.repeat(o.boxes, times, axis=0)
        sides = np.repeat(boxes[:, 2:] - boxes[:, :2], 2, axis=1).reshape(-1, 2, 2)
        boxes = boxes + rng.normal(0, 0.06, boxes.shape) * sides.transpose(0, 2, 1).reshape(-1, 4)
        labels = np.repeat(o.labels, times)
        limit = np.tile([scene.width, scene.height], 2)
        wild = np.sort(rng.random((int(rng.integers(0, 4)), 2, 2)), axis=1).reshape(-1, 4) * limit
        boxes = np.concatenate([boxes, wild])
        labels = np.concatenate([labels, rng.integers(0, len(scenes.classes), len(wild))])
        wrong = rng.random(len(labels)) < 0.1
        labels[wrong] = rng.integers(0, len(scenes.classes), int(wrong.sum()))
        boxes = np.clip(boxes, 0, limit).astype(np.float32)
        # few values, so that many scores are equal when rounded
        scores = (rng.integers(50, 1000, len(boxes)) / 1000 + rng.uniform(0, 1e-4)).astype(
            np.float32
        )
        shapes = None
        if masks:
            y, x = np.mgrid[: scene.height, : scene.width] + 0.5
            b = boxes[:, :, None, None]
            shapes = (x >= b[:, 0]) & (x < b[:, 2]) & (y >= b[:, 1]) & (y < b[:, 3])
        results += as_predictions(scene.id, scenes.category_ids, boxes, scores, labels, shapes)
    return results
