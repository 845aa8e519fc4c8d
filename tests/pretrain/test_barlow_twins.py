"""Barlow Twins' loss in closed form, and against lightly's."""

import pytest
import torch
from tiny import Features, close, views
from torch import nn

from lewel_bench.pretrain.methods.barlow_twins import BarlowTwins, redundancy
from lewel_bench.pretrain.methods.settings import BarlowTwinsSettings
from lewel_bench.pretrain.norm import TokenNorm

B, LAM = 16, 0.0051


def test_equal_and_uncorrelated_embeddings_have_no_loss():
    z = torch.linalg.qr(torch.randn(B, 4, dtype=torch.double))[0] * B**0.5
    close(redundancy(z, z, LAM), torch.zeros((), dtype=torch.double))
    # fully redundant: all d(d - 1) other correlations are 1
    entry = z[:, :1].expand(-1, 4)
    close(redundancy(entry, entry, LAM), torch.tensor(LAM * 4 * 3, dtype=torch.double))
    # opposite: each of the d terms of invariance is 2²
    close(redundancy(z, -z, 0.0), torch.tensor(16.0, dtype=torch.double))


def test_loss_and_gradient_are_lightlys():
    loss = pytest.importorskip("lightly.loss")
    torch.manual_seed(0)
    method = BarlowTwins(
        BarlowTwinsSettings(dim=12, hidden=9, lam=LAM), Features, TokenNorm
    ).double()
    batch = views(B, 8, 8)
    actual, _ = method(batch, None, slice(0, B))
    (our_gradient,) = torch.autograd.grad(actual, method.backbone.conv.weight)
    *layers, _ = method.online.g  # lightly's loss has the closing norm
    z = (nn.Sequential(*layers)(method.online(x).y) for x in batch)
    theirs = loss.BarlowTwinsLoss(lambda_param=LAM)(*z)
    (their_gradient,) = torch.autograd.grad(theirs, method.backbone.conv.weight)
    close(actual, theirs, 1e-10)
    close(our_gradient, their_gradient, 1e-9)
