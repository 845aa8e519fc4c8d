"""SimCLR's loss in closed form, and against lightly's."""

from math import exp, log

import pytest
import torch
from tiny import Features, close, views

from lewel_bench.pretrain.methods.settings import SimCLRSettings
from lewel_bench.pretrain.methods.simclr import SimCLR, nt_xent
from lewel_bench.pretrain.norm import TokenNorm
from lewel_bench.pretrain.parts.losses import unit

B, DIM = 6, 5
WHOLE = slice(0, B)


def pair():
    torch.manual_seed(0)
    return (unit(torch.randn(B, DIM, dtype=torch.double)) for _ in range(2))


def test_loss_is_equation_1_written_out():
    z = torch.cat([*pair()])
    tau, total = 0.3, 0.0
    for i in range(2 * B):
        s = [exp(float(z[i] @ z[k]) / tau) for k in range(2 * B)]
        total -= log(s[(i + B) % (2 * B)] / sum(s[k] for k in range(2 * B) if k != i))
    actual = nt_xent(*z.chunk(2), WHOLE, tau)
    assert actual.item() == pytest.approx(2 * total / (2 * B), rel=1e-12)


def test_equal_embeddings_leave_the_logarithm_of_the_candidates():
    z = torch.ones(B, 1, dtype=torch.double)
    assert nt_xent(z, z, WHOLE, 0.1).item() == pytest.approx(2 * log(2 * B - 1))


def test_parts_of_a_batch_average_to_the_whole():
    z1, z2 = pair()
    parts = [nt_xent(z1, z2, slice(i, i + 2), 0.1) for i in range(0, B, 2)]
    close(torch.stack(parts).mean(), nt_xent(z1, z2, WHOLE, 0.1))


def test_loss_and_gradient_are_lightlys():
    loss = pytest.importorskip("lightly.loss")
    torch.manual_seed(0)
    method = SimCLR(SimCLRSettings(dim=DIM, hidden=9, tau=0.2), Features, TokenNorm).double()
    batch = views(B, 8, 8)
    actual, _ = method(batch, None, WHOLE)
    (our_gradient,) = torch.autograd.grad(actual, method.backbone.conv.weight)
    z1, z2 = method.online(torch.cat([*batch])).z.chunk(2)
    theirs = 2 * loss.NTXentLoss(temperature=0.2)(z1, z2)
    (their_gradient,) = torch.autograd.grad(theirs, method.backbone.conv.weight)
    close(actual, theirs, 1e-10)
    close(our_gradient, their_gradient, 1e-10)


@pytest.mark.parametrize("layers", [2, 3])
def test_projector_ends_in_a_norm_without_offset(layers):
    g = SimCLR(SimCLRSettings(dim=DIM, hidden=9, layers=layers), Features, TokenNorm).online.g
    assert [type(m).__name__ for m in g] == ["Linear", "TokenNorm", "ReLU"] * (layers - 1) + [
        "Linear",
        "TokenNorm",
    ]
    assert g[-1].weight.requires_grad and not g[-1].bias.requires_grad
    assert all(m.bias is None for m in g if isinstance(m, torch.nn.Linear))
