"""What the record of a detection or segmentation says about its data."""

from pathlib import Path

import pytest

from lewel_bench.evals.context import Context
from lewel_bench.evals.detection.annotated_images import Scenes
from lewel_bench.evals.outcome import DenseSplits, Inputs, Outcome
from lewel_bench.evals.protocols import COCO_FPN_1X, VOC12_SEG_FCN_D8
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.report import never, silent

CONTEXT = Context(0, Path(), Machine(), silent, never)


def test_the_record_says_over_how_many_classes_miou_is_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lewel_bench.evals.segmentation import run as segmentation

    classes = {"background": 90.0, "cat": None, "dog": 30.0}
    monkeypatch.setattr(
        segmentation,
        "run",
        lambda *_, **__: Outcome({"miou": 60.0}, extra={"per_class": classes}),
    )
    inputs = Inputs(Path(), DenseSplits(None, None, None))
    outcome = VOC12_SEG_FCN_D8.fine_tune((0.1, 0.0), inputs, CONTEXT)
    assert outcome.extra["miou_classes"] == 2
    assert outcome.warnings == [
        "miou is the mean over 2 of 3 classes: the reported masks have no pixel of cat"
    ]


def test_the_record_counts_objects_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    from lewel_bench.evals.detection import run as detection

    monkeypatch.setattr(detection, "run", lambda *_, **__: Outcome({"mask_ap": 1.0}))
    for counts, warnings in (((0, 0), []), ((2, 1), ["3 objects have no mask: not trained on, "
                                                     "not measured"])):  # fmt: skip
        train, report = (Scenes(Path(), (), (), (), without_mask=count) for count in counts)
        inputs = Inputs(Path(), DenseSplits(train, None, report))
        outcome = COCO_FPN_1X.fine_tune((0.1, 0.0), inputs, CONTEXT)
        assert outcome.warnings == warnings
