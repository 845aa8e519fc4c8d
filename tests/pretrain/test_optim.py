from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lewel_bench.pretrain import optim
from lewel_bench.pretrain.optim import LARS, build, sgd
from lewel_bench.pretrain.recipe import Backbone, Ema, Optimizer, Recipe

SHAPES = [(8, 4), (8,), (3, 5, 2), (1,)]


def _params(seed: int, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]


def _gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def test_one_layer_by_hand() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LARS([w], lr=2.0, momentum=0.5, weight_decay=0.1, trust=0.01)
    for g, before in (([0.0, 2.0], [3.0, 4.0]), ([1.0, 0.0], None)):
        grad = torch.tensor(g, dtype=torch.float64)
        start = w.detach().clone()
        if before is not None:
            velocity = torch.zeros(2, dtype=torch.float64)
        local = 0.01 * start.norm() / (grad.norm() + 0.1 * start.norm())
        velocity = 0.5 * velocity + 2.0 * local * (grad + 0.1 * start)
        w.grad = grad
        optimizer.step()
        torch.testing.assert_close(w.detach(), start - velocity, rtol=1e-14, atol=0)


def test_without_adaptation_is_sgd() -> None:
    """methods.md D6g: excluded parameters take plain SGD steps, whatever the schedule of the lr
    as long as it is constant."""
    actual, theirs = _params(0), _params(0)
    lars = LARS([{"params": actual, "adapt": False}], lr=0.1, weight_decay=1e-3)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(5):
        _gradients(actual, step)
        _gradients(theirs, step)
        lars.step()
        sgd.step()
    for a, b in zip(actual, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_agrees_with_timm_where_defined_alike() -> None:
    """timm multiplies by lr after the momentum: the same while lr is constant."""
    timm_lars = pytest.importorskip("timm.optim").Lars
    actual, theirs = _params(1), _params(1)
    lars = LARS(actual, lr=0.2, weight_decay=1e-2, trust=0.001)
    reference = timm_lars(
        theirs, lr=0.2, momentum=0.9, weight_decay=1e-2, trust_coeff=0.001, eps=0.0,
        always_adapt=True,
    )  # fmt: skip
    for step in range(10):
        _gradients(actual, step)
        _gradients(theirs, step)
        lars.step()
        reference.step()
    for a, b in zip(actual, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_zero_weights_and_gradients_stay() -> None:
    w = nn.Parameter(torch.zeros(3))
    w.grad = torch.zeros(3)
    LARS([w], lr=1.0, weight_decay=0.1).step()
    assert w.tolist() == [0, 0, 0]


def test_infinite_gradients_skip_the_step_without_asking_the_host() -> None:
    params = _params(2, torch.float32)
    optimizer = LARS(params, lr=0.1, weight_decay=1e-3)
    _gradients(params, 0)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    velocity = [optimizer.state[p]["momentum_buffer"].clone() for p in params]
    for p in params:
        p.grad = torch.full_like(p, torch.inf)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(1.0)
    optimizer.step()
    for p, b, v in zip(params, before, velocity, strict=True):
        assert torch.equal(p, b) and torch.equal(optimizer.state[p]["momentum_buffer"], v)


def test_scaled_gradients_take_the_same_step() -> None:
    plain, scaled = _params(3), _params(3)
    entry, two = LARS(plain, lr=0.1), LARS(scaled, lr=0.1)
    _gradients(plain, 0)
    _gradients(scaled, 0)
    for p in scaled:
        assert p.grad is not None
        p.grad.mul_(1024)
    two.grad_scale = torch.tensor(1024.0, dtype=torch.float64)
    two.found_inf = torch.tensor(0.0, dtype=torch.float64)
    entry.step()
    two.step()
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.syncs = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        self.syncs += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def test_few_calls_and_no_host_synchronisation() -> None:
    """The released optimizer makes 1,304 calls and 126 synchronisations for a ResNet-50."""
    params = [nn.Parameter(torch.randn(4, 4)) for _ in range(60)]
    optimizer = LARS(params, lr=0.1, weight_decay=1e-6)
    for p in params:
        p.grad = torch.randn(4, 4)
    optimizer.step()
    with _Count() as count:
        optimizer.step()
    assert count.syncs == 0
    assert count.calls <= 40


@pytest.mark.parametrize(
    ("exclude", "excluded_heads"), [("bias_and_norm", True), ("log", False), ("none", False)]
)
def test_excluded_parameters(exclude: str, excluded_heads: bool) -> None:
    from lewel_bench.pretrain import methods

    spec = Optimizer.model_validate(
        {"name": "lars", "lr": 0.1, "weight_decay": 1e-6, "exclude": exclude}
    )
    recipe = Recipe(
        name="t", label="t", source="t", method="lewel_b", epochs=1, batch=4, augment="byol_eman",
        backbone=Backbone(arch="resnet18", width=8), optimizer=spec,
        ema=Ema(start=0.9), args={"hidden": 8, "d": 8},
    )  # fmt: skip
    method = methods.build(recipe, 0)
    optimizer = build(spec, method)
    adapted = {id(p) for g in optimizer.param_groups if g["adapt"] for p in g["params"]}
    names = {name: id(p) in adapted for name, p in method.named_parameters() if p.requires_grad}
    assert names["online.backbone.conv1.weight"] and names["online.g.0.weight"]
    assert names["online.backbone.bn1.weight"] is (exclude == "none")
    assert names["online.g.1.weight"] is not excluded_heads
    assert names["online.g.1.bias"] is (exclude == "none")


def test_sgd_whose_first_step_is_skipped_goes_on_as_if_it_never_was() -> None:
    spec = Optimizer(name="sgd", lr=0.1)
    skipped, plain = _params(4, torch.float32), _params(4, torch.float32)
    entry = sgd([{"params": skipped}], spec, fused=True)
    two = sgd([{"params": plain}], spec, fused=False)
    for p in skipped:
        p.grad = torch.full_like(p, torch.inf)
    entry.grad_scale, entry.found_inf = torch.tensor(1.0), torch.tensor(1.0)  # type: ignore[attr-defined]
    entry.step()
    entry.grad_scale, entry.found_inf = torch.tensor(1.0), torch.tensor(0.0)  # type: ignore[attr-defined]
    for step in range(3):
        _gradients(skipped, step)
        _gradients(plain, step)
        entry.step()
        two.step()
    for a, b in zip(skipped, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_negative_lr_is_named() -> None:
    with pytest.raises(ValueError, match="lr -1"):
        partial(LARS, lr=-1)([nn.Parameter(torch.zeros(1))])


def test_rates_of_their_own_for_excluded_and_constant_parameters() -> None:
    model = nn.ModuleDict({"g": nn.Linear(2, 3), "q": nn.Linear(3, 2)})
    spec = Optimizer(name="lars", lr=2.0, exclude="bias_and_norm", excluded_lr=0.024, constant="q.")
    mapping = {
        id(p): optim.rate(group, 0.5, 2.0)
        for group in optim.build(spec, model).param_groups
        for p in group["params"]
    }
    rates = {name: mapping[id(p)] for name, p in model.named_parameters()}
    assert rates == pytest.approx(
        {"g.weight": 0.5, "g.bias": 0.012, "q.weight": 2.0, "q.bias": 0.048}
    )
    with pytest.raises(ValueError, match=r"optimizer.constant 'h.': no parameter"):
        optim.build(spec.model_copy(update={"constant": "h."}), model)
