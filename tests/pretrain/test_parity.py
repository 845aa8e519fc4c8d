"""The methods against the authors' own code: losses, gradients, one LARS step, the EMA, the queue.

The first half imports it from $LEWEL_BENCH_REFERENCE (see tests/official.py) and is skipped by
name where that is absent; the second half compares with numbers that it gave (golden/*.json).
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import official
import pytest
import ranks
import torch
from torch import nn

from lewel_bench.pretrain import methods, optim
from lewel_bench.pretrain.recipe import Backbone, Optimizer

GOLDEN = Path(__file__).parent / "golden"


def need(repository):
    if official.folder(repository) is None:
        pytest.skip(f"no official code: ${official.VARIABLE}/{repository} is absent")


def worst(actual, expected):
    """The largest |difference| of tensors of the same names, each relative to its own norm."""
    assert actual.keys() == expected.keys()
    differences = [
        ((actual[k] - v).norm() / v.norm().clamp_min(1e-30)).item()
        for k, v in expected.items()
        if v.is_floating_point()
    ]
    counts = [k for k, v in expected.items() if not v.is_floating_point()]
    assert all(torch.equal(actual[k], expected[k]) for k in counts)
    return max(differences)


# In single precision the two differ by the order of their sums alone (measured: gradients 1e-5),
# which the optimizer's large step then amplifies: one step there, two in double precision.
BOUNDS = {torch.float64: (2, 1e-12, 1e-10), torch.float32: (1, 1e-6, 5e-5)}


@pytest.mark.parametrize("case", official.CASES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_training_steps_equal_the_official_code(case, dtype):
    setting = official.CASES[case]
    need(setting.repository)
    steps, loss_bound, bound = BOUNDS[dtype]
    model = official.build(setting)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    own = official.run_local(setting, official.converted(setting.repository, start), dtype, steps)
    with official.on_cpu() if case == "moco_v2" else contextlib.nullcontext():
        theirs = official.run_official(setting, model, dtype, steps)
    for step, (a, b) in enumerate(zip(own, theirs, strict=True)):
        loss = abs(a.loss - b.loss).item() / abs(b.loss).item()
        gradient, state = worst(a.gradient, b.gradient), worst(a.state, b.state)
        print(f"{case} {dtype} step {step}: loss {loss:.1e} grad {gradient:.1e} state {state:.1e}")
        assert loss < loss_bound
        assert gradient < bound
        assert state < bound  # online after the optimizer, target after the EMA, the queue


def official_rank(rank, world):
    """MoCo's own code as one of several processes, with our permutation in place of its own."""
    setting = official.CASES["moco_v2"]
    with official.on_cpu():
        model = official.build(setting)
        random = np.random.Generator(np.random.Philox(key=[official.SEED, 0]))
        torch.randperm = lambda count: torch.from_numpy(random.permutation(count))
        x1, x2 = (x.chunk(world)[rank] for x in official.views(official.SIZE, official.BATCH))
        loss = nn.functional.cross_entropy(*model(x1, x2))
    loss.backward()
    gradient = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    gradient["queue"] = model.queue
    return loss.detach(), official.converted("moco", gradient)


