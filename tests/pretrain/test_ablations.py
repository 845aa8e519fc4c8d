"""The ablations of Tables 5 and 6, and the symmetric MoCo v2, in closed form."""

import pytest
import torch
from tiny import Features, close, views

from lewel_bench.pretrain.ablations import ABLATIONS
from lewel_bench.pretrain.methods.lewel_m import LewelM
from lewel_bench.pretrain.methods.moco_v2 import MoCoV2
from lewel_bench.pretrain.norm import TokenNorm
from lewel_bench.pretrain.parts.aligned import gaussian
from lewel_bench.pretrain.recipe import Ema
from lewel_bench.pretrain.recipes import RECIPES

B, D = 6, 8
WHOLE = slice(0, B)


class Wide(Features):
    """Eight channels, which four groups divide."""

    channels = D

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, D, 2, 2)


def lewel(**args):
    torch.manual_seed(0)
    method = LewelM(Wide, TokenNorm, ema=Ema(start=0.9), seed=0, d=D, hidden=9, queue=12, **args)
    return method.double()


def moco(**args):
    torch.manual_seed(0)
    method = MoCoV2(Wide, TokenNorm, ema=Ema(start=0.9), seed=0, dim=D, hidden=9, queue=24, **args)
    return method.double()


def loss_of(method, batch, step=0):
    return method(batch, method.keys(batch, step), WHOLE)[0]


def test_uniform_maps_are_global_pooling():
    found = lewel(maps="uniform").online(views(B, 8).x[0])
    close(found.W, torch.full_like(found.W, 1 / 16))
    close(found.y_k, found.y[:, None].expand_as(found.y_k))


def test_without_maps_and_without_the_aligned_loss_it_is_moco_v2():
    ours, theirs = lewel(maps="none", beta=0.0), moco(head_norm=True)
    theirs.queue.keys = ours.queue.keys.clone()
    own = theirs.state_dict()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k in own})
    batch = views(B, 8, 8)
    close(loss_of(ours, batch), loss_of(theirs, batch))
    assert ours.online(batch.x[0]).z_k.shape == (B, 1, D)


def test_random_maps_are_drawn_by_image_view_and_step():
    whole = gaussian(torch.empty(B, 16, D), 0, 3, 1, 0)
    part = gaussian(torch.empty(2, 16, D), 0, 3, 1, 4)
    assert torch.equal(whole[4:], part)
    for other in ((1, 3, 1, 0), (0, 4, 1, 0), (0, 3, 0, 0), (0, 3, 1, 1)):
        assert not torch.equal(whole, gaussian(whole, *other))
    assert whole.mean().abs() < 0.2 and abs(whole.std() - 1) < 0.1
    method, batch = lewel(maps="random"), views(B, 8, 8)
    assert loss_of(method, batch, 0) == loss_of(method, batch, 0) != loss_of(method, batch, 1)


def test_without_a_semantic_projector_g_projects_the_aligned_representations():
    method = lewel(semantic=False)
    found = method.online(views(B, 8).x[0])
    close(found.z_k, method.online.g(found.y_k))
    assert not any(".p." in name for name in method.state_dict())
    with pytest.raises(ValueError, match="without a semantic projector c 4 must be d 8"):
        lewel(semantic=False, c=4)


@pytest.mark.parametrize(("beta", "g", "g_maps"), [(0.0, True, False), (1.0, False, True)])
def test_uncoupled_maps_learn_from_the_aligned_loss_alone(beta, g, g_maps):
    method = lewel(maps="uncoupled", beta=beta)
    loss_of(method, views(B, 8, 8)).backward()
    for name, learns in (("g", g), ("g_maps", g_maps)):
        gradients = [p.grad for p in getattr(method.online, name).parameters()]
        assert any(x is not None and x.abs().max() > 0 for x in gradients) is learns


def test_the_symmetric_loss_is_the_sum_of_both_directions():
    batch = views(B, 8, 8)
    x1, x2 = batch
    both, one = moco(symmetric=True), moco()
    close(loss_of(both, batch), loss_of(one, (x1, x2)) + loss_of(one, (x2, x1)))
    both.after_step(both.keys(batch, 0), 0, 10)
    k2, k1 = both.keys(batch, 0)
    assert both.queue.keys.shape == (24, D) and k1.shape == k2.shape == (B, D)


def test_every_ablation_changes_what_it_says():
    for name, one in ABLATIONS.items():
        recipe, base = RECIPES[f"{name}_in100_240ep"], RECIPES[f"{one.of}_in100_240ep"]
        assert recipe.data == "imagenet100" and recipe.epochs == 240
        assert recipe.identity() != base.identity(), name
