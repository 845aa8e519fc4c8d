"""Average precision of boxes and masks: PASCAL VOC's as detectron2 computes it, and COCO's.

Predictions are a list of dicts as in COCO's result files: image_id, category_id, bbox (left, top,
width, height in pixels), score and, for masks, segmentation (run lengths).
Shapes: D detections, T thresholds of IoU.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as masks_of
from numpy.typing import NDArray

from lewel_bench.evals.detection import voc_metric
from lewel_bench.evals.detection.annotated_images import Floats, Scenes
from lewel_bench.evals.detection.voc_metric import THRESHOLDS, Ints
from lewel_bench.files import write_atomically

Prediction = dict[str, Any]
Metrics = dict[str, Any]


def as_predictions(
    image_id: int,
    category_ids: Sequence[int],
    boxes: NDArray[Any],
    scores: NDArray[Any],
    labels: NDArray[Any],
    masks: NDArray[np.bool_] | None = None,
) -> list[Prediction]:
    """The predictions for one image: `boxes` (D, 4) from edge to edge in float32, `scores` (D,),
    `labels` (D,) from 0, and `masks` (D, H, W) at the size of its file."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] -= corners[:, :2]  # in double precision, so that voc_ap finds the corners again
    predictions: list[Prediction] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": bbox, "score": score}
        for bbox, score, label in zip(
            corners.tolist(), np.asarray(scores).tolist(), np.asarray(labels).tolist(), strict=True
        )
    ]
    if masks is not None:
        for prediction, mask in zip(predictions, masks, strict=True):
            rle = masks_of.encode(np.asfortranarray(mask, dtype=np.uint8))
            counts = rle["counts"]
            text = counts.decode() if isinstance(counts, bytes) else counts
            prediction["segmentation"] = {
                "size": [int(side) for side in rle["size"]],
                "counts": text,
            }
    return predictions


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes COCO's result format, one prediction a line."""
    lines = ",\n".join(json.dumps(p, separators=(",", ":")) for p in predictions)
    write_atomically(path, f"[\n{lines}\n]\n" if lines else "[]\n")


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions in a file of COCO's result format. Raises ValueError naming it."""
    try:
        predictions = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    needed = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(predictions, list) or not all(
        isinstance(p, dict) and needed <= set(p) for p in predictions
    ):
        raise ValueError(
            f"{path}: is not a COCO result file: expected a list of objects with "
            f"{', '.join(sorted(needed))}"
        )
    return predictions


def coco_ap(truth: Scenes, predictions: Sequence[Prediction], masks: bool) -> Metrics:
    """`box_ap`, `box_ap50`, `box_ap75` in percent, with `masks` also `mask_ap`, …

    AP is the mean over IoU .5:.05:.95 and over the classes with ground truth; at most 100
    predictions an image. `per_class` maps the names of the former to {class: AP}, nan for a class
    without ground truth. Without any ground truth everything is nan, without predictions 0.
    """
    _known(truth, predictions)
    ground = truth.coco_json()
    for number, record in enumerate(ground["annotations"], 1):
        record["id"] = number  # 0 would count as no match
    metrics: Metrics = {}
    for kind, what in (("box", "bbox"), ("mask", "segm"))[: 1 + masks]:
        keys = {"image_id", "category_id", "score", "bbox" if what == "bbox" else "segmentation"}
        if masks and any("segmentation" not in p for p in predictions):
            raise ValueError("a prediction has no segmentation: masks cannot be evaluated")
        given = [{key: p[key] for key in keys} for p in predictions]
        precision = _coco_precision(ground, given, what)  # (T, 101, classes)
        for name, values in (("ap", precision), ("ap50", precision[:1]), ("ap75", precision[5:6])):
            metrics[f"{kind}_{name}"] = _mean(values)
        metrics.setdefault("per_class", {})[f"{kind}_ap"] = {
            name: _mean(precision[:, :, place]) for place, name in enumerate(truth.classes)
        }
    return metrics


