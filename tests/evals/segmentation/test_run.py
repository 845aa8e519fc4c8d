"""A fine-tuning from end to end: it learns, goes on after a kill, and says how it ended."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lewel_bench.evals.context import Context
from lewel_bench.evals.segmentation import labelled_images, metric, run
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.recipe import change
from lewel_bench.pretrain.report import Stopped, never, silent
from tests.evals.conftest import Killed, killed_after
from tests.evals.segmentation.making import TINY, write_mask


@pytest.fixture
def train(splits, small_backbone, tmp_path):
    def work(name="run", protocol=TINY, candidate=(0.02, 5e-4), **more):
        arguments = {
            "candidate": candidate,
            "backbone": small_backbone,
            "splits": splits,
        }
        context = Context(0, tmp_path / name, Machine(), silent, never)
        context = replace(context, **{k: more.pop(k) for k in vars(context) if k in more})
        return run.run(protocol, context=context, **{**arguments, **more})

    return work


def test_learns_and_writes_its_predictions(train, splits, tmp_path) -> None:
    outcome = train(protocol=change(TINY, {"steps": 80, "batch": 8}), candidate=(0.05, 5e-4))
    assert outcome.metrics["miou"] > 50  # 30 is the background alone
    assert outcome.chosen == {"lr": 0.05, "weight_decay": 5e-4}
    assert set(outcome.extra["select"]) == {"miou", "pixel_acc", "class_acc"}
    assert set(outcome.extra["per_class"]) == set(splits.train.classes)
    counts = np.load(tmp_path / "run" / "predictions.npz")
    total = np.zeros((3, 3), np.int64)
    for place, name in enumerate(counts["names"]):
        with Image.open(tmp_path / "run" / "predictions" / f"{name}.png") as image:
            given = np.array(image)
        _, truth = labelled_images.pair(splits.report, place)
        entry = metric.confusion(given, truth, 3)
        assert (entry == counts["confusion"][place]).all()
        total += entry
    assert metric.scores(total, splits.train.classes)["miou"] == outcome.metrics["miou"]


@pytest.mark.parametrize("steps", [1, 4, 7, 9])
def test_killed_and_resumed_equals_undisturbed(train, tmp_path, steps: int) -> None:
    """7 and 9: during the evaluations after the sixth step."""
    whole = train("whole")
    busy = Machine(save_every_s=0)
    with pytest.raises(Killed):
        train("killed", machine=busy, stop=killed_after(steps))
    again = train("killed", machine=busy)
    assert (again.metrics, again.extra) == (whole.metrics, whole.extra)
    states = [checkpoint.load(tmp_path / name, silent)["model"] for name in ("whole", "killed")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_stops_after_saving(train) -> None:
    with pytest.raises(Stopped, match="saved at step 1 of 6"):
        train("stopped", stop=lambda: True)
    assert train("stopped").metrics == train("whole").metrics


def test_a_diverging_rate_is_named(train) -> None:
    outcome = train(candidate=(1e9, 0.0))
    assert outcome.metrics == {} and outcome.extra["select"] == {}
    assert 1 < outcome.extra["diverged_at_step"] <= 6
    assert "at lr 1e+09, weight decay 0" in outcome.warnings[0]


def test_a_clear_loser_ends_half_way(train) -> None:
    protocol = change(TINY, {"prune": 0.9})
    outcome = train(protocol=protocol, rivals=[99.0, 100.0])
    assert "select miou" in outcome.extra["pruned"] and outcome.metrics == {}
    assert outcome.extra["half"]["step"] == 3
    kept = train("kept", protocol=protocol, rivals=[1.0])
    assert kept.metrics == train("whole").metrics


def test_without_a_select_split(train, splits) -> None:
    outcome = train(splits=replace(splits, select=None))
    assert outcome.metrics and outcome.extra["select"] == {}


@pytest.mark.parametrize("lr", [0.01, 1e-5])
def test_rates(lr: float) -> None:
    protocol = change(TINY, {"steps": 11})
    rates = [lr * run.lr_factor(protocol, lr, step) for step in range(11)]
    assert rates[0] == pytest.approx(lr) and rates[-1] == pytest.approx(1e-4)
    assert rates[5] == pytest.approx((lr - 1e-4) * 0.5**0.9 + 1e-4)
    entry = change(TINY, {"steps": 1})
    assert run.lr_factor(entry, lr, 0) == pytest.approx(1)


def test_bad_input_is_refused(train, splits, small_backbone, tmp_path) -> None:
    other = replace(splits.report, classes=("background", "disc"))
    with pytest.raises(ValueError, match="classes of the report split differ"):
        train(splits=replace(splits, report=other))
    entry = [replace(part, classes=("background",)) for part in (splits.train, splits.report)]
    with pytest.raises(ValueError, match="at least two classes"):
        train(splits=replace(splits, train=entry[0], select=None, report=entry[1]))
    write_mask(tmp_path / "void.png", np.full((60, 80), 255))
    void = replace(splits.select, root=tmp_path, pairs=(("any.jpg", "void.png"),))
    for engine in ("native", "mmseg"):
        with pytest.raises(ValueError, match=r"on the 1 images of the select .*: no mask has a la"):
            train(protocol=change(TINY, {"engine": engine}), splits=replace(splits, select=void))
    state, header = checkpoint.read_backbone(small_backbone)
    path = tmp_path / "wrong.safetensors"
    checkpoint.write_backbone(path, state, {**header, "arch": "vgg"})
    with pytest.raises(ValueError, match="safetensors has no valid backbone in its header"):
        train(backbone=path)
    checkpoint.write_backbone(path, state, {**header, "arch": "resnet34"})
    with pytest.raises(ValueError, match="weights are those of a resnet18"):
        train(backbone=path)


def test_all_parameters_decay(train, splits, small_backbone, tmp_path) -> None:
    """mmseg's configuration spares neither norms nor biases."""
    at = Context(0, tmp_path, Machine(), silent, never)
    learner = run._Segmentation(TINY, (0.02, 5e-4), small_backbone, splits, at)
    (group,) = learner.optimizer.param_groups
    assert len(group["params"]) == len(list(learner.model.parameters()))
    assert group["weight_decay"] == 5e-4 and group["momentum"] == 0.9
