"""PreciseBN against fvcore and against the statistics of all values."""

import copy

import pytest
import torch
from torch import nn

from lewel_bench.evals.detection import precise_bn


class Branches(nn.Module):
    """Three norms, one of them reached only by large batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.BatchNorm2d(4)
        self.seldom = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.first(x)
        return self.seldom(x) if len(x) > 2 else self.second(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Branches()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [torch.randn(n, 3, 6 + n, 9) * n + n for n in (2, 1, 4, 2)]


def test_the_statistics_are_those_of_all_values(model, batches):
    model.seldom.eval()
    before = copy.deepcopy(model.seldom)
    precise_bn.measure(model, model, batches)
    conv, norm = model.first[0], model.first[1]
    values = torch.cat([conv(x).transpose(0, 1).flatten(1) for x in batches], dim=1)
    torch.testing.assert_close(norm.running_mean, values.mean(1))
    torch.testing.assert_close(norm.running_var, values.var(1, correction=0))
    assert norm.momentum == 0.1 and not norm._forward_pre_hooks
    assert torch.equal(model.seldom.running_mean, before.running_mean)  # it was in eval mode


class Shared(nn.BatchNorm2d):
    """As SyncBatchNorm: over the values of two ranks, of which this process has its own."""

    def forward(self, x):
        return super().forward(torch.cat([x, self.others]))[: len(x)]


def test_a_batch_counts_with_the_values_of_all_ranks(monkeypatch):
    torch.manual_seed(0)
    norm = Shared(4)
    pairs = [(torch.randn(1, 4, 5, 5), torch.randn(4, 4, 5, 5) + 1), 2 * [torch.ones(3, 4, 5, 5)]]

    def forward(pair):
        own, norm.others = pair
        norm(own)

    def total(counts):
        return counts + 25 * len(norm.others)

    monkeypatch.setattr(precise_bn.distributed, "total", total)
    precise_bn.measure(norm, forward, pairs)
    values = torch.cat([part for pair in pairs for part in pair]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, values.mean(1))
    torch.testing.assert_close(norm.running_var, values.var(1, correction=0))


def test_a_layer_that_no_batch_reaches_keeps_its_statistics(model, batches):
    model.seldom.running_mean.fill_(7)
    precise_bn.measure(model, model, [x for x in batches if len(x) <= 2])
    assert model.seldom.running_mean.eq(7).all() and model.seldom.running_var.eq(1).all()


def test_parameters_and_gradients_are_left_alone(model, batches):
    before = {name: p.clone() for name, p in model.named_parameters()}
    precise_bn.measure(model, model, batches)
    for name, p in model.named_parameters():
        assert p.grad is None and torch.equal(p, before[name])


def test_equals_fvcore(model, batches):
    fvcore = pytest.importorskip("fvcore.nn.precise_bn")
    theirs = copy.deepcopy(model)
    fvcore.update_bn_stats(theirs, batches, len(batches))
    precise_bn.measure(model, model, batches)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), buffer, rtol=1e-6, atol=1e-6)
