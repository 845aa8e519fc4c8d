"""DenseCL's pieces in closed form, and its loss against lightly's."""

import pytest
import torch
from torch import nn

from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.methods.densecl import DenseCL, corresponding
from lewel_bench.pretrain.methods.moco_v2 import MoCoV2
from lewel_bench.pretrain.methods.settings import DenseCLSettings, MoCoV2Settings
from lewel_bench.pretrain.norm import TokenNorm
from lewel_bench.pretrain.parts.losses import unit
from lewel_bench.pretrain.recipe import Ema

B, P, D = 4, 9, 12


class Features(nn.Module):
    """In place of a ResNet: a convolution to 3 x 3 features."""

    channels = D

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, D, 2, 2)

    def forward(self, x):
        return self.conv(x)


def densecl(**args):
    torch.manual_seed(0)
    settings = {"dim": 5, "hidden": 7, "queue": 16, **args}
    return (
        DenseCL(DenseCLSettings(**settings), Features, TokenNorm, ema=Ema(start=0.9), seed=0)
        .double()
        .train()
    )


def batch():
    torch.manual_seed(1)
    nothing = torch.zeros(2, B)
    pair = tuple(torch.randn(B, 3, 6, 6, dtype=torch.double) for _ in range(2))
    return Views(pair, nothing[0], nothing[0], nothing[..., None].expand(2, B, 4), nothing > 0)


def step(method):
    views = batch()
    keys = method.keys(views, 0)
    loss, shown = method(views, keys, slice(0, B))
    return loss, shown, keys


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_each_position_gets_the_key_of_the_most_similar_features():
    torch.manual_seed(0)
    F, t = torch.randn(B, P, D), torch.randn(B, P, 5)
    order = torch.stack([torch.randperm(P) for _ in range(B)])
    mixed = F.gather(1, order[..., None].expand(-1, -1, D))
    scaled = mixed * torch.rand(B, P, 1)  # lengths do not count
    actual = corresponding(F, scaled, t.gather(1, order[..., None].expand(-1, -1, 5)))
    assert torch.equal(actual, t)


def test_without_the_dense_loss_it_is_moco_v2():
    dense = densecl(lam=0.0)
    moco = MoCoV2(
        MoCoV2Settings(dim=5, hidden=7, queue=16), Features, TokenNorm, ema=Ema(start=0.9), seed=0
    )
    moco = moco.double().train()
    own = dense.state_dict()
    moco.load_state_dict({name: own[name] for name in moco.state_dict()})
    close(step(dense)[0], step(moco)[0])
    loss, shown, _ = step(densecl(lam=0.3))
    close(loss, 0.7 * step(dense)[0].detach() + 0.3 * shown["dense_loss"])


def test_the_dense_queue_gets_the_means_of_dense_keys():
    method = densecl()
    *_, keys = step(method)
    method.after_step(keys, 0, 10)
    _, t, _ = method.target(batch().x[1])
    close(method.queue_dense.keys[:B], nn.functional.normalize(t.mean(1), dim=1), 1e-7)
    assert torch.equal(method.queue.keys[:B], keys.k)


def test_the_dense_loss_equals_lightlys():
    utils = pytest.importorskip("lightly.models.utils")
    from lightly.loss import NTXentLoss

    method = densecl(lam=1.0)
    loss, *_ = step(method)
    loss.backward()
    actual = {k: p.grad.clone() for k, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    x1, x2 = batch().x
    _, r, F = method.online(x1)
    _, t, F_key = method.target(x2)
    matched = utils.select_most_similar(F, F_key, t.expand(-1, -1, 5))
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(16, 5))
    criterion.memory_bank.bank = method.queue_dense.keys.clone()
    expected = criterion(unit(r).flatten(0, 1), unit(matched).flatten(0, 1))
    expected.backward()
    close(loss, expected, 1e-10)
    for name, p in method.named_parameters():
        if p.grad is not None and name in actual:
            close(actual[name], p.grad, 1e-10)
