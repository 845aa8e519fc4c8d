"""Every method against its contract, whatever it computes."""

import inspect
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import ranks
import torch
from torch import distributed as dist
from torch import nn

from lewel_bench.pretrain import methods
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.norm import BatchNorm, RunningStatistics
from lewel_bench.pretrain.parts.momentum import Momentum, Queue, global_rows, shuffled
from lewel_bench.pretrain.recipe import Backbone, Ema, Optimizer, Recipe, change

BATCH, IMAGES, CLASSES = 8, 20, 3
VARIANTS = {  # name -> (method, arguments, EMA of the statistics)
    "barlow_twins": ("barlow_twins", {"dim": 24}, False),
    "byol": ("byol", {}, True),
    "byol_original": ("byol", {"bias": True}, False),
    "densecl": ("densecl", {"queue": 16}, False),
    "instdisc": ("instdisc", {"m": 12, "dim": 16}, False),
    "lewel_b": ("lewel_b", {"d": 16}, True),
    "lewel_b_sync": ("lewel_b", {"d": 16, "c": 8, "h": 2}, False),
    "lewel_m": ("lewel_m", {"d": 16, "queue": 12}, False),
    "lewel_m_same_index": ("lewel_m", {"d": 16, "negatives": "same_index", "queue": 24}, False),
    "lewel_m_global": ("lewel_m", {"d": 16, "queue": 12, "maps": "none"}, False),
    "lewel_m_random": ("lewel_m", {"d": 16, "queue": 12, "maps": "random"}, False),
    "lewel_m_shared": ("lewel_m", {"d": 16, "queue": 12, "semantic": False}, False),
    "lewel_m_uncoupled": ("lewel_m", {"d": 16, "queue": 12, "maps": "uncoupled"}, False),
    "lewel_m_uniform": ("lewel_m", {"d": 16, "queue": 12, "maps": "uniform"}, False),
    "moco_v2": ("moco_v2", {"queue": 16}, False),
    "moco_v2_head_norm": ("moco_v2", {"queue": 16, "head_norm": True}, False),
    "moco_v2_symmetric": ("moco_v2", {"queue": 32, "symmetric": True}, False),
    "pcl": ("pcl", {"queue": 16, "clusters": "3,5", "negatives": 4, "warmup": 0}, False),
    "pcl_v1": ("pcl", {"queue": 16, "clusters": "4", "warmup": 0, "head": "linear"}, False),
    "pixpro": ("pixpro", {"dim": 16}, False),
    "pixpro_instance": ("pixpro", {"dim": 16, "alpha": 1.0}, False),
    "resim": ("resim", {"queue": 16, "fpn": 8, "near": 3}, False),
    "simclr": ("simclr", {"dim": 16}, False),
    "simclr_3_layers": ("simclr", {"dim": 16, "layers": 3}, False),
    "simsiam": ("simsiam", {"dim": 16}, False),
    "supervised": ("supervised", {}, False),
    "swav": ("swav", {"dim": 16, "prototypes": 12, "frozen": 0}, False),
    "swav_queue": (
        "swav",
        {"dim": 16, "prototypes": 12, "frozen": 0, "queue": 16, "queue_from": 0, "layers": 3},
        False,
    ),
}
JOINT = {"barlow_twins", "simclr", "simclr_3_layers", "swav", "swav_queue"}
SIDES = {  # of the views, by method; else a pair
    "instdisc": (32,),
    "supervised": (32,),
    "swav": (32, 32, 16, 16),
}


def recipe_of(method, args, buffers, bn_group=4):
    return Recipe(
        name="test",
        label="test",
        source="test",
        method=method,
        args={**({"hidden": 32} if has_hidden(method) else {}), **args},
        backbone=Backbone(arch="resnet18", stem="small", width=8),
        epochs=1,
        batch=BATCH,
        bn_group=bn_group,
        optimizer=Optimizer(name="sgd", lr=0.1),
        ema=Ema(start=0.9, buffers=buffers),
        augment="moco_v2",
    )


def has_hidden(method):
    return method not in methods.METHODS or "hidden" in methods.METHODS[method].model_fields


