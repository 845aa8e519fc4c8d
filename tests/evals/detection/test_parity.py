"""Our detectors against detectron2: losses, gradients, running statistics, detections, masks.

The first half runs it (at official_detection.COMMIT) and is skipped by name where it is absent;
the second half compares with numbers that it gave (golden/*.json).
"""

import importlib.util
import json
import os
from functools import partial
from pathlib import Path

import detection_cases as cases
import official_detection as official
import pytest
import torch
from torch import nn

from lewel_bench.evals.detection import anchors, boxes
from lewel_bench.evals.detection.model import parameter_groups

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def detectron2():
    if importlib.util.find_spec("detectron2") is None:
        pytest.skip("detectron2 is not installed")


def compare(case, random=cases.permuted):
    """Both on the same weights, images and permutations, in single precision."""
    mine = cases.run_native(case, cases.native_detector(case), random)
    theirs = official.run_official(case, official.official(case), random)
    assert mine.losses.keys() == theirs.losses.keys()
    for name, loss in theirs.losses.items():
        assert mine.losses[name].item() == pytest.approx(loss.item(), rel=1e-6), name
    for kind in ("gradient", "buffers"):
        a, b = getattr(mine, kind), getattr(theirs, kind)
        assert a.keys() == b.keys()
        far = max((a[k] - b[k]).abs().max().item() for k in b)
        print(f"{kind}: {len(b)} tensors, largest difference {far:.1e}")
        assert far < 1e-5
    if not case.bare:
        norms = [g.norm().item() for g in theirs.gradient.values()]
        assert min(norms) > 0 and sum(norms) < float("inf")  # none is trivially equal
    for a, b in zip(mine.detections, theirs.detections, strict=True):
        assert len(b["boxes"]) > 5
        for kind in b:
            if b[kind] is not None:
                torch.testing.assert_close(a[kind], b[kind], rtol=0, atol=1e-5, msg=kind)


@pytest.mark.parametrize("name", cases.PARITY)
def test_detectors_equal_detectron2(detectron2, name):
    compare(cases.PARITY[name])


@pytest.mark.parametrize("name", cases.BARE)
def test_images_without_objects_are_treated_as_in_detectron2(detectron2, name):
    compare(cases.BARE[name])


@pytest.mark.parametrize("name", cases.GOLDEN)
def test_one_seed_samples_as_detectron2_does(detectron2, name):
    compare(cases.GOLDEN[name], cases.seeded)


@pytest.mark.skipif(
    not os.environ.get("LEWEL_BENCH_SLOW"), reason="takes minutes: set LEWEL_BENCH_SLOW=1"
)
@pytest.mark.parametrize("name", cases.LARGE)
def test_large_images_equal_detectron2(detectron2, name):
    """512 x 640 px: more anchors than enter the suppression, more proposals than leave it."""
    compare(cases.LARGE[name])


@pytest.mark.parametrize("name", ["c4_mask", "fpn_mask"])
def test_parameter_groups_are_detectron2s(detectron2, name):
    from detectron2.solver.build import get_default_optimizer_params

    case = cases.GOLDEN[name]
    theirs = official.official(case)
    groups = get_default_optimizer_params(theirs, base_lr=0.1, weight_decay_norm=0.0)
    spared = {id(p) for g in groups if g.get("weight_decay") == 0 for p in g["params"]}
    expected = {
        official.name(case.protocol.model, k): id(p) in spared for k, p in theirs.named_parameters()
    }
    mine = cases.native_detector(case)
    decays = {
        id(p): (g["weight_decay"], g["lr"])
        for g in parameter_groups(mine, 0.1, 1e-4)
        for p in g["params"]
    }
    result = {k: decays[id(p)] for k, p in mine.named_parameters()}
    assert result == {k: (0.0 if spare else 1e-4, 0.1) for k, spare in expected.items()}


def golden(name):
    expected = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    case = cases.GOLDEN[name]
    actual = cases.summary(cases.run_native(case, cases.native_detector(case, torch.float64)))
    far = cases.distances(actual, expected)
    print(name, {k: f"{v:.1e}" for k, v in far.items()})
    return far


@pytest.mark.parametrize("name", cases.GOLDEN)
def test_golden_numbers_of_detectron2(name):
    far = golden(name)
    assert {k: v for k, v in far.items() if not v <= cases.BOUNDS[k]} == {}
    assert ("mask_probs" in far) == cases.GOLDEN[name].protocol.masks


def unaligned(*args, aligned, **kwargs):
    return boxes_align(*args, aligned=False, **kwargs)


def two_samples(*args, sampling_ratio, **kwargs):
    return boxes_align(*args, sampling_ratio=2, **kwargs)


boxes_align, cells = boxes.roi_align, anchors.cell_anchors
smooth = partial(nn.functional.smooth_l1_loss, beta=1 / 9, reduction="sum")
# what torchvision does otherwise: its detectors, and 2 samples in its heads
DEVIATIONS = {
    "aligned=False": {"boxes.roi_align": unaligned},
    "sampling_ratio=2": {"boxes.roi_align": two_samples},
    "beta=1/9": {"rpn.l1": smooth, "roi.l1": smooth},
    "rounded anchors": {"anchors.cell_anchors": lambda sizes: cells(sizes).round()},
}


@pytest.mark.parametrize("name", ["c4_box", "fpn_mask"])
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_golden_numbers_notice(name, deviation, monkeypatch):
    for target, replacement in DEVIATIONS[deviation].items():
        monkeypatch.setattr(f"lewel_bench.evals.detection.{target}", replacement)
    far = golden(name)
    assert far["losses"] > 1000 * cases.BOUNDS["losses"]
    assert far["gradient"] > 100 * cases.BOUNDS["gradient"]
