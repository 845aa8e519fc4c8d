"""SwAV's codes and loss in closed form, and against lightly's."""

from dataclasses import replace

import pytest
import torch
from tiny import Features, close, views
from torch.nn.functional import normalize

from lewel_bench.pretrain.methods.settings import SwAVSettings
from lewel_bench.pretrain.methods.swav import SwAV, sinkhorn, swapped
from lewel_bench.pretrain.norm import TokenNorm
from lewel_bench.pretrain.parts.losses import unit

B, DIM, K = 6, 5, 4
WHOLE = slice(0, B)


def swav(**args):
    torch.manual_seed(0)
    return SwAV(SwAVSettings(dim=DIM, hidden=9, prototypes=K, **args), Features, TokenNorm).double()


def test_codes_share_the_images_among_the_prototypes():
    torch.manual_seed(0)
    q = sinkhorn(torch.randn(32, K, dtype=torch.double), 0.3, 100)
    close(q.sum(1), torch.ones(32, dtype=torch.double))
    close(q.sum(0), torch.full((K,), 32 / K, dtype=torch.double), 1e-6)
    uniform = sinkhorn(torch.ones(8, K), 0.05, 3)
    close(uniform, torch.full((8, K), 1 / K))


def test_a_small_epsilon_does_not_overflow():
    q = sinkhorn(torch.randn(8, K).clamp(-1, 1), 0.002, 3)
    assert q.isfinite().all()
    close(q.sum(1), torch.ones(8), 1e-6)


def test_a_right_and_sure_prediction_costs_nothing():
    q = torch.eye(K)
    assert swapped(q, 100 * q, 0.1) < 1e-6
    assert swapped(q, torch.zeros(K, K), 0.1).item() == pytest.approx(torch.tensor(K).log().item())


@pytest.mark.parametrize("sides", [(8, 8), (8, 8, 4, 4, 4)])
@pytest.mark.parametrize("queue", [0, 7])
def test_loss_and_gradient_are_lightlys(sides, queue):
    loss = pytest.importorskip("lightly.loss")
    method, batch = swav(queue=queue, queue_from=0), views(B, *sides)
    actual, _ = method(batch, method.keys(batch, 0), WHOLE)
    (our_gradient,) = torch.autograd.grad(actual, method.backbone.conv.weight)
    whole, small = (torch.cat([x for x in batch if x.shape[-1] == s] or [batch.x[0][:0]])
                    for s in (8, 4))  # fmt: skip
    y = torch.cat([method.f(x).mean((2, 3)) for x in (whole, small)])
    scores = method.C(unit(method.g(y))).chunk(len(sides))
    old = [method.C(z).detach() for z in method.queue.keys.chunk(2, 1)] if queue else None
    theirs = loss.SwaVLoss()(list(scores[:2]), list(scores[2:]), old).squeeze()
    (their_gradient,) = torch.autograd.grad(theirs, method.backbone.conv.weight)
    close(actual, theirs, 1e-10)
    close(our_gradient, their_gradient, 1e-9)


def test_prototypes_are_unit_vectors_and_stand_still_at_first():
    method = swav(frozen=1, queue=12)
    start = method.C.weight.detach().clone()
    close(start, normalize(start, dim=1), 1e-6)  # made in single precision
    for epoch in (0, 1):
        batch = views(B, 8, 8, epoch=epoch)
        keys = method.keys(batch, epoch)
        loss, _ = method(batch, keys, WHOLE)
        loss.backward()
        method.after_backward(keys)
        assert (method.C.weight.grad is None) is (epoch == 0)
        with torch.no_grad():
            for p in method.parameters():
                p -= 0 if p.grad is None else p.grad
        method.after_step(keys, epoch, 10)
        close(method.C.weight, normalize(method.C.weight, dim=1))
        if epoch == 0:
            close(method.C.weight, start, 1e-6)
    assert (method.C.weight - start).abs().max() > 1e-3


def test_queue_joins_from_its_epoch_on():
    method = swav(queue=12, queue_from=2)
    batch = views(B, 8, 8)
    epochs = [replace(batch, epoch=epoch) for epoch in range(3)]
    actual = [method(b, method.keys(b, 0), WHOLE)[0].item() for b in epochs]
    assert actual[0] == actual[1] != actual[2]


def test_queue_holds_the_last_embeddings_of_both_views():
    method, batch = swav(queue=12), views(B, 8, 8)
    for step in range(3):
        keys = method.keys(batch, step)
        method(batch, keys, WHOLE)
        method.after_step(keys, step, 10)
    assert method.queue.keys.shape == (12, 2 * DIM)
    close(method.queue.keys[:B], torch.cat(keys.z, 1))
