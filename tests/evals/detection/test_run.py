"""Detectors fine-tuned for a few steps on generated scenes."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lewel_bench.evals.context import Context
from lewel_bench.evals.dense import Detection
from lewel_bench.evals.detection import loader, metrics, model
from lewel_bench.evals.detection import run as detection
from lewel_bench.evals.detection.annotated_images import read_coco, read_voc
from lewel_bench.evals.outcome import DenseSplits
from lewel_bench.pretrain import checkpoint, distributed, shapes
from lewel_bench.pretrain.recipe import Backbone, change
from lewel_bench.pretrain.report import Stopped, never, silent
from tests.evals.conftest import Killed, killed_after

COUNTS = shapes.Counts(
    train=1,
    val=1,
    voc2007_train=4,
    voc2007_val=4,
    voc2007_test=4,
    voc2012_train=1,
    voc2012_val=1,
    coco_train=8,
    coco_val=4,
)
C4 = Detection(
    name="c4",
    label="c4",
    source="none",
    data="none",
    model="c4",
    masks=False,
    metric="voc07",
    min_sizes=(48, 64),
    test_size=64,
    max_size=96,
    batch=2,
    steps=5,
    milestones=(4,),
    warmup=2,
    anchors=(16, 32),
    lrs=(0.02,),
    weight_decays=(1e-4,),
    held_out=1,
    rpn_samples=16,
    rois=8,
    pre_nms=(50, 30),
    post_nms=(20, 10),
    head_width=8,
    fc_width=16,
    precise_bn=2,
)
FPN = change(
    C4,
    {
        "name": "fpn",
        "model": "fpn",
        "masks": True,
        "metric": "coco",
        "anchors": (8, 16, 32, 64, 96),
    },
)
METRICS = {"box_ap", "box_ap50", "box_ap75"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.make(tmp_path_factory.mktemp("data") / "shapes", counts=COUNTS)


@pytest.fixture(scope="module")
def voc(data):
    root = data / "VOCdevkit"
    train = read_voc(root, [(2007, "train")])
    select = read_voc(root, [(2007, "val")], train.classes)
    return DenseSplits(train, select, read_voc(root, [(2007, "test")], train.classes))


@pytest.fixture(scope="module")
def coco(data):
    train = read_coco(data / "coco", "train2017")
    report = read_coco(data / "coco", "val2017")
    return DenseSplits(train.take(range(5)), train.take(range(5, 8)), report)


@pytest.fixture
def run(voc, coco, backbone_file, machine, tmp_path):
    def go(protocol=C4, *, folder="a", splits=None, machine=machine, lr=0.02, stop=never, **more):
        return detection.run(
            protocol,
            candidate=(lr, 1e-4),
            backbone=more.pop("backbone", backbone_file),
            splits=splits or (coco if protocol.metric == "coco" else voc),
            context=Context(1, tmp_path / folder, machine, silent, stop),
            **more,
        )

    return go


def test_boxes_are_measured_as_they_were_written(run, voc, tmp_path, monkeypatch):
    monkeypatch.setattr("lewel_bench.evals.detection.roi.SCORE", 0.0)
    outcome = run()
    assert set(outcome.metrics) == set(outcome.extra["select"]) == METRICS
    assert outcome.chosen == {"lr": 0.02, "weight_decay": 1e-4}
    written = metrics.read_predictions(tmp_path / "a/predictions.json")
    assert written and {p["image_id"] for p in written} <= {s.id for s in voc.report.scenes}
    again = metrics.voc_ap(voc.report, written, True)
    assert outcome.extra["per_class"] == again.pop("per_class") and outcome.metrics == again


def test_masks_are_measured_as_they_were_written(run, coco, tmp_path, monkeypatch):
    monkeypatch.setattr("lewel_bench.evals.detection.roi.SCORE", 0.0)
    outcome = run(FPN)
    assert set(outcome.metrics) == METRICS | {"mask_ap", "mask_ap50", "mask_ap75"}
    written = metrics.read_predictions(tmp_path / "a/predictions.json")
    again = metrics.coco_ap(coco.report, written, True)
    assert written and again.pop("per_class") and outcome.metrics == again


def test_is_plain_fine_tuning(run, voc, backbone_file, tmp_path):
    """The runner's weights against those of a loop written here."""
    run()
    torch.manual_seed(1)
    _, header = checkpoint.read_backbone(backbone_file)
    net = model.Detector(C4, Backbone.model_validate(header), len(voc.train.classes))
    net.load_backbone(backbone_file)
    net.to(memory_format=torch.channels_last)  # rounds as the runner does
    sgd = torch.optim.SGD(model.parameter_groups(net, 1.0, 1e-4), lr=1.0, momentum=0.9)
    torch.manual_seed(1)
    batches = loader.training_batches(voc.train, C4, seed=1, start=0, workers=0)
    for rate in (0.02 * 0.001, 0.02 * 0.5005, 0.02, 0.02, 0.002):
        batch = next(batches)
        targets = [model.Target(e.boxes, e.labels, e.polygons) for e in batch]
        for group in sgd.param_groups:
            group["lr"] = rate
        sgd.zero_grad()
        sum(net([e.image for e in batch], targets).values()).backward()
        sgd.step()
    trained = checkpoint.load(tmp_path / "a", silent)["model"]
    for name, value in net.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("protocol", [C4, FPN], ids=lambda p: p.name)
