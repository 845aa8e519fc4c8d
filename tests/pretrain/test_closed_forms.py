"""What can be said about the methods without data: methods.md D6, one test a letter, and more.

h (the traces of the learning rate and of the momentum) is in test_schedule.py.
"""

from math import e, log

import pytest
import torch
from torch import nn
from torch.nn import functional

from lewel_bench.pretrain import methods, optim
from lewel_bench.pretrain.norm import TokenNorm
from lewel_bench.pretrain.parts import aligned, diagnostics, losses
from lewel_bench.pretrain.parts.aligned import Aligned, aggregate, alignment_maps
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.recipe import Backbone, Ema, Optimizer, Recipe

WHOLE = slice(0, 8)


def method_of(name, *, ema=None, bn_group=None, backbone=None, **args):
    recipe = Recipe(
        name="test",
        label="test",
        source="test",
        method=name,
        args=args,
        backbone=backbone or Backbone(arch="resnet18", stem="small", width=8),
        epochs=1,
        batch=8,
        bn_group=bn_group,
        optimizer=Optimizer(name="sgd", lr=0.1),
        ema=ema or Ema(start=0.9),
        augment="moco_v2",
    )
    return methods.build(recipe, seed=0).double().train()


def views(size=64):
    torch.manual_seed(1)
    return tuple(torch.randn(8, 3, size, size, dtype=torch.double) for _ in range(2))


def loss_of(method, pair):
    return method(pair, method.keys(pair, 0), WHOLE)[0]


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_a_statistics_of_the_concatenated_tokens():
    encoder = method_of("lewel_b", hidden=32, d=16).online
    kept = {}
    encoder.backbone.register_forward_hook(lambda _, __, out: kept.update(F=out.detach()))
    encoder(views()[0])
    F = kept["F"].flatten(2).transpose(1, 2)  # (8, 16, D)
    pixels, pooled = F @ encoder.g[0].weight.T, F.mean(1) @ encoder.g[0].weight.T
    norm, P = encoder.g[1], F.shape[1]
    mean = pixels.mean((0, 1))  # exactly that of the positions: conv-1 is linear
    var = (P * pixels.var((0, 1), correction=0) + ((pooled - mean) ** 2).mean(0)) / (P + 1)
    count = 8 * (P + 1)
    close(norm.running_mean, 0.1 * mean)
    close(norm.running_var, 0.9 + 0.1 * var * count / (count - 1))
    assert (pooled - mean).var(0).mean() < 0.9 * pixels.var((0, 1)).mean()  # GAP is shrunk


def test_b_maps_sum_to_one_and_are_nearly_uniform():
    torch.manual_seed(0)
    W = alignment_maps(torch.randn(4, 49, 256, dtype=torch.double))
    close(W.sum(1), torch.ones(4, 256, dtype=torch.double))
    assert W.max() < e / (e + 48 / e)
    assert W.min() > 0.74 / 49 * 0.9 and W.max() < 1.34 / 49 * 1.1  # A13.4, by simulation
    sharp = torch.full((1, 49, 2), -1.0, dtype=torch.double)
    sharp[0, 0] = 1.0  # every map points at position 0 as hard as it can: |heat| is |1/√2|
    bound = torch.exp(torch.tensor(2 / 2**0.5, dtype=torch.double))
    close(alignment_maps(sharp)[0, 0, 0], bound / (bound + 48))


