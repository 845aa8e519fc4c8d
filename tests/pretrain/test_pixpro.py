"""PixPro's pieces in closed form, and all of it against the authors' code (zdaxie/PixPro)."""

import re
from types import SimpleNamespace

import official
import pytest
import torch
from torch import nn

from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.methods.pixpro import PixPro, consistency, propagate
from lewel_bench.pretrain.methods.settings import PixProSettings
from lewel_bench.pretrain.norm import TokenNorm
from lewel_bench.pretrain.parts.regions import corners, near
from lewel_bench.pretrain.recipe import Ema

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.double)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_each_pixel_of_the_same_crop_is_near_itself_alone():
    assert torch.equal(near(WHOLE, WHOLE, (7, 7), 0.7)[0], torch.eye(49) > 0)
    # at 1.01 diagonals the eight around it are near too: 9 in the middle, 4 in a corner
    around = near(WHOLE, WHOLE, (7, 7), 1.01)[0].sum(1).view(7, 7)
    assert around[3, 3] == 9 and around[0, 0] == 4 and around[0, 3] == 6


def test_a_flipped_crop_is_near_its_mirror_image():
    mirrored = WHOLE[:, [2, 1, 0, 3]]
    A = near(WHOLE, mirrored, (2, 3), 0.1)[0]
    assert A.nonzero().tolist() == [[0, 2], [1, 1], [2, 0], [3, 5], [4, 4], [5, 3]]


def test_the_larger_cell_says_what_is_near():
    half = torch.tensor([[0.0, 0.0, 0.5, 0.5]], dtype=torch.double)
    A = near(half, WHOLE, (2, 2), 0.7)[0]
    # the cells of the half are at 1/8 and 3/8; the whole's first is at 1/4, of diagonal .7
    assert A.tolist() == [[True] + [False] * 3, *[[True, *row] for row in A[1:, 1:].tolist()]]
    far = torch.tensor([[0.9, 0.9, 1.0, 1.0]], dtype=torch.double)
    assert not near(half, far, (2, 2), 0.7).any()
    assert torch.equal(near(half, WHOLE, (2, 2), 0.7)[0], near(WHOLE, half, (2, 2), 0.7)[0].T)


def test_propagation_averages_what_is_alike():
    actual, other = torch.eye(4, dtype=torch.double)[:2]
    x = torch.stack([actual, actual, other, -actual])[None]
    g = torch.randn(1, 4, 5, dtype=torch.double)
    unit = nn.functional.normalize(g, dim=2)
    y = propagate(x, g, 2.0)
    close(y[0, 0], unit[0, 0] + unit[0, 1])  # neither the orthogonal nor the opposite
    close(y[0, 2], unit[0, 2])
    half = torch.stack([actual, actual + 3**0.5 * other])[None]  # a cosine of 1/2
    close(propagate(half, g[:, :2], 2.0)[0, 0], unit[0, 0] + unit[0, 1] / 4)


def test_consistency_is_zero_for_equal_pixels_and_four_for_opposite_ones():
    x = torch.randn(3, 9, 5, dtype=torch.double)
    A = near(WHOLE, WHOLE, (3, 3), 0.7).expand(3, 9, 9)
    close(consistency(2 * x, x, A), torch.tensor(0.0, dtype=torch.double))
    close(consistency(x, -x, A), torch.tensor(4.0, dtype=torch.double))
    actual = A & (torch.arange(3) > 0)[:, None, None]  # the first image shares nothing
    close(consistency(x, -x, actual), torch.tensor(8 / 3, dtype=torch.double))


class Features(nn.Module):
    """In place of a ResNet: a convolution to 7 x 7 features."""

    channels = 2048

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2048, 2, 2)

    def forward(self, x):
        return self.conv(x)


RULES = [
    (r"^encoder_k\.", "target.network.backbone."),
    (r"^projector_k\.", "target.network.g."),
    (r"^projector_instance_k\.", "target.network.g_instance."),
    (r"^encoder\.", "online.backbone."),
    (r"^projector\.", "online.g."),
    (r"^projector_instance\.", "online.g_instance."),
    (r"^predictor\.", "q."),
    (r"^value_transform\.", "transform."),
    (r"\.linear1\.", ".0."),
    (r"\.bn1\.", ".1."),
    (r"\.linear2\.", ".3."),
]


def our_name(name):
    for pattern, rule in RULES:
        name = re.sub(pattern, rule, name)
    return name


def batch():
    boxes = 0.3 + 0.2 * official.noise("boxes", 2, 4, 4)  # top, left, height, width
    flips = torch.tensor([[False, True, False, True], [False, False, True, True]])
    nothing = torch.zeros(4, dtype=torch.long)
    pair = tuple(official.noise(f"x{v}", 4, 3, 14, 14) for v in (1, 2))
    return Views(pair, nothing, nothing, boxes, flips)


def one_step(alpha):
    """Our method with weights by formula, its loss, and the share of images with near pixels."""
    method = (
        PixPro(PixProSettings(alpha=alpha), Features, TokenNorm, ema=Ema(start=0.8))
        .double()
        .train()
    )
    with torch.no_grad():
        for name, p in method.named_parameters():
            p.copy_(official.formula(name.replace("target.network", "online"), p.shape))
    views = batch()
    loss, _ = method(views, None, slice(0, 4))
    loss.backward()
    A = near(*corners(views), (7, 7), 0.7)
    return method, loss.item(), A.any(2).any(1).double().mean().item()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_loss_and_gradients_equal_the_authors_code(alpha):
    if official.folder("pixpro") is None:
        pytest.skip(f"no official code: ${official.VARIABLE}/pixpro is absent")
    (module,) = official.load("pixpro", "contrast.models.PixPro")
    settings = SimpleNamespace(
        pixpro_p=2.0, pixpro_momentum=0.8, pixpro_pos_ratio=0.7, pixpro_clamp_value=0.0,
        pixpro_transform_layer=1, pixpro_ins_loss_weight=alpha, num_instances=100, batch_size=4,
        epochs=1, start_epoch=1, feature_dim=256, head_type="early_return",
    )  # fmt: skip
    method, loss, shared = one_step(alpha)
    with official.on_cpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.SyncBatchNorm, "convert_sync_batchnorm", lambda module: module)
        theirs = module.PixPro(lambda **_: Features(), settings).double().train()
        own = method.state_dict()
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                if not name.endswith("linear1.bias"):
                    p.copy_(own[our_name(name)].view_as(p))
        views = batch()
        expected = theirs(*views, *corners(views))
    expected.backward()
    # 2 - 2 cos here, -2 cos there
    assert loss == pytest.approx(expected.item() + 4 * shared + 4 * alpha, rel=1e-6)
    gradients = {our_name(k): p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    actual = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    largest = max(grad.abs().max() for grad in gradients.values()).item()
    without = [gradients.pop(k) for k in list(gradients) if k not in actual]
    assert len(without) == (3 if alpha else 1)  # biases before a batch norm, which cancels them
    assert all(grad.abs().max() < 1e-9 * largest for grad in without)
    assert actual.keys() == gradients.keys()
    for name, grad in actual.items():
        close(grad / largest, gradients[name].view_as(grad) / largest, 1e-6)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, -0.0171164473), (1.0, 0.0581426770)])
def test_golden_loss_of_the_authors_code(alpha, expected):
    _, loss, shared = one_step(alpha)
    assert loss - 4 * shared - 4 * alpha == pytest.approx(expected, abs=1e-6)
