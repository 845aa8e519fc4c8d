"""AP by hand, by detectron2's evaluator, by pycocotools, and where there is nothing to measure."""

import contextlib
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from annotated import guesses, make_coco, make_voc, real
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lewel_bench.evals.detection import metrics
from lewel_bench.evals.detection.annotated_images import Objects, Scene, Scenes, read_coco, read_voc
from lewel_bench.evals.detection.metrics import coco_ap, voc_ap
from lewel_bench.evals.detection.voc import splits as splits_of

NAMES = ("box_ap", "box_ap50", "box_ap75")
MASKS = ("mask_ap", "mask_ap50", "mask_ap75")


def truth_of(*images, classes=("cat",), height=100, width=100) -> Scenes:
    """Scenes of one object list an image: (label, box, difficult)."""
    scenes, number = [], 1
    for place, objects in enumerate(images):
        boxes = np.array([box for _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
        n = len(objects)
        bbox = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        result = Objects(
            boxes,
            np.array([label for label, _, _ in objects], dtype=np.int64),
            np.zeros(n, dtype=bool),
            np.array([d for _, _, d in objects], dtype=bool),
            bbox[:, 2:].prod(1),
            bbox,
            np.arange(number, number + n),
            ((),) * n,
            (None,) * n,
        )
        number += n
        scenes.append(Scene(f"{place}.jpg", 10 + place, height, width, result))
    return Scenes(Path("data"), tuple(classes), tuple(range(1, len(classes) + 1)), tuple(scenes))


def guess(image, box, score, category=1):
    x0, y0, x1, y1 = box
    return {
        "image_id": image, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
    }  # fmt: skip


A, B, FAR = (10, 10, 30, 30), (50, 50, 90, 90), (70, 0, 90, 20)


@pytest.mark.parametrize(
    ("objects", "given", "eleven", "area"),
    [
        # found, nothing there, found: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
        (
            [(0, A, False), (0, B, False)],
            [(A, 0.9), (FAR, 0.8), (B, 0.7)],
            (6 + 5 * 2 / 3) / 11,
            1 / 2 + 1 / 2 * 2 / 3,
        ),
        # the second on the same object counts as wrong
        ([(0, A, False), (0, B, False)], [(A, 0.9), (A, 0.8), (B, 0.7)], (6 + 10 / 3) / 11, 5 / 6),
        # a difficult object counts neither way, however often it is found
        ([(0, A, True), (0, B, False)], [(A, 0.9), (A, 0.8), (B, 0.7)], 1, 1),
        ([(0, A, False), (0, B, False)], [(A, 0.9)], 6 / 11, 1 / 2),
    ],
)
def test_voc_by_hand(objects, given, eleven, area):
    truth = truth_of(objects)
    given = [guess(10, box, score) for box, score in given]
    for name in NAMES:
        assert voc_ap(truth, given, True)[name] == pytest.approx(100 * eleven, abs=1e-12)
        assert voc_ap(truth, given, False)[name] == pytest.approx(100 * area, abs=1e-12)


def test_voc_counts_the_last_pixel_and_wants_more_than_the_threshold():
    # PASCAL's box (1, 1, 10, 10) has 100 pixels, (1, 1, 10, 20) has 200: IoU is exactly .5
    truth = truth_of([(0, (0, 0, 10, 20), False)])
    assert voc_ap(truth, [guess(10, (0, 0, 10, 10), 0.9)], False)["box_ap50"] == 0
    assert voc_ap(truth, [guess(10, (0, 0, 10, 11), 0.9)], False)["box_ap50"] == 100
    # IoU .75 exactly; thresholds .5 to .7 are passed
    result = voc_ap(truth, [guess(10, (0, 0, 10, 15), 0.9)], False)
    assert result["box_ap75"] == 0 and result["box_ap"] == pytest.approx(50)


def test_voc_rounds_boxes_to_tenths():
    truth = truth_of([(0, (0, 0, 10, 20), False)])
    assert voc_ap(truth, [guess(10, (0, 0, 10, 10.04), 0.9)], False)["box_ap50"] == 0
    assert voc_ap(truth, [guess(10, (0, 0, 10, 10.06), 0.9)], False)["box_ap50"] == 100


def test_voc_rounds_scores_to_thousandths():
    truth = truth_of([(0, A, False)])
    order = [guess(10, A, 0.90004), guess(10, FAR, 0.90044)]  # equal then: the first stays first
    assert voc_ap(truth, order, False)["box_ap"] == pytest.approx(100)
    assert voc_ap(truth, [order[0], guess(10, FAR, 0.9006)], False)["box_ap"] == pytest.approx(50)


def test_voc_edge_cases():
    truth = truth_of([(0, A, False)], [], classes=("cat", "cow"))
    for eleven in (True, False):
        nothing = voc_ap(truth, [], eleven)
        assert [nothing[n] for n in NAMES] == [0, 0, 0]
        # a class without ground truth counts as 0, detected or not
        for extra in ([], [guess(11, A, 0.8, 2)]):
            result = voc_ap(truth, [guess(10, A, 0.9), *extra], eleven)
            assert result["box_ap"] == pytest.approx(50)
            assert result["per_class"]["box_ap"] == pytest.approx({"cat": 100, "cow": 0})
        for empty in (truth_of([], []), truth_of([(0, A, True)])):
            result = voc_ap(empty, [guess(10, A, 0.9)], eleven)
            assert all(math.isnan(result[n]) for n in NAMES)


@pytest.fixture(params=["drawn", "voc-mini.tar.gz"])
def devkit(request, tmp_path) -> Path:
    if request.param == "drawn":
        sets = {(2007, "trainval"): 30, (2012, "trainval"): 1, (2007, "test"): 60}
        return make_voc(tmp_path, sets)
    return real(request.param, tmp_path) / "VOCdevkit"


@pytest.mark.parametrize("eleven", [True, False])
@pytest.mark.parametrize("case", ["many", "few", "none", "stray class"])
def test_voc_ap_is_detectron2s(devkit, eleven, case):
    pytest.importorskip("detectron2")
    _, report = splits_of(devkit)
    scenes = read_voc(devkit, report)
    absent = set(range(20)) - set(np.concatenate([s.objects.labels for s in scenes.scenes]))
    given = guesses(scenes, seed=len(case))
    if case != "stray class":  # for an area detectron2 makes nan of it
        given = [p for p in given if p["category_id"] - 1 not in absent]
    elif not eleven:
        pytest.skip("detectron2's area under the curve is nan for a class without ground truth")
    if case == "few":
        given = [p for p in given if p["category_id"] == 3 or p["score"] > 0.9]
    theirs = _detectron2_ap(devkit, report[0], scenes, [] if case == "none" else given, eleven)
    actual = voc_ap(scenes, [] if case == "none" else given, eleven)
    assert [actual[n] for n in NAMES] == pytest.approx(theirs, abs=1e-9)
    assert case == "none" or 0 < actual["box_ap"] < 90


def _detectron2_ap(devkit, report, scenes, given, eleven) -> list[float]:
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    year, split = report
    name = f"test {devkit} {eleven}"
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(
        thing_classes=list(scenes.classes),
        dirname=str(devkit / f"VOC{year}"),
        split=split,
        year=2007 if eleven else 2012,
    )
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for scene in scenes.scenes:
        mine = [p for p in given if p["image_id"] == scene.id]
        boxes = np.array([p["bbox"] for p in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        result = Instances((scene.height, scene.width))
        result.pred_boxes = Boxes(torch.from_numpy(boxes).float())
        result.scores = torch.tensor([p["score"] for p in mine], dtype=torch.float32)
        result.pred_classes = torch.tensor([p["category_id"] - 1 for p in mine], dtype=torch.int64)
        evaluator.process([{"image_id": Path(scene.file).stem}], [{"instances": result}])
    values = evaluator.evaluate()["bbox"]
    return [values["AP"], values["AP50"], values["AP75"]]


@pytest.fixture(params=["drawn", "coco-mini.tar.gz"])
def coco(request, tmp_path) -> Scenes:
    if request.param == "drawn":
        return read_coco(make_coco(tmp_path / "c", {"val2017": 60}), "val2017")
    return read_coco(real(request.param, tmp_path) / "coco", "val2017")


def reference(truth: Scenes, given, what: str) -> list[float]:
    """pycocotools' AP, AP50 and AP75 in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth.coco_json()
        ground.createIndex()
        keys = ("image_id", "category_id", "score", "bbox" if what == "bbox" else "segmentation")
        result = ground.loadRes([{k: p[k] for k in keys} for p in given])
        evaluation = COCOeval(ground, result, what)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * v if v >= 0 else math.nan for v in evaluation.stats[:3]]


@pytest.mark.parametrize("case", ["many", "one class", "one image", "no crowds"])
def test_coco_ap_is_pycocotools(coco, case):
    given = guesses(coco, seed=len(case), masks=True)
    if case == "one class":
        given = [p for p in given if p["category_id"] == given[0]["category_id"]]
    if case == "one image":
        given = [p for p in given if p["image_id"] == given[-1]["image_id"]]
    if case == "no crowds":
        coco = coco.take([i for i, s in enumerate(coco.scenes) if not s.objects.crowd.any()])
        expected = {s.id for s in coco.scenes}
        given = [p for p in given if p["image_id"] in expected]
    before = [dict(p) for p in given]
    actual = coco_ap(coco, given, masks=True)
    assert given == before  # the caller's
    assert [actual[n] for n in NAMES] == pytest.approx(reference(coco, given, "bbox"), abs=1e-9)
    assert [actual[n] for n in MASKS] == pytest.approx(reference(coco, given, "segm"), abs=1e-9)
    if case == "many":
        assert 1 < actual["box_ap"] < 95 and 0 < actual["mask_ap"] < 95
    boxes = coco_ap(coco, given, masks=False)
    assert set(boxes) == {*NAMES, "per_class"} and boxes["box_ap"] == actual["box_ap"]


def test_coco_per_class_is_the_class_alone(coco):
    given = guesses(coco, masks=True)
    actual = coco_ap(coco, given, masks=True)["per_class"]
    labels = np.concatenate([s.objects.labels[~s.objects.crowd] for s in coco.scenes])
    for label, name in enumerate(coco.classes):
        if label not in labels:
            assert math.isnan(actual["box_ap"][name]) and math.isnan(actual["mask_ap"][name])
    means = [v for v in actual["mask_ap"].values() if not math.isnan(v)]
    assert np.mean(means) == pytest.approx(coco_ap(coco, given, masks=True)["mask_ap"])
    label = int(np.bincount(labels).argmax())
    alone = [p for p in given if p["category_id"] == coco.category_ids[label]]
    # classes without predictions have AP 0
    expected = reference(coco, alone, "bbox")[0] * len(means)
    assert actual["box_ap"][coco.classes[label]] == pytest.approx(expected)


def test_coco_by_hand():
    truth = truth_of([(0, A, False), (0, B, False)], [(1, A, False)], classes=("cat", "cow", "yak"))
    given = [guess(10, A, 0.9), guess(10, FAR, 0.8), guess(10, B, 0.7)]
    result = coco_ap(truth, given, masks=False)
    # recalls 0 to .5 in steps of .01: precision 1; to 1: 2/3; cow has none, yak no ground truth
    cat = 100 * (51 + 50 * 2 / 3) / 101
    assert result["box_ap"] == pytest.approx(cat / 2)
    assert result["per_class"]["box_ap"] == pytest.approx(
        {"cat": cat, "cow": 0, "yak": math.nan}, nan_ok=True
    )


def test_coco_edge_cases(coco):
    nothing = coco_ap(coco, [], masks=True)
    assert [nothing[n] for n in NAMES + MASKS] == [0] * 6
    scenes = []
    for s in coco.scenes:
        scenes.append(replace(s, objects=replace(s.objects, crowd=np.ones(len(s.objects), bool))))
    empty = replace(coco, scenes=tuple(scenes))
    given = guesses(coco, masks=True)
    for predictions in ([], given):
        result = coco_ap(empty, predictions, masks=True)
        assert all(math.isnan(result[n]) for n in NAMES + MASKS)


def test_an_object_with_the_id_0_is_found():
    truth = truth_of([(0, A, False)])
    truth.scenes[0].objects.ids[:] = 0  # pycocotools would take it for no match
    assert coco_ap(truth, [guess(10, A, 0.9)], masks=False)["box_ap"] == pytest.approx(100)


def test_predictions_of_other_data_are_refused():
    truth = truth_of([(0, A, False)])
    for strange, message in (
        (guess(99, A, 0.5), "image_id 99"), (guess(10, A, 0.5, 7), "category_id 7")
    ):  # fmt: skip
        for measure in (lambda p: voc_ap(truth, p, True), lambda p: coco_ap(truth, p, False)):
            with pytest.raises(ValueError, match=message):
                measure([strange])
    with pytest.raises(ValueError, match="no segmentation"):
        coco_ap(truth, [guess(10, A, 0.5)], masks=True)


def test_predictions_come_back_from_their_file(tmp_path):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(1e-3, 900, (40, 2))], axis=1).astype(np.float32)
    scores = rng.random(40).astype(np.float32)
    masks = rng.random((40, 13, 17)) < 0.4
    labels = rng.integers(0, 3, 40)
    given = metrics.as_predictions(9, (3, 5, 8), boxes, scores, labels, masks)
    metrics.write_predictions(tmp_path / "p.json", given)
    result = metrics.read_predictions(tmp_path / "p.json")
    assert result == given
    assert [p["category_id"] for p in result] == [(3, 5, 8)[i] for i in labels]
    assert np.array_equal(np.array([p["score"] for p in result], np.float32), scores)
    corners = np.array([p["bbox"] for p in result])
    corners[:, 2:] += corners[:, :2]
    assert np.array_equal(corners.astype(np.float32), boxes)  # to the bit
    for prediction, mask in zip(result, masks, strict=True):
        assert np.array_equal(coco_mask.decode(prediction["segmentation"]), mask)
    metrics.write_predictions(tmp_path / "none.json", [])
    assert metrics.read_predictions(tmp_path / "none.json") == []


@pytest.mark.parametrize("text", ['[{"image_id": 1}]', "{}", "[", '["a"]'])
def test_broken_prediction_files_are_named(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"p\.json: "):
        metrics.read_predictions(tmp_path / "p.json")
