"""The ablations of Tables 5 to 7, and the symmetric MoCo v2, in closed form."""

import json

import pytest
import torch
from tiny import Features, close, views

from lewel_bench.harness.plan.catalog import PACKAGED, ScaledCatalog
from lewel_bench.harness.plan.suites import SUITES
from lewel_bench.pretrain import methods
from lewel_bench.pretrain.ablations import ABLATIONS
from lewel_bench.pretrain.methods.lewel_ablations import AblatedLewelM, gaussian
from lewel_bench.pretrain.methods.lewel_m import LewelM
from lewel_bench.pretrain.methods.moco_v2 import MoCoV2
from lewel_bench.pretrain.methods.settings import LewelMSettings, MoCoV2Settings
from lewel_bench.pretrain.norm import TokenNorm
from lewel_bench.pretrain.recipe import Ema
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results.table import load

BASES = ("moco_v2", "moco_v2_bn_head", "lewel_m", "byol", "lewel_b")
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
    settings = LewelMSettings(d=D, hidden=9, queue=12, **args)
    class_ = AblatedLewelM if settings.is_ablation else LewelM
    return class_(settings, Wide, TokenNorm, ema=Ema(start=0.9), seed=0).double()


def moco(**args):
    torch.manual_seed(0)
    settings = MoCoV2Settings(dim=D, hidden=9, queue=24, **args)
    return MoCoV2(settings, Wide, TokenNorm, ema=Ema(start=0.9), seed=0).double()


def loss_of(method, batch, step=0):
    return method(batch, method.keys(batch, step), WHOLE)[0]


def test_uniform_maps_are_global_pooling():
    line = lewel(maps="uniform").online(views(B, 8).x[0])
    close(line.W, torch.full_like(line.W, 1 / 16))
    close(line.y_k, line.y[:, None].expand_as(line.y_k))


def test_without_maps_and_without_the_aligned_loss_it_is_moco_v2():
    actual, theirs = lewel(maps="none", beta=0.0), moco(head_norm=True)
    theirs.queue.keys = actual.queue.keys.clone()
    own = theirs.state_dict()
    theirs.load_state_dict({k: v for k, v in actual.state_dict().items() if k in own})
    batch = views(B, 8, 8)
    close(loss_of(actual, batch), loss_of(theirs, batch))
    assert actual.online(batch.x[0]).z_k.shape == (B, 1, D)


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
    line = method.online(views(B, 8).x[0])
    close(line.z_k, method.online.g(line.y_k))
    assert not any(".p." in name for name in method.state_dict())


def test_the_plain_method_makes_no_ablation():
    settings = LewelMSettings(d=D, hidden=9, queue=12, maps="random")
    with pytest.raises(ValueError, match="made by lewel_ablations"):
        LewelM(settings, Wide, TokenNorm, ema=Ema(start=0.9), seed=0)
    recipe = RECIPES["lewel_m_random_in100_240ep"]
    assert methods.method_class(recipe, methods.settings_of(recipe)) is AblatedLewelM


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
    both, entry = moco(symmetric=True), moco()
    close(loss_of(both, batch), loss_of(entry, (x1, x2)) + loss_of(entry, (x2, x1)))
    k2, k1 = both.keys(batch, 0)
    before = both.queue.keys.clone()
    both.after_step((k2, k1), 0, 10)
    assert k1.shape == k2.shape == (B, D)
    close(both.queue.keys, torch.cat([k2, k1, before[2 * B :]]))


@pytest.mark.parametrize("suite", SUITES)
def test_no_two_rows_are_one_run_at_any_scale(suite):
    """A scale must not take away what a row is there for."""
    names = [f"{family}_in100_240ep" for family in (*BASES, *ABLATIONS)]
    catalog = ScaledCatalog(PACKAGED, SUITES[suite])
    scaled = {n: catalog.recipe(n).identity() for n in names}
    keys = {name: json.dumps(value, sort_keys=True) for name, value in scaled.items()}
    assert len(set(keys.values())) == len(names), keys


# What the rows of Tables 5 to 7 are (Section 4.4), beside the paper's default of d = 128 for MoCo
# v2 and LEWEL_M, d = 256 and h = 4 for LEWEL_B.
PAPER = {
    ("5", "global"): ("moco_v2", {"dim": 128}),
    ("5", "align"): ("lewel_m", {"maps": "uncoupled", "beta": 1.0}),
    ("5", "uncoupled"): ("lewel_m", {"maps": "uncoupled", "beta": 0.5}),
    ("5", "coupled"): ("lewel_m", {"maps": "coupled", "beta": 0.5}),
    ("6", "moco_v2_d128"): ("moco_v2", {"dim": 128}),
    ("6", "moco_v2_d256"): ("moco_v2", {"dim": 256}),
    ("6", "moco_v2_d512"): ("moco_v2", {"dim": 512}),
    ("6", "moco_v2_p"): ("lewel_m", {"maps": "none", "semantic": True}),
    ("6", "lewel_m_no_p"): ("lewel_m", {"maps": "coupled", "semantic": False}),
    ("6", "lewel_m_random"): ("lewel_m", {"maps": "random", "semantic": True}),
    ("6", "lewel_m"): ("lewel_m", {"maps": "coupled", "semantic": True}),
    ("7", "byol"): ("byol", {"dim": 256}),
    ("7", "d512_h4"): ("lewel_b", {"d": 512, "h": 4}),
    ("7", "d256_h1"): ("lewel_b", {"d": 256, "h": 1}),
    ("7", "d256_h2"): ("lewel_b", {"d": 256, "h": 2}),
    ("7", "d256_h4"): ("lewel_b", {"d": 256, "h": 4}),
    ("7", "d256_h8"): ("lewel_b", {"d": 256, "h": 8}),
    ("7", "d256_h16"): ("lewel_b", {"d": 256, "h": 16}),
    ("7", "d128_h4"): ("lewel_b", {"d": 128, "h": 4}),
    ("7", "d64_h4"): ("lewel_b", {"d": 64, "h": 4}),
}


def test_a_row_has_the_settings_that_the_paper_gives_it():
    rows = {(n, row.id): row for n in "567" for row in load(n).rows}
    assert set(rows) == set(PAPER)
    for key, (method, args) in PAPER.items():
        recipe = RECIPES[f"{rows[key].recipe}_240ep"]
        config = methods.arguments(recipe)
        assert recipe.method == method and config.items() >= args.items(), key
        assert (recipe.data, recipe.epochs) == ("imagenet100", 240), key


def test_every_ablation_changes_what_it_says():
    for name, ablation in ABLATIONS.items():
        recipe, base = RECIPES[f"{name}_in100_240ep"], RECIPES[f"{ablation.of}_in100_240ep"]
        assert recipe.data == "imagenet100" and recipe.epochs == 240
        assert recipe.identity() != base.identity(), name
