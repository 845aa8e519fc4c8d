"""SimSiam's loss in closed form, and against lightly's."""

import pytest
import torch
from tiny import Features, close, views

from lewel_bench.pretrain.methods.settings import SimSiamSettings
from lewel_bench.pretrain.methods.simsiam import D, SimSiam
from lewel_bench.pretrain.norm import TokenNorm

WHOLE = slice(0, 6)


def simsiam():
    torch.manual_seed(0)
    return SimSiam(SimSiamSettings(dim=8, hidden=5), Features, TokenNorm).double()


def test_equal_embeddings_have_the_least_loss():
    z = torch.randn(6, 8)
    close(D(z, 3 * z), torch.tensor(-1.0), 1e-6)
    close(D(z, -z), torch.tensor(1.0), 1e-6)


def test_no_gradient_reaches_the_embedding_that_is_predicted():
    p, z = (torch.randn(6, 8, requires_grad=True) for _ in range(2))
    D(p, z).backward()
    assert z.grad is None and p.grad is not None


def test_loss_and_gradient_are_lightlys():
    loss = pytest.importorskip("lightly.loss")
    method, batch = simsiam(), views(6, 8, 8)
    actual, _ = method(batch, None, WHOLE)
    (our_gradient,) = torch.autograd.grad(actual, method.backbone.conv.weight)
    z1, z2 = (method.online(x).z for x in batch)
    cosine = loss.NegativeCosineSimilarity()
    theirs = (cosine(method.h(z1), z2.detach()) + cosine(method.h(z2), z1.detach())) / 2
    (their_gradient,) = torch.autograd.grad(theirs, method.backbone.conv.weight)
    close(actual, theirs, 1e-10)
    close(our_gradient, their_gradient, 1e-10)


def test_outputs_are_standardised_and_the_standardisation_is_not_trained():
    method = simsiam()
    z = method.online(views(64, 8).x[0]).z
    close(z.mean(0), torch.zeros(8, dtype=torch.double), 1e-10)
    close(z.var(0, correction=0), torch.ones(8, dtype=torch.double), 1e-2)
    assert not any(p.requires_grad for p in method.online.g[-1].parameters())