def make(variant, bn_group=4):
    method, args, buffers = VARIANTS[variant]
    bn_group = None if methods.METHODS[method].joint_views else bn_group
    recipe = recipe_of(method, args, buffers, bn_group)
    made = methods.build(recipe, seed=0, images=IMAGES, classes=CLASSES).double().train()
    made.before_epoch(0, Centres())
    return made


class Centres:
    """The training set: the images of the views of step 0, and noise."""

    def __len__(self):
        return IMAGES

    def features(self, encode):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(IMAGES, 3, 32, 32, dtype=torch.double, generator=generator)
        pair = views()
        images[pair.index] = sum(pair) / 2
        return encode(images)


def views(step=0, variant="byol"):
    """Views of BATCH images as the loop hands them to the method of `variant`."""
    sides = SIDES.get(VARIANTS[variant][0], (32, 32))
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 3, 32, 32, dtype=torch.double, generator=generator)
    noise = torch.randn(len(sides), BATCH, 3, 32, 32, dtype=torch.double, generator=generator)
    corner = 0.1 * torch.rand(len(sides), BATCH, 2, dtype=torch.double, generator=generator)
    return Views(
        tuple((x + 0.3 * n)[..., :side, :side] for n, side in zip(noise, sides, strict=True)),
        index=torch.randperm(IMAGES, generator=generator)[:BATCH],
        labels=torch.arange(BATCH) % CLASSES,
        boxes=torch.cat([corner, 0.9 - corner], 2),
        flips=torch.rand(len(sides), BATCH, generator=generator) < 0.5,
    )


def cast(views, dtype):
    return replace(views, x=tuple(x.to(dtype) for x in views), boxes=views.boxes.to(dtype))


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def floats(state):
    return {k: v for k, v in state.items() if v.is_floating_point()}


def gradients(method):
    return {k: p.grad for k, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_falls_and_only_the_online_network_has_gradients(variant):
    method = make(variant)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.03, momentum=0.9)
    pair, losses = views(variant=variant), []
    keys = method.keys(pair, 0)
    target = list(method.target.parameters()) if hasattr(method, "target") else []
    before = [p.clone() for p in target]
    for _ in range(12):  # towards a target that stands still
        loss, diagnostics = method(pair, keys, slice(0, BATCH))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None for p in target)
        if len(losses):  # a residual branch that starts at zero has no gradient in the first step
            assert all(p.grad.abs().max() > 0 for p in trained)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.15 * abs(losses[0]), losses
    assert {id(p) for p in method.backbone.parameters()} <= {id(p) for p in trained}
    method.after_step(keys, 0, 100)
    moved = [not torch.equal(a, b) for a, b in zip(before, target, strict=True)]
    assert all(moved)
    assert all(not v.requires_grad and v.ndim == 0 for v in diagnostics.values())
    assert 0 < diagnostics["feature_std"] < 2


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in JOINT])
def test_micro_batches_have_the_gradients_of_the_whole_batch(variant):
    results = []
    for micro in (BATCH, 4):
        method = make(variant)
        for step in range(2):
            pair = views(step, variant)
            keys = method.keys(pair, step)
            running = RunningStatistics(method)
            running.start()
            for first in range(0, BATCH, micro):
                rows = slice(first, first + micro)
                loss, _ = method(pair.rows(rows), keys, rows)
                (loss * micro / BATCH).backward()
                running.add(micro / BATCH)
            running.finish()
            method.after_step(keys, step, 10)
        results.append((gradients(method), method.state_dict()))
    close(results[1], results[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixed_precision_changes_the_loss_by_its_rounding_alone(variant):
    results = []
    for enabled in (False, True):
        method = make(variant).float()
        pair = cast(views(variant=variant), torch.float)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = method(pair, method.keys(pair, 0), slice(0, BATCH))
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(
            g.dtype == torch.float32 and g.isfinite().all() for g in gradients(method).values()
        )
        results.append(loss.item())
    bound = 0.12 if variant in JOINT else 0.03  # few images, a small τ: rounding grows
    assert 0 < abs(results[1] - results[0]) < bound * abs(results[0]) + 0.01


def one_step(method, pair, world=1, rank=0):
    size = BATCH // world
    mine = pair.rows(slice(rank * size, (rank + 1) * size))
    keys = method.keys(mine, 3)
    loss, _ = method(mine, keys, slice(0, size))
    loss.backward()
    grads = {"loss": loss.detach(), **gradients(method)}
    statistics = [b for m in method.modules() if isinstance(m, BatchNorm) for b in m.buffers()]
    for x in [*grads.values(), *statistics] if world > 1 else []:
        if x.is_floating_point():
            dist.all_reduce(x)
            x /= world
    method.after_step(keys, 3, 10)
    return grads, floats(method.state_dict())


def on_rank(rank, world):
    is_joint = {v: methods.METHODS[VARIANTS[v][0]].joint_views for v in ALONE_AS_TOGETHER}
    groups = {v: (None,) if is_joint[v] else (4, None) for v in ALONE_AS_TOGETHER}
    cases = [(v, g) for v, known in groups.items() for g in known]
    return {(v, g): one_step(make(v, g), views(variant=v), world, rank) for v, g in cases}


ALONE_AS_TOGETHER = [
    "barlow_twins", "byol_original", "densecl", "instdisc", "lewel_b", "lewel_m", "lewel_m_random",
    "moco_v2", "moco_v2_symmetric", "pcl", "pixpro_instance", "resim", "simclr", "simsiam",
    "supervised", "swav", "swav_queue",
]  # fmt: skip


def test_two_processes_train_like_one():
    first, second = ranks.run(on_rank, 2)
    for (variant, group), actual in first.items():
        close(actual, one_step(make(variant, group), views(variant=variant)))
        close(second[variant, group], actual)


def test_shuffled_returns_everything_in_its_place():
    seen = []

    def encode(x):
        seen.append(x)
        return x * 2, x.view(-1, 1, 1) + torch.arange(3)

    x = torch.arange(64.0)
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        twice, more = shuffled(encode, x, seed, step)
        assert torch.equal(twice, 2 * x)
        assert torch.equal(more[:, 0, 1], x + 1)
    assert all(sorted(s.tolist()) == x.tolist() and not torch.equal(s, x) for s in seen)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0], seen[3])  # drawn from (seed, step) alone