def test_shuffled_groups_equal_mocos_processes():
    need("moco")
    setting, world = official.CASES["moco_v2"], 2
    processes = ranks.run(official_rank, world)
    expected = {k: sum(g[k] for _, g in processes) / world for k in processes[0][1]}

    method = methods.build(
        official.recipe(setting, bn_group=official.BATCH // world), official.SEED
    )
    method.double().train().load_state_dict(official.weights(setting))
    pair = official.views(official.SIZE, official.BATCH)
    keys = method.keys(pair, 0)
    loss, _ = method(pair, keys, slice(0, official.BATCH))
    loss.backward()
    method.after_step(keys, 0, 10)
    actual = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    actual["queue.keys"] = method.queue.keys
    print(f"moco in {world} processes: grad {worst(actual, expected):.1e}")
    assert loss.item() == pytest.approx(sum(v.item() for v, _ in processes) / world, rel=1e-12)
    assert worst(actual, expected) < 1e-10


def test_resnet50_has_the_official_tensors():
    need("lewel")
    lewel, resnet = official.load("lewel", "models.lewel", "backbone.resnet")
    with torch.device("meta"):
        model = lewel.LEWELB_EMAN(resnet.resnet50_encoder, num_heads=4)
        theirs = official.converted("lewel", model.state_dict())
        setting = official.recipe(official.CASES["lewel_b_eman"])
        backbone = Backbone(arch="resnet50")
        net = methods.build(setting.model_copy(update={"args": {}, "backbone": backbone}), 0)
    assert {k: v.shape for k, v in theirs.items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 46_609_472


@pytest.mark.parametrize(
    ("repository", "theirs", "own"),
    [
        ("lewel", "online_net.backbone.layer1.0.bn1.weight", "online.backbone.layer1.0.bn1.weight"),
        ("lewel", "target_net.neck.proj_obj.mlp.3.weight", "target.network.p.3.weight"),
        ("lewel", "online_net.neck.proj.mlp.1.running_var", "online.g.1.running_var"),
        ("lewel", "predictor.mlp.0.weight", "q.0.weight"),
        ("lewel", "predictor_obj.mlp.0.weight", "s.0.weight"),
        ("eman", "target_net.neck.mlp.0.weight", "target.network.g.0.weight"),
        ("moco", "encoder_k.fc.2.bias", "target.network.g.2.bias"),
        ("moco", "encoder_q.conv1.weight", "online.backbone.conv1.weight"),
    ],
)
def test_names_map(repository, theirs, own):
    assert official.name(repository, theirs) == own
    with pytest.raises(ValueError, match="that we know"):
        official.name(repository, "something.else")


def test_conv1d_weights_and_queue_map():
    weight, queue = torch.rand(3, 4, 1), torch.rand(5, 7)
    (actual,) = official.converted("lewel", {"predictor.mlp.0.weight": weight}).values()
    assert torch.equal(actual, weight[..., 0])
    theirs = {"queue": queue, "queue_ptr": torch.zeros(1)}
    assert torch.equal(official.converted("moco", theirs)["queue.keys"], queue.T)


@pytest.mark.parametrize(("rule", "head_gains"), [("bias_and_norm", True), ("log", False)])
def test_parameter_groups_are_those_of_the_official_script(rule, head_gains):
    """`collect_params` of LEWEL's main.py; `mlp.1` is excluded for the EMAN archs alone."""
    theirs = {"online.g": "mlp", "online.p": "mlp", "q": "mlp", "s": "mlp"}
    method = methods.build(official.recipe(official.CASES["lewel_b_eman"]), 0)
    marks = ["bn", "downsample.1", "bias", *(["mlp.1"] if head_gains else [])]
    expected = set()
    for key, p in method.named_parameters():
        head = next((h for h in theirs if key.startswith(f"{h}.")), "")
        their_name = theirs[head] + key[len(head) :] if head else key
        if p.requires_grad and any(m in their_name for m in marks):
            expected.add(key)
    spec = Optimizer(name="lars", lr=1.0, weight_decay=1e-6, exclude=rule)
    groups = optim.build(spec, method).param_groups
    excluded = {id(p) for g in groups if not g["adapt"] for p in g["params"]}
    assert {k for k, p in method.named_parameters() if id(p) in excluded} == expected


def test_lars_is_timms_where_they_are_defined_alike():
    """timm applies the learning rate after the momentum: the same while the rate is constant."""
    timm_optim = pytest.importorskip("timm.optim")
    weights = [official.noise(f"w{i}", 6, 5) for i in range(3)]
    a, b = ([nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    own = optim.LARS([{"params": a, "adapt": True}], lr=0.5, momentum=0.9, weight_decay=0.01)
    theirs = timm_optim.Lars(
        b, lr=0.5, momentum=0.9, weight_decay=0.01, trust_coeff=0.001, eps=0.0, trust_clip=False
    )
    for step in range(4):
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            p.grad = official.noise(f"g{i}{step}", 6, 5)
            q.grad = p.grad.clone()
        own.step()
        theirs.step()
    moved = max((p - w).abs().max() for p, w in zip(a, weights, strict=True))
    assert moved > 1e-4
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", official.CASES)
def test_golden_numbers_of_the_official_code(case):
    setting = official.CASES[case]
    expected = json.loads((GOLDEN / f"{case}.json").read_text())
    trace = official.run_local(setting, official.weights(setting), torch.float64)
    summary = official.summary(trace)
    assert summary["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    for kind in ("gradient", "state"):
        assert summary[kind].keys() == expected[kind].keys()
        for key, (norm, projection) in expected[kind].items():
            assert summary[kind][key][0] == pytest.approx(norm, rel=1e-5), key
            assert summary[kind][key][1] == pytest.approx(projection, abs=1e-5 * norm), key
