"""Crop boxes, crops and parameters against torchvision and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photos import drawn
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as V

from lewel_bench.pretrain import augment, colour
from lewel_bench.pretrain.augment import Box, center, crop, draw, train_crop
from lewel_bench.pretrain.views import AUGMENTS, ViewSpec

MOCO = AUGMENTS["moco_v2"][0]


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


def params(spec: ViewSpec, count: int, size: int = 64) -> np.ndarray:
    return np.stack([draw(spec, 100, 100, size, rng(seed))[1] for seed in range(count)])


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), seed=st.integers(0, 2**63))
def test_a_box_lies_inside_any_image(height: int, width: int, seed: int) -> None:
    box, _ = draw(AUGMENTS["byol_paper"][0], height, width, 224, rng(seed))
    assert box.height >= 1 and box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 64), (40, 400)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0)])
def test_boxes_are_distributed_as_torchvision_draws_them(
    shape: tuple[int, int], scale: tuple[float, float]
) -> None:
    spec = MOCO.model_copy(update={"scale": scale})
    count = 4000
    actual = np.array([draw(spec, *shape, 64, rng(seed))[0] for seed in range(count)])
    image = torch.zeros(3, *shape)
    torch.manual_seed(0)
    theirs = np.array(
        [T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    )
    # two-sample Kolmogorov-Smirnov, at p = 1e-4 for each of the four coordinates
    limit = math.sqrt(-math.log(1e-4 / 2) / count)
    for a, b in zip(actual.T, theirs.T, strict=True):
        grid = np.unique(np.concatenate([a, b]))
        cdf = [np.searchsorted(np.sort(v), grid, side="right") / count for v in (a, b)]
        assert np.abs(cdf[0] - cdf[1]).max() < limit


def test_an_image_too_narrow_for_the_ratio_gets_torchvisions_central_box() -> None:
    spec = MOCO.model_copy(update={"scale": (1.0, 1.0)})
    for height, width in [(10, 400), (400, 10)]:
        box, _ = draw(spec, height, width, 64, rng(0))
        image = torch.zeros(3, height, width)
        assert box == T.RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])


def test_parameters_have_the_probabilities_and_ranges_of_the_recipe() -> None:
    rows = params(AUGMENTS["byol_eman"][1], 20_000)
    jittered = rows[:, colour.ORDER] >= 0
    for share, chance in [
        (jittered, 0.8),
        (rows[:, colour.GREY] > 0, 0.2),
        (rows[:, colour.SIGMA] > 0, 0.1),
        (rows[:, colour.SOLARIZE] > 0, 0.2),
        (rows[:, colour.FLIP] > 0, 0.5),
    ]:
        assert abs(share.mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / len(rows))
    assert np.array_equal(rows[~jittered, 2:6], np.tile([1, 1, 1, 0], ((~jittered).sum(), 1)))
    for column, low, high in [
        (colour.BRIGHTNESS, 0.6, 1.4),
        (colour.CONTRAST, 0.6, 1.4),
        (colour.SATURATION, 0.8, 1.2),
        (colour.HUE, -0.1, 0.1),
    ]:
        values = rows[jittered, column]
        assert low <= values.min() < low + 1e-2 * (high - low)
        assert high >= values.max() > high - 1e-2 * (high - low)
        # the mean of a uniform value, within 4 standard errors
        error = (high - low) / math.sqrt(12 * len(values))
        assert abs(values.mean() - (low + high) / 2) < 4 * error
    orders = np.bincount(rows[jittered, colour.ORDER].astype(int), minlength=24)
    assert orders.min() > 0.8 * orders.mean() and len(orders) == 24
    sigma = rows[rows[:, colour.SIGMA] > 0, colour.SIGMA]
    assert 0.1 <= sigma.min() < 0.15 and 1.95 < sigma.max() <= 2.0


def test_recipes_differ_where_their_sources_do() -> None:
    assert (params(AUGMENTS["byol_paper"][0], 200)[:, colour.SIGMA] > 0).all()
    assert not params(AUGMENTS["byol_paper"][0], 200)[:, colour.SOLARIZE].any()
    assert not params(AUGMENTS["byol_eman_no_blur"][0], 200)[:, colour.SIGMA].any()
    spec = AUGMENTS["byol_paper"][0]
    assert [spec.taps(size) for size in (224, 64, 32)] == [23, 7, 3]
    assert MOCO.taps(224) == 0


def test_each_view_takes_the_same_number_of_draws() -> None:
    # so that the second view's parameters do not depend on how the first one's came out
    for spec in (MOCO, AUGMENTS["byol_paper"][0]):
        for shape in [(100, 100), (10, 900)]:
            entry = rng(7)
            draw(spec, *shape, 64, entry)
            other = rng(7)
            other.random(augment._DRAWS)
            assert entry.random() == other.random()


@pytest.mark.parametrize("box", [Box(13, 20, 200, 170), Box(0, 0, 20, 31), Box(100, 3, 64, 64)])
def test_a_crop_is_pillows_within_a_level(box: Box) -> None:
    image = drawn(260, 310, 0)
    out = torch.empty(64, 64, 3, dtype=torch.uint8)
    crop(image, box, 64, "bilinear", out)
    want = V.resized_crop(Image.fromarray(image), *box, [64, 64], V.InterpolationMode.BILINEAR)
    difference = np.abs(out.numpy().astype(int) - np.array(want))
    assert difference.max() <= 1
    assert difference.mean() <= 0.06


def test_a_bicubic_crop_is_pillows_but_for_the_clipping_between_its_passes() -> None:
    image = drawn(260, 310, 0)
    out = torch.empty(64, 64, 3, dtype=torch.uint8)
    box = Box(13, 20, 200, 170)
    crop(image, box, 64, "bicubic", out)
    want = V.resized_crop(Image.fromarray(image), *box, [64, 64], V.InterpolationMode.BICUBIC)
    difference = np.abs(out.numpy().astype(int) - np.array(want))
    assert difference.max() <= 16
    assert difference.mean() <= 0.06


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_private_operator_equals_interpolate(
    interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = drawn(90, 120, 1)
    slot = torch.zeros(2, 3, 64, 64, 3, dtype=torch.uint8)
    for box in (Box(0, 0, 90, 120), Box(5, 9, 40, 33), Box(1, 1, 64, 64), Box(8, 8, 1, 1)):
        crop(image, box, 64, interpolation, slot[1, 2])
        direct = slot.clone()
        slot.zero_()
        with monkeypatch.context() as patch:
            patch.setattr(augment, "_RESIZERS", {"bilinear": None, "bicubic": None})
            crop(image, box, 64, interpolation, slot[1, 2])
        assert torch.equal(direct, slot)
        assert not direct[0].any() and not direct[1, :2].any()


@pytest.mark.parametrize("shape", [(300, 400), (401, 257), (64, 64), (40, 41)])
def test_the_centre_crop_is_torchvisions(shape: tuple[int, int]) -> None:
    image = drawn(*shape, 2)
    out = torch.empty(56, 56, 3, dtype=torch.uint8)
    center(image, 64, 56, out)
    want = T.Compose([T.Resize(64), T.CenterCrop(56)])(Image.fromarray(image))
    difference = np.abs(out.numpy().astype(int) - np.array(want))
    assert difference.max() <= 1
    assert difference.mean() <= 0.06


def test_a_centre_crop_larger_than_the_resized_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="224 px does not fit into images resized to 200"):
        center(drawn(300, 300, 0), 200, 224, torch.empty(224, 224, 3, dtype=torch.uint8))


def test_a_training_crop_flips_every_second_image() -> None:
    ramp = np.tile(np.arange(0, 250, dtype=np.uint8)[None, :, None], (100, 1, 3))
    out = torch.empty(32, 32, 3, dtype=torch.uint8)
    rising = 0
    for seed in range(400):
        train_crop(ramp, 32, (0.5, 1.0), rng(seed), out)
        row = out[5, :, 0].int()
        assert (row.diff() > 0).all() or (row.diff() < 0).all()
        rising += int(row[-1] > row[0])
    assert abs(rising - 200) < 4 * 10  # four standard deviations