def test_shuffling_gives_keys_other_batch_statistics_than_queries():
    method = make("moco_v2")
    x, _ = views()
    order = np.random.Generator(np.random.Philox(key=[0, 5])).permutation(BATCH)
    expected = torch.empty(BATCH, 128, dtype=torch.double)
    for group in order.reshape(2, 4):  # two groups of bn_group = 4 images
        expected[group] = nn.functional.normalize(method.target(x[group]).z, dim=1)
    (keys,) = make("moco_v2").keys((x, x), 5)
    close(keys, expected)
    in_order = nn.functional.normalize(make("moco_v2").target(x).z, dim=1)
    assert (keys - in_order).abs().max() > 1e-3


def test_queue_is_first_in_first_out_over_its_end():
    queue = Queue(10, 1)
    assert queue.keys.norm(dim=1).allclose(torch.ones(10))
    for step in range(5):
        queue.push(torch.arange(4.0)[:, None] + 4 * step, step)
    assert sorted(queue.keys.flatten().tolist()) == list(range(10, 20))
    with pytest.raises(ValueError, match="queue 10 is smaller than the batch 11"):
        queue.push(torch.zeros(11, 1), 0)


def test_global_rows_of_one_process():
    assert global_rows(torch.zeros(8, 2), slice(2, 6)) == slice(2, 6)


def test_momentum_follows_by_its_schedule():
    online = nn.Linear(2, 1, bias=False)
    for schedule, expected in (("constant", 0.9), ("cosine", 0.95)):
        target = Momentum(online, Ema(start=0.9, schedule=schedule))
        with torch.no_grad():
            target.network.weight.zero_()
            online.weight.fill_(1.0)
        target.update(online, 5, 10)  # half-way: (0.9 + 1) / 2 on the cosine
        assert target.network.weight.mean().item() == pytest.approx(1 - expected, rel=1e-6)


