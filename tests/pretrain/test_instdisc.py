"""InstDisc's loss and memory bank in closed form, and against CMC's code."""

import dataclasses
from math import exp, log

import official
import pytest
import torch
from tiny import Features
from torch import nn

from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.methods.instdisc import InstDisc, nce
from lewel_bench.pretrain.methods.settings import InstDiscSettings
from lewel_bench.pretrain.norm import TokenNorm

B, N, M, DIM = 4, 10, 6, 5


def instdisc(**args):
    torch.manual_seed(0)
    method = InstDisc(InstDiscSettings(dim=DIM, m=M, **args), Features, TokenNorm, seed=0, images=N)
    return method.double().train()


def batch(seed=0):
    x = official.noise(f"x{seed}", B, 3, 6, 6)
    nothing = torch.zeros(1, B)
    index = torch.tensor([7, 0, 3, 9])
    return Views((x,), index, index, nothing[..., None].expand(1, B, 4), nothing > 0)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_loss_is_equation_7_written_out():
    torch.manual_seed(0)
    similarity = torch.rand(3, 1 + M, dtype=torch.double)
    tau, Z = 0.3, 40.0
    expected = 0.0
    for row in similarity.tolist():
        P = [exp(s / tau) / Z for s in row]
        expected -= log(P[0] / (P[0] + M / N))
        expected -= sum(log(1 - p / (p + M / N)) for p in P[1:])
    actual = nce(similarity, torch.tensor(log(Z)), tau, N)
    assert actual.item() == pytest.approx(expected / 3, rel=1e-6)


def test_the_normaliser_is_that_of_the_first_batch():
    method, views = instdisc(), batch()
    with torch.no_grad():
        method.V.fill_(0.0)
    method.keys(views, 0)
    assert method.log_Z.item() == pytest.approx(log(N))  # all similarities are 0
    method.keys(dataclasses.replace(views, x=batch(1).x), 1)
    assert method.log_Z.item() == pytest.approx(log(N))
    assert method.online.backbone.conv.weight.grad is None


def test_noise_is_drawn_from_seed_and_step_alone():
    draws = [instdisc().keys(batch(), step).at for step in (3, 4, 3)]
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0][:, 0], batch().index)
    assert draws[0].shape == (B, 1 + M) and draws[0].min() >= 0 and draws[0].max() < N


def test_the_bank_remembers_half_of_what_it_knew():
    method, views = instdisc(), batch()
    before = method.V.clone()
    keys = method.keys(views, 0)
    method(views, keys, slice(0, B))
    method.after_step(keys, 0, 10)
    v = nn.functional.normalize(method.online(views.x[0]).z, dim=1)
    mixed = nn.functional.normalize(0.5 * before[views.index] + 0.5 * v, dim=1)
    close(method.V[views.index], mixed)
    others = [i for i in range(N) if i not in views.index]
    assert torch.equal(method.V[others], before[others])
    assert 0.5 < before.norm(dim=1).mean() < 1.5


def test_loss_and_bank_equal_the_code_of_cmc():
    if official.folder("cmc") is None:
        pytest.skip(f"no official code: ${official.VARIABLE}/cmc is absent")
    average, criterion = official.load("cmc", "NCE.NCEAverage", "NCE.NCECriterion")
    method, views = instdisc(), batch()
    bank = method.V.clone()
    keys = method.keys(views, 0)
    loss, _ = method(views, keys, slice(0, B))
    loss.backward()
    actual = {k: p.grad.clone() for k, p in method.named_parameters()}
    method.zero_grad()
    with official.on_cpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(average.AliasMethod, "cuda", lambda self: None)
        memory = average.MemoryInsDis(DIM, N, M).double()
    memory.memory.copy_(bank)
    v = nn.functional.normalize(method.online(views.x[0]).z, dim=1)
    P = memory(v, views.index, keys.at)
    assert method.log_Z.exp().item() == pytest.approx(memory.params[2].item(), rel=1e-6)
    expected = criterion.NCECriterion(N)(P).squeeze()  # it adds 1e-7 to each denominator
    expected.backward()
    close(loss, expected, 1e-6)
    for name, p in method.named_parameters():
        close(actual[name], p.grad, 1e-6 * p.grad.abs().max().item())
    method.after_step(keys, 0, 10)
    close(method.V, memory.memory, 1e-6)
