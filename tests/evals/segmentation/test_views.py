"""Crops, padding and colours by their definitions; test_parity.py has mmseg's word on them."""

import numpy as np
import pytest

from lewel_bench.evals.segmentation import views
from lewel_bench.pretrain.recipe import change
from tests.evals.segmentation.making import TINY, picture


class Fixed:
    """Draws that do nothing to the colours: the ratio's, then crops', then the flip."""

    def __init__(self, ratio: float, flip: bool, crops: tuple[int, ...] = (0, 0)) -> None:
        self.numbers, self.crops = iter([ratio, 0.1 if flip else 0.9]), list(crops)
        self.bounds: list[int] = []

    def random(self) -> float:
        return next(self.numbers)

    def integers(self, low: int, high: int) -> int:
        if self.crops:
            self.bounds.append(high)
            return self.crops.pop(0)
        return 0

    def uniform(self, low: float, high: float) -> float:
        raise AssertionError("no colour is changed")


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((375, 500), (2048, 512), (512, 683)),
        ((500, 375), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((7, 7), (2048, 512), (512, 512)),
    ],
)
def test_fit(size, scale, expected) -> None:
    assert views.fit(size, scale) == expected


def test_small_images_are_padded_and_flipped_before() -> None:
    image = np.full((20, 40, 3), 50, np.uint8)
    image[:, :20] = 200
    labels = (image[..., 0] > 100).astype(np.uint8)
    protocol = change(TINY, {"scale": (40, 20), "ratios": (1.0, 1.0), "max_class_share": 1.0})
    pixels, classes = views.training_view(image, labels, protocol, Fixed(0.0, flip=True))
    assert pixels.shape == (48, 48, 3) and classes.shape == (48, 48)
    assert np.array_equal(pixels[:20, :40], image[:, ::-1])
    assert not pixels[20:].any() and not pixels[:, 40:].any()
    assert np.array_equal(classes[:20, :40], labels[:, ::-1])
    assert (classes[20:] == 255).all() and (classes[:, 40:] == 255).all()


def test_crops_avoid_one_class() -> None:
    """The first corner shows one class, the second both."""
    image = np.zeros((60, 60, 3), np.uint8)
    labels = np.zeros((60, 60), np.uint8)
    labels[:, 40:] = 1
    settings = {"scale": (60, 60), "ratios": (1.0, 1.0), "crop": 30}
    draws = Fixed(0.0, flip=False, crops=(4, 0, 7, 24))
    _, classes = views.training_view(image, labels, change(TINY, settings), draws)
    assert draws.bounds == [31, 31, 31, 31]
    assert classes[:, :16].max() == 0 and classes[:, 16:].min() == 1
    settings["max_class_share"] = 1.0
    draws = Fixed(0.0, flip=False, crops=(4, 0))
    assert not views.training_view(image, labels, change(TINY, settings), draws)[1].any()


def test_views_depend_on_the_draws_alone() -> None:
    image, labels = picture(np.random.default_rng(3))
    made = [
        views.training_view(image, labels, TINY, np.random.default_rng(seed)) for seed in (0, 0, 1)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(made[0], made[1], strict=True))
    assert not np.array_equal(made[0][0], made[2][0])


def test_colours_keep_grey_grey() -> None:
    """Saturation and hue leave grey pixels; brightness and contrast move all three alike."""
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    for seed in range(20):
        out = views.distort(grey, np.random.default_rng(seed))
        assert (out == out[..., :1]).all()
        assert (np.diff(out[:, 0, 0].astype(int)) >= 0).all()
