"""Batch norm over groups of images: against torch's on every group, and over processes."""

import pytest
import ranks
import torch
from torch import nn

from lewel_bench.pretrain.norm import BatchNorm, RunningStatistics, TokenNorm


def images(n=8):
    torch.manual_seed(0)
    return torch.randn(n, 5, 3, 4, dtype=torch.double) * 2 + 1


def tokens(n=8):
    torch.manual_seed(1)
    return torch.randn(n, 6, 5, dtype=torch.double) - 3


def affine(norm):
    torch.manual_seed(2)
    norm.double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def tensor_test(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_group_of_the_whole_batch_is_torch_batch_norm():
    x, actual, theirs = images(), affine(BatchNorm(5)), affine(nn.BatchNorm2d(5))
    tensor_test(actual(x), theirs(x))
    assert actual.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        tensor_test(actual.state_dict()[key], value)


def test_groups_are_separate_batch_norms():
    x = images()
    actual, theirs = affine(BatchNorm(5, group=2)), [affine(nn.BatchNorm2d(5)) for _ in range(4)]
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = actual(x1), torch.cat([bn(p) for bn, p in zip(theirs, x2.chunk(4), strict=True)])
    tensor_test(y, expected)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    tensor_test(x1.grad, x2.grad)
    tensor_test(actual.weight.grad, sum(bn.weight.grad for bn in theirs))
    for name in ("running_mean", "running_var"):
        tensor_test(getattr(actual, name), torch.stack([getattr(b, name) for b in theirs]).mean(0))
    assert actual.num_batches_tracked == 1


def test_tokens_are_batch_norm_1d_with_channels_last():
    x, actual, theirs = tokens(), affine(TokenNorm(5, group=4)), affine(nn.BatchNorm1d(5))
    expected = torch.cat([theirs(p.transpose(1, 2)).transpose(1, 2) for p in x.chunk(2)])
    tensor_test(actual(x), expected)
    flat = affine(TokenNorm(5))
    tensor_test(flat(x[:, 0]), affine(nn.BatchNorm1d(5))(x[:, 0]))


def test_evaluation_uses_running_statistics():
    x, actual = images(), affine(BatchNorm(5, group=2))
    actual(x)
    actual.eval()
    before = actual.running_mean.clone()
    expected = (x - before.view(1, -1, 1, 1)) / (actual.running_var + 1e-5).sqrt().view(1, -1, 1, 1)
    tensor_test(
        actual(x), expected * actual.weight.view(1, -1, 1, 1) + actual.bias.view(1, -1, 1, 1)
    )
    tensor_test(actual.running_mean, before)


@pytest.mark.parametrize("group", [3, 16])
def test_a_group_that_does_not_fit_is_named(group):
    with pytest.raises(ValueError, match=f"groups of {group} images does not fit 8 images"):
        BatchNorm(5, group)(images().float())


def test_running_statistics_do_not_depend_on_micro_batches():
    x1, x2 = images(), images() ** 2
    whole, split = nn.Sequential(affine(BatchNorm(5, 2))), nn.Sequential(affine(BatchNorm(5, 2)))
    whole(x1), whole(x2)
    running = RunningStatistics(split)
    running.start()
    for rows in (slice(0, 2), slice(2, 8)):
        split(x1[rows]), split(x2[rows])
        running.add((rows.stop - rows.start) / 8)
    running.finish()
    for key, value in whole.state_dict().items():
        tensor_test(split.state_dict()[key], value)


CASES = {"whole": (BatchNorm, None), "pair": (BatchNorm, 4), "tokens": (TokenNorm, None)}


def measure(kind, group, x):
    norm = affine(kind(5, group))
    x = x.clone().requires_grad_()
    y = norm(x)
    (y**3).sum().backward()  # separable over images: ranks compute their part of the same loss
    return {
        "y": y.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }


def on_rank(rank, world):
    actual = {}
    for name, (kind, group) in CASES.items():
        x = tokens() if kind is TokenNorm else images()
        actual[name] = measure(kind, group, x.chunk(world)[rank])
    with pytest.raises(ValueError, match="does not fit"):
        BatchNorm(5, group=3)(images().chunk(world)[rank].float())
    return actual


def test_processes_that_share_statistics_equal_one():
    processes = ranks.run(on_rank, 4)  # "whole" spans all of them, "pair" two of four
    for name, (kind, group) in CASES.items():
        entry = measure(kind, group, tokens() if kind is TokenNorm else images())
        many = [r[name] for r in processes]
        for key in ("y", "x"):
            tensor_test(torch.cat([m[key] for m in many]), entry[key])
        for key in ("weight", "bias"):
            tensor_test(sum(m[key] for m in many), entry[key])
        for key in ("mean", "var"):
            tensor_test(torch.stack([m[key] for m in many]).mean(0), entry[key])
