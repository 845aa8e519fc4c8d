"""Linear evaluation end to end on a tiny data set."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lewel_bench.evals import features, heads, linear, loop
from lewel_bench.evals.classification import Linear
from lewel_bench.evals.clock import Clock
from lewel_bench.evals.context import Context
from lewel_bench.evals.outcome import Splits
from lewel_bench.pretrain import pacer
from lewel_bench.pretrain.data import image_batches
from lewel_bench.pretrain.recipe import change
from lewel_bench.pretrain.report import Stopped, never, silent
from tests.evals.conftest import Killed, killed_after

SGD = Linear(
    name="tiny",
    label="tiny",
    source="none",
    image_size=32,
    resize=36,
    optimizer="sgd",
    lrs=(0.1, 0.3, 1.0),
    weight_decays=(0.0, 1e-4),
    batch=16,
    epochs=8,
    milestones=(6,),
    eval_every=5,
    knn_k=10,
)
LARS = change(SGD, {"optimizer": "lars", "lrs": (1.0, 30.0), "milestones": (), "batch": 30})


@pytest.fixture
def run(splits, backbone_file, machine, tmp_path):
    def go(protocol=SGD, *, splits=splits, folder="a", machine=machine, seed=1, stop=never, **more):
        return linear.run(
            protocol,
            backbone=backbone_file,
            splits=splits,
            context=Context(seed, tmp_path / folder, machine, more.get("report", silent), stop),
        )

    return go


def test_learns_and_says_what_it_chose(run, tmp_path, splits):
    outcome = run()
    assert outcome.metrics["top1"] > 45  # chance is 16.7
    assert set(outcome.metrics) == {"top1", "top5", "knn_top1_bank_train_less_held_out"}
    row = max(outcome.grid, key=lambda r: (r["select_top1"], -r["select_loss"]))
    assert outcome.chosen == {"lr": row["lr"], "weight_decay": row["weight_decay"]}
    assert outcome.metrics["top1"] == row["top1"] and outcome.metrics["top5"] == row["top5"]
    assert [entry["epoch"] for entry in outcome.extra["history"]] == [5, 8]
    best = max(max(entry["top1"]) for entry in outcome.extra["history"])
    assert outcome.paper_rule["top1"] == best
    assert outcome.selection_gap["top1"] == best - outcome.metrics["top1"] >= 0
    assert "36 of 108 training images (33.3%)" in outcome.extra["note"]
    assert "kNN bank: the 72 training images not held out" in outcome.extra["note"]
    saved = np.load(tmp_path / "a/predictions.npz")
    assert (saved["label"] == splits.report.labels).all()
    hits = saved["top5"] == saved["label"][:, None]
    assert 100 * hits[:, 0].mean() == pytest.approx(outcome.metrics["top1"])
    assert 100 * hits.any(1).mean() == pytest.approx(outcome.metrics["top5"])
    assert (np.diff(saved["probability"]) <= 0).all() and (saved["probability"].sum(1) <= 1).all()


def test_is_torchs_linear_layer_on_the_same_crops(run, splits, backbone_file, machine):
    """The whole runner against an nn.Linear, torch's SGD and a loop written here."""
    net = features.load(backbone_file, machine)
    fc = torch.nn.Linear(net.channels, 6)
    fc.weight.data.normal_(0, 0.01, generator=torch.Generator().manual_seed(1))
    fc.bias.data.zero_()
    sgd = torch.optim.SGD(fc.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-4)
    for epoch in range(8):
        sgd.param_groups[0]["lr"] = 0.3 if epoch < 6 else 0.03
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
            torch.nn.functional.cross_entropy(fc(x), batch.labels).backward()
            sgd.step()
    x, y = features.extract(net, splits.select, size=32, resize=36, machine=machine)
    loss = torch.nn.functional.cross_entropy(fc(x), y).item()
    (row,) = (r for r in run().grid if (r["lr"], r["weight_decay"]) == (0.3, 1e-4))
    assert row["select_loss"] == pytest.approx(loss, rel=1e-5)
    assert row["select_top1"] == pytest.approx(100 * (fc(x).argmax(1) == y).double().mean().item())