@pytest.mark.parametrize("buffers", [True, False])
def test_eman_normalises_with_averages_while_training(buffers):
    method = make("byol" if buffers else "byol_original")
    method.train()
    assert method.target.network.training is not buffers
    assert method.online.training
    method.eval()
    assert not method.target.network.training


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_constructor_takes_the_settings_of_the_method(name):
    settings = methods.METHODS[name]()
    recipe = recipe_of(name, {}, False)
    class_ = methods.method_class(recipe, settings)
    assert class_.__module__ == f"lewel_bench.pretrain.methods.{name}"
    first, backbone, norm, *offered = inspect.signature(class_).parameters.values()
    assert first.annotation is type(settings)
    assert (backbone.name, norm.name) == ("backbone", "norm")
    assert {p.name for p in offered} <= {"ema", "seed", "images", "classes"}
    assert settings.needs_ema == ("ema" in {p.name for p in offered})
    assert settings.summary and not any(f.is_required() for f in settings.model_fields.values())


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        ("lewelb", {}, "unknown method 'lewelb'. Did you mean 'lewel_b'?"),
        ("lewel_b", {"heads": 4}, "unknown argument of lewel_b 'heads'.*Known: beta, c, d, h"),
        ("lewel_b", {"beta": 1.5}, "lewel_b: args.beta: .*less than or equal to 1"),
        ("lewel_b", {"h": 2.5}, "lewel_b: args.h: .*integer"),
        ("lewel_b", {"h": 3}, "lewel_b: args.h 3 must divide args.d 256 and the 64 channels"),
        ("lewel_m", {"h": 3}, "lewel_m: args.h 3 must divide args.d 128 and the 64 channels"),
        ("lewel_m", {"semantic": False, "c": 4}, "args.c 4: without a semantic projector it must"),
        ("lewel_m", {"queue": 4}, "lewel_m: args.queue 4 is smaller than the batch 8"),
        ("lewel_m", {"negatives": "all"}, "'other_images' or 'same_index'"),
        ("moco_v2", {"queue": 4}, "moco_v2: args.queue 4 is smaller than the batch 8; .* least 8"),
        ("moco_v2", {"queue": 8, "symmetric": True}, "set args.queue to at least 16"),
        ("moco_v2", {"head_norm": 1}, "moco_v2: args.head_norm: .*boolean"),
        ("pcl", {"warmup": 1}, "pcl: args.warmup 1 must be less than epochs 1"),
        (
            "swav",
            {"queue": 8, "queue_from": 1},
            "swav: bn_group 4: the views pass through the netw",
        ),
    ],
)
def test_what_cannot_be_is_named_before_training(method, args, message):
    with pytest.raises(ValueError, match=message):
        methods.settings_of(recipe_of(method, args, False))


def test_a_loss_that_begins_after_the_last_epoch_is_named():
    recipe = recipe_of("swav", {"queue": 8, "queue_from": 1}, False, bn_group=None)
    with pytest.raises(ValueError, match="queue_from 1 must be less than epochs 1"):
        methods.settings_of(recipe)
    recipe = change(recipe, {"epochs": 2})
    assert methods.full_loss_epoch(recipe) == 1
    assert methods.full_loss_epoch(change(recipe, {"args.queue": 0})) == 0


def test_a_method_with_a_momentum_network_needs_its_settings():
    with pytest.raises(ValueError, match="byol has a momentum network: set ema"):
        methods.settings_of(change(recipe_of("byol", {}, False), {"ema": None}))


def test_checking_does_not_import_torch():
    code = (
        "import sys; from lewel_bench.pretrain import methods; "
        "[m() for m in methods.METHODS.values()]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_residual_branches_start_at_zero_where_the_methods_code_has_it_so(variant):
    """zero_init_residual of SimSiam's and Barlow Twins' main files, SimCLR's resnet.py."""
    gains = [m.bn2.weight for m in make(variant).backbone.modules() if hasattr(m, "bn2")]
    expected = variant in ("barlow_twins", "simclr", "simclr_3_layers", "simsiam")
    assert len(gains) == 8 and all(g.eq(0 if expected else 1).all() for g in gains)


def test_weights_depend_on_the_seed_alone():
    recipe = recipe_of("moco_v2", {"queue": 16}, False)
    torch.manual_seed(5)
    states = [methods.build(recipe, seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states[:2]), strict=True))
    assert not torch.equal(states[0]["queue.keys"], states[2]["queue.keys"])


def test_a_method_without_an_encoder_is_told_what_to_assign():
    class Bare(Method):
        def forward(self, views, keys, rows):
            return torch.zeros(()), {}

    bare = Bare()
    assert bare.keys((), 0) is None and bare.projector is None
    with pytest.raises(ValueError, match="Bare has no backbone: assign an encoder with one to"):
        bare.backbone  # noqa: B018