@pytest.mark.parametrize("h", [1, 2, 4, 8])
def test_c_constant_maps_pool_globally(h):
    torch.manual_seed(0)
    F = torch.randn(3, 9, 16, dtype=torch.double)
    heat = torch.randn(3, 1, 8, dtype=torch.double).expand(3, 9, 8)
    y_k = aggregate(alignment_maps(heat), F, h)
    close(y_k, F.mean(1)[:, None].expand(3, 8 // h, 16))


def test_c_diagnostics_of_global_pooling_are_one():
    F = torch.randn(3, 9, 16)
    y = F.mean(1)
    W = torch.full((3, 9, 8), 1 / 9)
    uniform = Aligned(y, y[:, None], y, y[:, None].expand(3, 8, 16), W)
    actual = diagnostics.alignment(uniform)
    assert actual["map_entropy"].item() == pytest.approx(1)
    assert actual["aligned_gap_cosine"].item() == pytest.approx(1)
    one_hot = functional.one_hot(torch.zeros(3, 8, dtype=torch.long), 9).transpose(1, 2).float()
    assert diagnostics.alignment(uniform._replace(W=one_hot))["map_entropy"] == 0


def test_d_a_permutation_inside_every_group_permutes_the_aligned_representations():
    torch.manual_seed(0)
    F, heat = (torch.randn(2, 9, n, dtype=torch.double) for n in (16, 12))
    h, n = 4, 3
    order = torch.tensor([2, 0, 1])
    moved = heat.view(2, 9, h, n)[..., order].flatten(2)
    close(aggregate(alignment_maps(moved), F, h), aggregate(alignment_maps(heat), F, h)[:, order])


def test_d_equation_2_is_the_same_up_to_a_fixed_permutation_of_the_maps():
    torch.manual_seed(0)
    F, W = torch.randn(2, 9, 16, dtype=torch.double), torch.rand(2, 9, 12, dtype=torch.double)
    h, n, size = 4, 3, 4
    equation_2 = torch.zeros(2, n, 16, dtype=torch.double)
    for k in range(1, n + 1):
        for m in range(1, h + 1):
            W_i = W[:, :, (k - 1) * h + m - 1]
            group = F[:, :, (m - 1) * size : m * size]
            equation_2[:, k - 1, (m - 1) * size : m * size] = (W_i[..., None] * group).sum(1)
    order = torch.arange(12).view(n, h).T.flatten()
    close(aggregate(W[:, :, order], F, h), equation_2)


@pytest.mark.parametrize("name", ["byol", "lewel_b"])
@pytest.mark.parametrize("buffers", [True, False])
def test_e_first_loss_is_about_four(name, buffers):
    method = method_of(name, ema=Ema(start=0.98, buffers=buffers), hidden=512)
    assert loss_of(method, views()).item() == pytest.approx(4, abs=0.4)


@pytest.mark.parametrize("name", ["byol", "lewel_b"])
def test_f_eman_with_momentum_zero_is_the_online_network(name):
    method = method_of(name, ema=Ema(start=0.0, buffers=True), hidden=32)
    for step in range(2):
        loss_of(method, views()).backward()
        with torch.no_grad():
            for p in method.online.parameters():
                p -= 0.1 * p.grad
        method.after_step(None, step, 10**12)  # so long that the cosine keeps m at 0
        online, target = method.online.state_dict(), method.target.network.state_dict()
        assert online["backbone.bn1.num_batches_tracked"] == 2 * (step + 1)  # two views
        assert all(torch.equal(target[key], value) for key, value in online.items())


def test_f_parameter_averages_leave_the_statistics():
    method = method_of("byol", ema=Ema(start=0.5), hidden=32)
    target = method.target.network
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with torch.no_grad():
        for p in method.online.parameters():
            p += 1
    method.online.backbone.bn1.running_mean += 1
    method.after_step(None, 0, 10)
    for key, value in target.state_dict().items():
        is_parameter = key in dict(target.named_parameters())
        close(value, before[key] + 0.5 if is_parameter else before[key])


def test_g_lars_without_adaptation_is_sgd():
    torch.manual_seed(0)
    start = torch.randn(7, 5, dtype=torch.double)
    actual, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    groups = [{"params": [actual], "adapt": False, "weight_decay": 0.01}]
    lars = optim.LARS(groups, lr=0.1, momentum=0.9)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        actual.grad = torch.randn_like(actual)
        theirs.grad = actual.grad.clone()
        lars.step()
        sgd.step()
    close(actual, theirs)


def test_i_parameter_counts():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        for d, hidden, expected in ((256, 4096, 9_445_376), (128, 2048, 4_460_544)):
            assert count(mlp(2048, hidden, d, TokenNorm)) == expected
        assert count(mlp(256, 4096, 256, TokenNorm)) == 2_105_344
    method = method_of("lewel_b", backbone=Backbone(arch="resnet50"))
    assert count(method.backbone) == 23_508_032
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert trained == 23_508_032 + 2 * 9_445_376 + 2 * 2_105_344


def test_j_without_aligned_loss_lewel_m_is_moco_only_if_g_sees_the_pooled_token_alone():
    lewel = method_of("lewel_m", beta=0.0, hidden=32, queue=64)
    moco = method_of("moco_v2", head_norm=True, hidden=32, queue=64)
    own = moco.state_dict()
    moco.load_state_dict({k: v for k, v in lewel.state_dict().items() if k in own})
    pair = views()
    expected = loss_of(moco, pair)
    assert abs(loss_of(lewel, pair) - expected) > 1e-3

    def separate(g, tokens):  # the pooled token alone, then the positions
        return torch.cat([type(g).forward(g, t) for t in (tokens[:, :1], tokens[:, 1:])], 1)

    for encoder in (lewel.online, lewel.target.network):
        encoder.g.forward = separate.__get__(encoder.g)
    close(loss_of(lewel, pair), expected)


def test_k_beta_one_leaves_no_gradient_of_the_queue_loss():
    pair, grads = views(), []
    for seed in (0, 1):  # another queue
        method = method_of("lewel_m", beta=1.0, hidden=32, queue=64)
        method.queue.keys.copy_(losses.unit(torch.randn(64, 128).double() + seed))
        loss_of(method, pair).backward()
        grads.append([p.grad for p in method.online.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_k_beta_weighs_the_aligned_loss():
    pair = views()
    loss = {b: loss_of(method_of("lewel_b", hidden=32, beta=b), pair) for b in (0.0, 0.3, 1.0)}
    close(loss[0.3], 0.7 * loss[0.0] + 0.3 * loss[1.0])
    method = method_of("lewel_b", hidden=32, beta=1.0)
    loss_of(method, pair).backward()
    assert all(p.grad.abs().max() == 0 for p in method.q.parameters())
    assert all(p.grad.abs().max() > 0 for p in method.s.parameters())


def test_mse_is_zero_for_equal_directions_and_four_for_opposite_ones():
    x = torch.randn(4, 3, 5, dtype=torch.double)
    close(losses.mse(x, 3 * x), torch.tensor(0.0, dtype=torch.double))
    close(losses.mse(x, -x), torch.tensor(4.0, dtype=torch.double))


def test_info_nce_of_uniform_similarities():
    loss = losses.unit(torch.ones(6, 5, dtype=torch.double))
    assert losses.info_nce(loss, loss, loss.repeat(10, 1), 0.2).item() == pytest.approx(log(61))
    q, k = loss.view(2, 3, 5), loss.repeat(2, 1).view(4, 3, 5)
    rows = slice(1, 3)
    everyone = aligned.info_nce_other_images(q, k, rows, 0.2)
    assert everyone.item() == pytest.approx(log(1 + 3 * 3))
    assert aligned.info_nce_same_index(q, k, rows, 0.2).item() == pytest.approx(log(1 + 3))


def reference_aligned(q, k, first, tau, other_images):
    """Eq. 4 by loops: negatives are the aligned embeddings of other images."""
    total = []
    for i in range(q.shape[0]):
        for a in range(q.shape[1]):
            positive = torch.exp(q[i, a] @ k[first + i, a] / tau)
            others = [
                k[j, b]
                for j in range(len(k))
                for b in range(k.shape[1])
                if j != first + i and (other_images or a == b)
            ]
            negatives = sum(torch.exp(q[i, a] @ z / tau) for z in others)
            total.append(-torch.log(positive / (positive + negatives)))
    return torch.stack(total).mean()


@pytest.mark.parametrize("chunk", [2**27, 100])
@pytest.mark.parametrize("other_images", [True, False])
def test_aligned_info_nce_is_equation_4(monkeypatch, chunk, other_images):
    monkeypatch.setattr(aligned, "LOGITS_AT_ONCE", chunk)
    torch.manual_seed(0)
    raw = torch.randn(3, 4, 5, dtype=torch.double)
    k = losses.unit(torch.randn(6, 4, 5, dtype=torch.double))
    function = aligned.info_nce_other_images if other_images else aligned.info_nce_same_index
    grads = []
    for loss in (
        lambda q: function(q, k, slice(2, 5), 0.2),
        lambda q: reference_aligned(q, k, 2, 0.2, other_images),
    ):
        leaf = raw.clone().requires_grad_()
        value = loss(losses.unit(leaf))
        value.backward()
        grads.append((value.detach(), leaf.grad))
    close(grads[0], grads[1])


def test_losses_are_computed_in_single_precision_under_autocast():
    torch.manual_seed(0)
    x, y, keys = (torch.randn(8, 64) for _ in range(3))
    outside = losses.info_nce(losses.unit(x), losses.unit(y), losses.unit(keys), 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.info_nce(losses.unit(x), losses.unit(y), losses.unit(keys), 0.2)
        assert losses.mse(x.bfloat16(), y.bfloat16()).dtype == torch.float32
        assert alignment_maps(x.bfloat16()[None]).dtype == torch.float32
    assert torch.equal(inside, outside)


def test_heads_are_the_conv1d_heads():
    torch.manual_seed(0)
    actual = mlp(6, 8, 5, TokenNorm).double()
    conv = nn.Sequential(
        nn.Conv1d(6, 8, 1, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 5, 1, bias=False),
    ).double()
    state = {k: v[..., None] if v.ndim == 2 else v for k, v in actual.state_dict().items()}
    conv.load_state_dict(state)
    x = torch.randn(3, 7, 6, dtype=torch.double)
    close(actual(x), conv(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize(
    ("init", "std"),
    [("kaiming", (2 / 512) ** 0.5), ("normal", 0.01), ("haiku", 0.0625 * 0.8796)],
)
def test_heads_start_with_the_stated_spread(init, std):
    torch.manual_seed(0)
    head = mlp(256, 512, 256, None, bias=(True, False), init=init)
    assert head[0].weight.std().item() == pytest.approx(std, rel=0.01)
    assert head[0].bias.eq(0).all() and head[2].bias is None


def test_feature_std_is_zero_when_collapsed_and_one_when_spread():
    torch.manual_seed(0)
    assert diagnostics.feature_std(torch.ones(8, 16)) < 1e-6
    assert diagnostics.feature_std(torch.randn(512, 256)).item() == pytest.approx(1, abs=0.02)