@pytest.mark.parametrize("protocol", [SGD, LARS], ids=["sgd", "lars"])
@pytest.mark.parametrize("step", [5, 31])
def test_killed_and_run_again_is_the_same_bitwise(run, machine, protocol, step):
    whole = run(protocol, folder="whole")
    step = min(step, (72 // protocol.batch) * 8 - 1)
    with pytest.raises(Killed):
        run(
            protocol,
            folder="killed",
            machine=replace(machine, save_every_s=0),
            stop=killed_after(step),
        )
    assert run(protocol, folder="killed") == whole


def test_a_stop_saves_first(run):
    events = []

    def report(event, /, **fields):
        events.append((event, fields))

    asked = iter([False] * 6 + [True])
    with pytest.raises(Stopped, match="saved at step 7 of 32"):
        run(stop=lambda: next(asked), folder="stopped")
    outcome = run(folder="stopped", report=report)
    (resumed,) = (fields for event, fields in events if event == "resumed")
    assert (resumed["epoch"], resumed["step"]) == (1, 3)
    assert outcome == run(folder="whole")


def test_the_seconds_of_earlier_attempts_are_counted(run, machine, monkeypatch):
    """In the first training and in the refit, each step once; a kill comes after the saving."""
    protocol = change(SGD, {"refit": True})
    machine = replace(machine, save_every_s=0)
    for step, spent in ((6, 1000.0), (32 - 6 + 9, 5000.0)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Clock, "seconds", lambda self, spent=spent: spent)
            run(protocol, machine=machine, stop=killed_after(step))
    clock, seen = Clock(), []
    run(protocol, report=clock.follow(lambda event, /, **fields: seen.append((event, fields))))
    assert [fields["seconds"] for event, fields in seen if event == "resumed"] == [5000.0, 5000.0]
    assert 5000 < clock.seconds() < 5100


def test_a_finished_run_trains_nothing_again(run):
    first = run()
    assert run(stop=killed_after(1)) == first


def test_a_diverged_head_is_reported_and_the_rest_is_as_without_it(run):
    """The diverging head stands last, so the others keep their place and their arithmetic."""
    fine = run(change(SGD, {"weight_decays": (0.0,)}), folder="fine")
    mixed = run(change(SGD, {"weight_decays": (0.0,), "lrs": (0.1, 0.3, 1.0, 3e38)}))
    *rest, broken = mixed.grid
    assert rest == fine.grid
    assert broken["diverged_at"] is not None and broken["top1"] is broken["select_top1"] is None
    assert f"lr 3e+38 diverged at step {broken['diverged_at']}" in mixed.warnings
    assert (mixed.metrics, mixed.chosen) == (fine.metrics, fine.chosen)


def test_every_head_diverged(run):
    with pytest.raises(ValueError, match="every head of the grid diverged: lr 3e"):
        run(change(SGD, {"weight_decays": (0.0,), "lrs": (3e38, 3.2e38)}))


def test_refit_is_a_training_on_everything_with_the_chosen_settings(run, splits):
    first = run(folder="first")
    refit = run(change(SGD, {"refit": True}), folder="refit")
    assert refit.extra["held_out"] == {k: first.metrics[k] for k in ("top1", "top5")}
    assert (refit.chosen, refit.selection_gap) == (first.chosen, first.selection_gap)
    chosen = {"lrs": (first.chosen["lr"],), "weight_decays": (first.chosen["weight_decay"],)}
    everything = Splits(linear.join(splits.train, splits.select), splits.select, splits.report)
    alone = run(change(SGD, chosen), splits=everything, folder="alone")
    # all training images are the bank of either
    assert refit.metrics.pop("knn_top1_bank_train") == alone.metrics.pop(
        "knn_top1_bank_train_less_held_out"
    )
    assert refit.metrics == alone.metrics


def test_the_steps_of_both_trainings_are_reported_as_one_count(run, monkeypatch):
    monkeypatch.setattr(pacer, "LOG_EVERY_S", 0)
    seen = []
    run(
        change(SGD, {"refit": True}),
        report=lambda event, /, **fields: seen.append(fields) if event == "step" else None,
    )
    whole = 8 * (72 // 16) + 8 * (108 // 16)  # 36 of the 108 images choose
    assert [(fields["step"], fields["steps"]) for fields in seen] == [
        (step, whole) for step in range(1, whole + 1)
    ]
    first, again = seen[: 8 * (72 // 16)], seen[8 * (72 // 16) :]
    assert first[-1]["epoch"] == again[-1]["epoch"] == 8 and again[0]["epoch"] == 0.167


def test_a_kill_in_the_refit(run, machine):
    protocol = change(SGD, {"refit": True})
    whole = run(protocol, folder="whole")
    with pytest.raises(Killed):
        run(
            protocol,
            folder="killed",
            machine=replace(machine, save_every_s=0),
            stop=killed_after(32 + 9),
        )
    assert run(protocol, folder="killed") == whole


@given(st.permutations(range(36)))
@settings(max_examples=5, deadline=None)
def test_the_report_split_chooses_nothing(run_shared, order):
    """Other labels of the report split change its numbers and no choice."""
    whole, shuffled = run_shared(range(36)), run_shared(order)
    assert shuffled.chosen == whole.chosen
    assert shuffled.extra["select"] == whole.extra["select"]
    for a, b in zip(shuffled.grid, whole.grid, strict=True):
        assert {k: v for k, v in a.items() if k not in ("top1", "top5")} == {
            k: v for k, v in b.items() if k not in ("top1", "top5")
        }


@pytest.fixture(scope="module")
def run_shared(splits, backbone_file, machine, tmp_path_factory):
    protocol = change(SGD, {"epochs": 3, "milestones": (), "knn_k": 0})

    def go(order):
        report = replace(splits.report, labels=splits.report.labels[list(order)])
        return linear.run(
            protocol,
            backbone=backbone_file,
            splits=replace(splits, report=report),
            context=Context(0, tmp_path_factory.mktemp("run"), machine, silent, never),
        )

    return go


ROWS = st.lists(
    st.tuples(
        st.sampled_from([None, 10.0, 20.0, 30.0]), st.floats(0, 5), st.none() | st.floats(0, 100)
    ),
    min_size=1,
)


@given(ROWS, st.randoms())
def test_choosing_reads_the_select_split_only(rows, rng):
    grid = [
        {"lr": i, "select_top1": a, "select_loss": b, "top1": c, "diverged_at": 1}
        for i, (a, b, c) in enumerate(rows)
    ]
    if all(row["select_top1"] is None for row in grid):
        with pytest.raises(ValueError, match="every head"):
            linear.choose(grid)
        return
    best = linear.choose(grid)
    assert grid[best]["select_top1"] == max(r["select_top1"] or 0 for r in grid)
    others = [row["top1"] for row in grid]
    rng.shuffle(others)
    changed = [row | {"top1": other} for row, other in zip(grid, others, strict=True)]
    assert linear.choose(changed) == best


def test_best_at_the_edge_warns(run):
    outcome = run(change(SGD, {"lrs": (1e-5, 1e-4, 1e-3), "weight_decays": (0.0,)}))
    assert any(
        "best lr 0.001 is the largest of the grid (1e-05, 0.0001, 0.001)" in w
        for w in outcome.warnings
    )


def test_the_papers_rule():
    history = [
        {"epoch": 5, "top1": [50.0, None], "top5": [90.0, None]},
        {"epoch": 10, "top1": [55.0, 61.0], "top5": [91.0, 89.0]},
        {"epoch": 15, "top1": [60.0, 61.0], "top5": [92.0, 95.0]},
        {"epoch": 20, "train_loss": [None, None]},
    ]
    assert loop.best_evaluated(history) == {"epoch": 10, "candidate": 1, "top1": 61.0, "top5": 89.0}
    assert loop.best_evaluated([]) == {}


def test_a_set_smaller_than_a_batch_is_one_batch(run):
    outcome = run(change(SGD, {"batch": 4096, "epochs": 2, "milestones": ()}))
    assert "72 training images are fewer than the batch of 4096: used 72" in outcome.warnings


def test_fewer_than_five_classes(run, splits):
    few = replace(
        splits,
        **{
            role: replace(part.take(np.flatnonzero(part.labels < 3)), classes=part.classes[:3])
            for role, part in vars(splits).items()
        },
    )
    outcome = run(splits=few)
    assert outcome.metrics["top5"] == 100
    assert "top5 is always 100: there are only 3 classes" in outcome.warnings


def test_a_changed_backbone_is_noticed(run, monkeypatch):
    step = heads.Heads.step

    def meddle(self, x, labels, factor=1.0):
        net.bn1.running_mean += 1e-3
        step(self, x, labels, factor)

    load = features.load

    def loaded(*args):
        nonlocal net
        net = load(*args)
        return net

    net = None
    monkeypatch.setattr(features, "load", loaded)
    assert run(folder="untouched")
    monkeypatch.setattr(heads.Heads, "step", meddle)
    with pytest.raises(AssertionError, match="frozen backbone has changed"):
        run()


def test_splits_that_do_not_fit(run, splits):
    nothing = splits.select.take(np.arange(0))
    with pytest.raises(ValueError, match="the select split has no images"):
        run(splits=replace(splits, select=nothing))
    other = replace(splits.report, classes=("a", "b"))
    with pytest.raises(
        ValueError, match=r"the classes of the report split differ from .* \(2 and 6\)"
    ):
        run(splits=replace(splits, report=other))
