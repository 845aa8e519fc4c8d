"""Stacked heads against torch's own autograd and optimizer, and against LARS written plainly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lewel_bench.evals.heads import Heads

STEPS, IMAGES, FEATURES, CLASSES = 100, 64, 48, 10
CPU = torch.device("cpu")


def make(grid, optimizer="sgd", dtype=torch.float32, seed=3, std=0.01) -> Heads:
    return Heads(
        grid,
        FEATURES,
        CLASSES,
        optimizer=optimizer,
        momentum=0.9,
        trust=0.001,
        init_std=std,
        seed=seed,
        device=CPU,
        dtype=dtype,
    )


def batches(steps=STEPS, seed=0):
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=rng)
    for step in range(steps):
        labels = torch.randint(CLASSES, (IMAGES,), generator=rng)
        x = (centres[labels] + torch.randn(IMAGES, FEATURES, generator=rng)).relu()
        yield step, x, labels


def factor(step: int) -> float:
    return 1.0 if step < 60 else 0.1 if step < 80 else 0.01


def alone(lr, wd, optimizer, dtype, seed=3) -> nn.Linear:
    """One head trained by autograd: torch's SGD, with apex's LARC rule before it for LARS."""
    fc = nn.Linear(FEATURES, CLASSES)
    fc.weight.data.normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
    fc.bias.data.zero_()
    fc.to(dtype)
    lars = optimizer == "lars"
    sgd = torch.optim.SGD(fc.parameters(), lr=lr, momentum=0.9, weight_decay=0 if lars else wd)
    for step, x, labels in batches():
        sgd.param_groups[0]["lr"] = lr * factor(step)
        sgd.zero_grad()
        nn.functional.cross_entropy(fc(x.to(dtype)), labels).backward()
        if lars:
            for p in fc.parameters():
                w, g = p.data.norm(), p.grad.norm()
                if w != 0 and g != 0:
                    p.grad.add_(p.data, alpha=wd).mul_(0.001 * w / (g + wd * w + 1e-8))
        sgd.step()
    return fc


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize(
    "optimizer, lrs", [("sgd", (0.01, 0.1, 0.4, 1.6)), ("lars", (0.32, 1.6, 3.2, 12.8))]
)
def test_every_head_of_the_grid_is_the_head_trained_alone(optimizer, lrs, dtype, bound):
    grid = [(lr, wd) for lr in lrs for wd in (0.0, 1e-6, 1e-3)]
    heads = make(grid, optimizer, dtype)
    for step, x, labels in batches():
        heads.step(x.to(dtype), labels, factor(step))
    for g, (lr, wd) in enumerate(grid):
        fc = alone(lr, wd, optimizer, dtype)
        assert relative(heads.weight[g], fc.weight.data) < bound, (lr, wd)
        assert relative(heads.bias[g], fc.bias.data) < bound, (lr, wd)
    assert relative(heads.weight[0], heads.weight[-1]) > 0.1  # the grid matters


def test_mean_loss_is_that_of_autograd():
    heads = make([(0.1, 0.0), (0.2, 0.0)])
    total = torch.zeros(2)
    for _, x, labels in batches(5):
        for g in range(2):
            logits = x @ heads.weight[g].T + heads.bias[g]
            total[g] += nn.functional.cross_entropy(logits, labels)
        heads.step(x, labels)
    torch.testing.assert_close(torch.tensor(heads.mean_loss(5)), total / 5)
    assert heads.mean_loss(1) == [0, 0]  # starts again


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize("way", ["rate", "weights"])
def test_a_diverged_neighbour_changes_nothing(optimizer, way):
    broken = make([(0.1, 0.0), (0.2, 0.0), (0.3, 1e-4)], optimizer)
    whole = make([(0.1, 0.0), (0.2, 0.0), (0.3, 1e-4)], optimizer)
    if way == "rate":
        broken.lr[1] = 3e38
    for step, x, labels in batches(60):
        if way == "weights" and step == 20:
            broken.weight[1, 2, 3] = float("nan")
        broken.step(x, labels, factor(step))
        whole.step(x, labels, factor(step))
    for g in (0, 2):
        for name in ("weight", "bias", "weight_velocity", "bias_velocity", "loss_sum"):
            assert torch.equal(getattr(broken, name)[g], getattr(whole, name)[g]), name
    first, second, third = broken.divergence()
    assert first is None and third is None
    assert second == 20 if way == "weights" else second is not None
    assert whole.divergence() == [None] * 3


def test_a_diverged_head_is_frozen_where_it_stands():
    heads = make([(0.1, 0.0), (0.2, 0.0)])
    for _, x, labels in batches(10):
        heads.step(x, labels)
    heads.weight[1] *= 1e38  # finite, but the logits are not
    at = heads.weight[1].clone()
    for _, x, labels in batches(10, seed=1):
        heads.step(x, labels)
    assert heads.divergence() == [None, 10]
    assert torch.equal(heads.weight[1], at)


@given(st.permutations(range(4)))
@settings(max_examples=8, deadline=None)
def test_lars_trust_ratio_is_per_head(order):
    """A head's path does not depend on who its neighbours are or where it stands."""
    grid = [(0.32, 0.0), (1.6, 0.0), (3.2, 1e-6), (12.8, 0.0)]
    heads, shuffled = make(grid, "lars"), make([grid[i] for i in order], "lars")
    for _, x, labels in batches(5):
        heads.step(x, labels)
        shuffled.step(x, labels)
    for place, g in enumerate(order):
        assert relative(shuffled.weight[place], heads.weight[g]) < 1e-6


