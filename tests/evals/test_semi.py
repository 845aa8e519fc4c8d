"""Fine-tuning end to end on a tiny data set."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lewel_bench.evals import features, semi
from lewel_bench.evals.classification import Semi
from lewel_bench.evals.context import Context
from lewel_bench.pretrain import backbone, checkpoint
from lewel_bench.pretrain.data import image_batches
from lewel_bench.pretrain.recipe import Backbone, change
from lewel_bench.pretrain.report import Stopped, never, silent
from tests.evals.conftest import Killed, killed_after

TINY = Semi(
    name="tiny",
    label="tiny",
    source="none",
    fraction=0.5,
    image_size=32,
    resize=36,
    backbone_lrs=(0.01, 0.03),
    head_lrs=(0.1, 0.3),
    batch=16,
    bn_group=16,
    epochs=7,
    milestones=(5,),
    eval_every=3,
)


@pytest.fixture
def run(splits, backbone_file, machine, tmp_path):
    def go(
        protocol=TINY,
        *,
        lr=(0.03, 0.3),
        splits=splits,
        folder="a",
        machine=machine,
        seed=1,
        stop=never,
    ):
        return semi.run(
            protocol,
            lr=lr,
            backbone=backbone_file,
            splits=splits,
            context=Context(seed, tmp_path / folder, machine, silent, stop),
        )

    return go


def test_learns_and_says_what_it_measured(run, tmp_path, splits):
    outcome = run()
    # chance is 16.7; a single seed has 33 to 75, another on every processor
    others = [run(seed=seed, folder=f"seed{seed}").metrics["top1"] for seed in (2, 3, 4)]
    assert np.mean([outcome.metrics["top1"], *others]) > 35
    assert outcome.chosen == {"backbone_lr": 0.03, "head_lr": 0.3}
    assert [entry["epoch"] for entry in outcome.extra["history"]] == [3, 6, 7]
    best = max(entry["top1"][0] for entry in outcome.extra["history"])
    assert outcome.paper_rule["top1"] == best
    assert outcome.selection_gap["top1"] == best - outcome.metrics["top1"]
    assert set(outcome.extra["select"]) == {"top1", "top5", "loss"}
    saved = np.load(tmp_path / "a/predictions.npz")
    hits = saved["top5"] == saved["label"][:, None]
    assert 100 * hits[:, 0].mean() == pytest.approx(outcome.metrics["top1"])


def test_is_plain_fine_tuning(run, splits, backbone_file, machine):
    """The runner against a loop written here, with torch's own batch norm (one group a batch)."""
    state, header = checkpoint.read_backbone(backbone_file)
    net = backbone.build(Backbone.model_validate(header), nn.BatchNorm2d)
    net.load_state_dict(state)
    torch.manual_seed(1)
    fc = nn.Linear(net.channels, 6)
    sgd = torch.optim.SGD(
        [{"params": net.parameters()}, {"params": fc.parameters()}],
        lr=1.0,
        momentum=0.9,
        weight_decay=1e-4,
    )
    for epoch in range(2):
        for group, lr in zip(sgd.param_groups, (0.01, 0.1), strict=True):
            group["lr"] = lr * 0.1**epoch
        for batch in image_batches(
            splits.train,
            32,
            crop="random",
            batch=16,
            seed=1,
            epoch=epoch,
            shuffle=True,
            drop_last=True,
        ):
            x = net(features.normalise(batch.pixels, machine.device)).mean((2, 3))
            sgd.zero_grad()
            cross_entropy(fc(x), batch.labels).backward()
            sgd.step()
    net.eval()
    x, y = features.extract(net, splits.select, size=32, resize=36, machine=machine)
    outcome = run(change(TINY, {"epochs": 2, "milestones": (1,)}), lr=(0.01, 0.1))
    expected = cross_entropy(fc(x), y).item()
    assert outcome.extra["select"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_backbone_and_head_have_separate_learning_rates(run, backbone_file, tmp_path):
    """With a vanishing backbone learning rate only the head changes, and vice versa."""
    before, _ = checkpoint.read_backbone(backbone_file)
    short = change(TINY, {"epochs": 1, "milestones": (), "weight_decay": 0.0})
    run(short, lr=(1e-30, 0.3), folder="head")
    run(short, lr=(0.03, 1e-30), folder="backbone")
    head, whole = (
        checkpoint.load(tmp_path / f, silent)["learner"]["model"] for f in ("head", "backbone")
    )
    assert torch.equal(head["backbone.conv1.weight"], before["conv1.weight"])
    assert not torch.equal(whole["backbone.conv1.weight"], before["conv1.weight"])
    assert not torch.equal(head["fc.weight"], whole["fc.weight"])
    assert not torch.equal(head["backbone.bn1.running_mean"], before["bn1.running_mean"])


@pytest.mark.parametrize("step", [1, 7, 27])
def test_killed_and_run_again_is_the_same_bitwise(run, machine, tmp_path, step):
    whole = run(folder="whole")
    with pytest.raises(Killed):
        run(folder="killed", machine=replace(machine, save_every_s=0), stop=killed_after(step))
    assert run(folder="killed") == whole
    a, b = (checkpoint.load(tmp_path / f, silent)["learner"]["model"] for f in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_stop_saves_first(run):
    with pytest.raises(Stopped, match="saved at step 1 of 28"):
        run(stop=lambda: True)


def test_divergence_ends_the_candidate_and_nothing_else(run):
    outcome = run(lr=(1e20, 1e20))
    assert outcome.metrics == {} and outcome.extra["select"] == {}
    assert outcome.extra["diverged_at_epoch"] == 1
    assert "diverged in epoch 1 at backbone lr 1e+20, head lr 1e+20" in outcome.warnings


def test_micro_batches_change_nothing_but_rounding(run, machine, tmp_path):
    protocol = change(TINY, {"batch": 32, "bn_group": 8, "epochs": 1, "milestones": ()})
    run(protocol, folder="whole")
    run(protocol, folder="parts", machine=replace(machine, micro_batch=8))
    a, b = (checkpoint.load(tmp_path / f, silent)["learner"]["model"] for f in ("whole", "parts"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"micro-batch 4 is not a multiple of the .* group of 8"):
        run(protocol, folder="x", machine=replace(machine, micro_batch=4))


def test_a_set_smaller_than_a_batch_is_one_batch_and_one_group(run):
    protocol = change(TINY, {"batch": 256, "bn_group": 64, "epochs": 1, "milestones": ()})
    outcome = run(protocol)
    assert "72 training images are fewer than the batch of 256: used 72" in outcome.warnings
    assert (
        "a batch of 72 images cannot be divided into batch-norm groups of 64: the whole batch is "
        "one group"
    ) in outcome.warnings


def test_the_report_split_decides_nothing(run, splits):
    other = replace(splits.report, labels=splits.report.labels[::-1].copy())
    a, b = run(folder="a"), run(folder="b", splits=replace(splits, report=other))
    assert a.extra["select"] == b.extra["select"] and a.metrics != b.metrics