def voc_ap(truth: Scenes, predictions: Sequence[Prediction], eleven_points: bool) -> Metrics:
    """`box_ap` (mean over IoU .5:.05:.95), `box_ap50`, `box_ap75` in percent, means over classes.

    As detectron2's PascalVOCDetectionEvaluator: scores are rounded to 3 decimals and boxes to
    tenths, a box includes its last pixel, difficult objects count neither way. `eleven_points` of
    recall are VOC2007's AP; without, the area under the curve, VOC2012's. `per_class` holds
    {class: AP}. A class without ground truth has AP 0 and counts in the mean, as detectron2's 11
    points do (its area would be nan); without any ground truth everything is nan.
    """
    _known(truth, predictions)
    images = {scene.id: place for place, scene in enumerate(truth.scenes)}
    image, label, scores, boxes = _rounded(truth, images, predictions)
    ground = _Ground(truth)
    aps = np.zeros((len(truth.classes), len(THRESHOLDS)))
    for place in range(len(truth.classes)):
        mine = label == place
        aps[place] = 100 * voc_metric.class_ap(
            *ground.of(place), image[mine], scores[mine], boxes[mine], eleven_points
        )
    if not (~ground.difficult).any():
        aps[:] = np.nan
    return {
        "box_ap": float(aps.mean(0).mean()),
        "box_ap50": float(aps[:, 0].mean()),
        "box_ap75": float(aps[:, 5].mean()),
        "per_class": {
            "box_ap": dict(zip(truth.classes, aps.mean(1).tolist(), strict=True)),
        },
    }


def _known(truth: Scenes, predictions: Sequence[Prediction]) -> None:
    for key, known in (
        ("image_id", {scene.id for scene in truth.scenes}),
        ("category_id", set(truth.category_ids)),
    ):
        for strange in {p[key] for p in predictions} - known:
            raise ValueError(
                f"a prediction has the {key} {strange!r}, which is not in {truth.root}: evaluate "
                f"predictions on the data set that they were made on"
            )


def _coco_precision(ground: dict[str, Any], given: list[Prediction], what: str) -> Floats:
    """Precision (T, 101 recalls, classes) over all areas with 100 predictions an image; -1 where a
    class has no ground truth."""
    classes = [record["id"] for record in ground["categories"]]
    if not given:
        present = {r["category_id"] for r in ground["annotations"] if not r["iscrowd"]}
        column = np.array([0.0 if number in present else -1.0 for number in classes])
        return np.broadcast_to(column, (len(THRESHOLDS), 101, len(classes)))
    quiet = {"print_function": _silent}
    dataset = COCO(ground, **quiet)
    evaluation = COCOeval_faster(dataset, dataset.loadRes(given), what, **quiet)
    evaluation.evaluate()
    evaluation.accumulate()
    precision: Floats = evaluation.eval["precision"]  # (T, 101, classes by id, areas, maxDets)
    order = np.argsort(np.argsort(classes))
    return precision[:, :, order, 0, -1]


def _silent(*_: object) -> None:
    pass


def _mean(precision: Floats) -> float:
    valid = precision[precision > -1]
    return float(valid.mean() * 100) if valid.size else float("nan")


def _rounded(
    truth: Scenes, images: dict[int, int], predictions: Sequence[Prediction]
) -> tuple[Ints, Ints, Floats, Floats]:
    """Place of the image, label, score and box (from pixel to pixel, both counted from 1) of each
    prediction, rounded as detectron2 writes them to a text file."""
    label = {number: place for place, number in enumerate(truth.category_ids)}
    boxes = np.array([p["bbox"] for p in predictions], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    single = boxes.astype(np.float32)
    single[:, :2] += 1
    scores = np.array([p["score"] for p in predictions], dtype=np.float64)
    return (
        np.array([images[p["image_id"]] for p in predictions], dtype=np.int64),
        np.array([label[p["category_id"]] for p in predictions], dtype=np.int64),
        # exact, as single precision times 1000 fits in double
        np.rint(scores * 1000) / 1000,
        np.rint(single.astype(np.float64) * 10) / 10,
    )


class _Ground:
    """All objects of a data set, boxes counted as PASCAL does."""

    def __init__(self, truth: Scenes) -> None:
        objects = [scene.objects for scene in truth.scenes]
        self.image = np.repeat(np.arange(len(objects)), [len(o) for o in objects])
        self.label = np.concatenate([np.empty(0, np.int64), *(o.labels for o in objects)])
        self.boxes = np.concatenate([np.empty((0, 4)), *(o.boxes for o in objects)])
        self.boxes[:, :2] += 1
        self.difficult = np.concatenate([np.empty(0, bool), *(o.difficult for o in objects)])

    def of(self, label: int) -> tuple[Ints, Floats, NDArray[np.bool_]]:
        mine = self.label == label
        return self.image[mine], self.boxes[mine], self.difficult[mine]