def test_killed_and_run_again_is_the_same_bitwise(run, machine, tmp_path, protocol):
    """Questions to `stop` 1 to 5 are after the steps, later ones after the images evaluated."""
    whole = run(protocol, folder="whole")
    for question in (2, 12):
        folder = f"killed{question}"
        with pytest.raises(Killed):
            often = replace(machine, save_every_s=0)
            run(protocol, folder=folder, machine=often, stop=killed_after(question))
        assert not (tmp_path / folder / "predictions.json").exists()
        assert run(protocol, folder=folder) == whole
        predictions = [tmp_path / f / "predictions.json" for f in ("whole", folder)]
        assert predictions[0].read_bytes() == predictions[1].read_bytes()
        a, b = (checkpoint.load(tmp_path / f, silent)["model"] for f in ("whole", folder))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_killed_while_the_norms_are_measured_is_the_same_bitwise(run, monkeypatch):
    whole = run(folder="whole")

    def die(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(detection.precise_bn, "measure", die)
        with pytest.raises(Killed):
            run(folder="killed")
    assert run(folder="killed") == whole


def test_a_stop_within_the_evaluation_is_heeded(run):
    asked = iter([False] * C4.steps + [True])
    with pytest.raises(Stopped, match="saved before the evaluation"):
        run(stop=lambda: next(asked))


def test_precise_bn_measures_and_none_does_not(run, tmp_path):
    with_it, without = run(), run(change(C4, {"precise_bn": 0}), folder="b")
    a, b = (checkpoint.load(tmp_path / f, silent)["model"] for f in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)  # training is the same
    assert with_it.extra["train_loss"] == without.extra["train_loss"]
    result = [(tmp_path / f / "predictions.json").read_bytes() for f in "ab"]
    assert result[0] != result[1]  # what is measured with other statistics is not


def test_divergence_ends_the_candidate(run):
    outcome = run(lr=1e8)
    assert outcome.metrics == {} and outcome.extra["select"] == {}
    assert 1 <= outcome.extra["diverged_at_step"] <= C4.steps
    assert "at lr 1e+08, weight decay 0.0001" in outcome.warnings[0]


def test_rates_are_detectron2s():
    protocol = change(C4, {"steps": 40, "milestones": (20, 30), "warmup": 10})
    factors = [detection.lr_factor(protocol, step) for step in range(40)]
    assert factors[0] == 0.001 and factors[5] == pytest.approx(0.5005)
    assert factors[10] == factors[19] == 1
    assert factors[20] == factors[29] == pytest.approx(0.1)
    assert factors[30] == factors[39] == pytest.approx(0.01)
    warm = pytest.importorskip("detectron2.solver.lr_scheduler").WarmupParamScheduler
    falls = pytest.importorskip("fvcore.common.param_scheduler").MultiStepParamScheduler
    theirs = warm(falls([1, 0.1, 0.01], milestones=[20, 30], num_updates=40), 0.001, 10 / 40)
    assert factors == pytest.approx([theirs(step / 40) for step in range(40)], rel=1e-12)


def test_micro_batches_are_refused_in_words(run, machine):
    outcome = run(machine=replace(machine, micro_batch=1))
    assert outcome.warnings == ["micro-batch 1 is not used: batch norm needs the whole batch"]


def test_the_other_engine_gets_the_same_arguments(run, monkeypatch):
    seen = {}
    fake = SimpleNamespace(run=lambda protocol, **given: seen.update(given) or "its outcome")
    name = "lewel_bench.evals.detection.detectron"
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr("lewel_bench.evals.detection.detectron", fake, raising=False)
    assert run(change(C4, {"engine": "detectron2"}), python="/there/python") == "its outcome"
    assert seen["candidate"] == (0.02, 1e-4) and seen["python"] == "/there/python"


def test_mistakes_are_named(run, voc, monkeypatch, tmp_path):
    objects = [replace(s.objects, difficult=~s.objects.crowd) for s in voc.report.scenes]
    scenes = tuple(replace(s, objects=o) for s, o in zip(voc.report.scenes, objects, strict=True))
    hidden = replace(voc, report=replace(voc.report, scenes=scenes))
    with pytest.raises(ValueError, match=r"nothing can be measured on the 4 images of the report"):
        run(splits=hidden)
    with pytest.raises(ValueError, match="the train split has no images"):
        run(splits=replace(voc, train=voc.train.take([])))
    (tmp_path / "broken").write_text("nothing")
    with pytest.raises(ValueError, match="cannot read the backbone"):
        run(backbone=tmp_path / "broken")
    checkpoint.write_backbone(
        tmp_path / "strange", {}, {"arch": "vgg", "stem": "small", "width": "8"}
    )
    with pytest.raises(ValueError, match="strange has no valid backbone in its header"):
        run(backbone=tmp_path / "strange")
    for module in (detection, distributed):
        monkeypatch.setattr(module, "world", lambda: 2)
    with pytest.raises(ValueError, match="2 processes on a CPU"):
        run()
    with pytest.raises(ValueError, match="batch 3 is not divisible by 2 processes"):
        run(change(C4, {"batch": 3}))