def test_lars_step_by_hand():
    """|update of W| = lr trust |W| at the first step without weight decay, whatever the gradient;
    the bias, whose norm is 0, moves by plain lr times its gradient."""
    heads = make([(0.5, 0.0), (2.0, 0.0)], "lars", torch.float64)
    before = heads.weight.clone()
    _, x, labels = next(batches(1))
    x = x.double()
    p = (x @ before[0].T).softmax(-1) - nn.functional.one_hot(labels, CLASSES)
    heads.step(x, labels)
    for g, lr in enumerate((0.5, 2.0)):
        moved = float((heads.weight[g] - before[g]).norm() / before[g].norm())
        assert moved == pytest.approx(lr * 0.001, rel=1e-6)
        torch.testing.assert_close(heads.bias[g], -lr * p.mean(0))


def test_all_heads_start_alike_and_as_stated():
    heads = Heads(
        [(0.1, 0.0), (0.2, 0.0)],
        512,
        1000,
        optimizer="sgd",
        momentum=0.9,
        trust=0.001,
        init_std=0.01,
        seed=0,
        device=CPU,
    )
    assert torch.equal(heads.weight[0], heads.weight[1])
    assert float(heads.weight[0].std()) == pytest.approx(0.01, rel=0.01)
    assert abs(float(heads.weight[0].mean())) < 1e-4
    assert float(heads.bias.abs().max()) == 0


class Waits(TorchDispatchMode):
    """Counts the operations that bring a value from the device to the host."""

    names = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func).startswith(self.names)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_step_never_waits_for_the_device(optimizer):
    heads = make([(0.1, 0.0), (0.2, 1e-4)], optimizer)
    _, x, labels = next(batches(1))
    with Waits() as waits:
        heads.step(x, labels, 0.5)
        assert waits.count == 0
        heads.mean_loss(1), float(heads.bias.sum())
    assert waits.count > 0  # the counter counts


def test_resuming_equals_continuing():
    whole, first, second = (make([(0.1, 0.0), (0.3, 1e-4)], "lars") for _ in range(3))
    for step, x, labels in batches(20):
        whole.step(x, labels)
        (first if step < 10 else second).step(x, labels)
        if step == 9:
            second.load_state_dict(first.state_dict())
    assert torch.equal(whole.weight, second.weight)
    assert torch.equal(whole.loss_sum, second.loss_sum)
    assert whole.steps == second.steps == 20
