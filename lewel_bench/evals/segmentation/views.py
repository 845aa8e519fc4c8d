"""What a segmenter is trained and tested on, as mmseg's pipelines make it.

The order of the random draws is mmseg's too, so that equal draws give equal pixels. Images are RGB,
mmseg's BGR. Shapes: H, W of an image, S the side of a crop.
"""

from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np

from lewel_bench.evals.segmentation.masks import VOID, Pixels

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Segmentation

cv2.setNumThreads(0)  # loader processes share the cores

CROPS = 10  # tries after the first
BRIGHTNESS = 32.0  # levels added at most
GAIN = (0.5, 1.5)  # of contrast and of saturation
HUE = 18  # of OpenCV's 180 steps, at most
_LEVELS = np.arange(256, dtype=np.float32)


class Draws(Protocol):
    """Random numbers; numpy's Generator is one."""

    def random(self) -> float:
        """In [0, 1)."""

    def integers(self, low: int, high: int) -> int | np.int64:
        """In [low, high)."""

    def uniform(self, low: float, high: float) -> float:
        """In [low, high)."""


def training_view(
    image: Pixels, labels: Pixels, protocol: "Segmentation", rng: Draws
) -> tuple[Pixels, Pixels]:
    """A crop (S, S, 3) of a resized, flipped and distorted image, and its labels (S, S).

    Where the image is smaller, pixels are 0 and labels 255 below it and to its right.
    """
    side = protocol.crop
    low, high = protocol.ratios
    ratio = rng.random() * (high - low) + low
    long, short = protocol.scale
    size = fit(image.shape[:2], (int(long * ratio), int(short * ratio)))
    image, labels = (
        _resized(image, size, cv2.INTER_LINEAR),
        _resized(labels, size, cv2.INTER_NEAREST),
    )
    top, left = _corner(labels, side, protocol.max_class_share, rng)
    image = image[top : top + side, left : left + side]
    labels = labels[top : top + side, left : left + side]
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    height, width = labels.shape
    pixels = np.zeros((side, side, 3), np.uint8)
    classes = np.full((side, side), VOID, np.uint8)
    pixels[:height, :width] = distort(np.ascontiguousarray(image), rng)
    classes[:height, :width] = labels
    return pixels, classes


def test_view(image: Pixels, protocol: "Segmentation") -> Pixels:
    """The whole image at the protocol's scale, (h, w, 3)."""
    return _resized(image, fit(image.shape[:2], protocol.scale), cv2.INTER_LINEAR)


def fit(size: tuple[int, ...], scale: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of an image of `size` (H, W) as large as its edges fit into `scale` (long, short)."""
    height, width = size
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def distort(image: Pixels, rng: Draws) -> Pixels:
    """mmseg's PhotoMetricDistortion: brightness, contrast, saturation and hue, each half of the
    time, contrast before or after the last two."""
    if rng.integers(0, 2):
        image = _mapped(image, _LEVELS + np.float32(rng.uniform(-BRIGHTNESS, BRIGHTNESS)))
    early = bool(rng.integers(0, 2))
    if early:
        image = _contrast(image, rng)
    if rng.integers(0, 2):
        gain = _LEVELS * np.float32(rng.uniform(*GAIN))
        image = _in_hsv(image, 1, gain.clip(0, 255).astype(np.uint8))
    if rng.integers(0, 2):
        turn = (np.arange(256) + int(rng.integers(-HUE, HUE))) % 180
        image = _in_hsv(image, 0, turn.astype(np.uint8))
    return image if early else _contrast(image, rng)


def _contrast(image: Pixels, rng: Draws) -> Pixels:
    if not rng.integers(0, 2):
        return image
    return _mapped(image, _LEVELS * np.float32(rng.uniform(*GAIN)))


def _mapped(image: Pixels, levels: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Pixels:
    """Each of the 256 levels replaced by one of `levels`, clipped and cut to whole numbers."""
    return np.asarray(cv2.LUT(image, levels.clip(0, 255).astype(np.uint8)), np.uint8)


def _in_hsv(image: Pixels, channel: int, table: Pixels) -> Pixels:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = table[hsv[..., channel]]
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def _corner(labels: Pixels, side: int, share: float, rng: Draws) -> tuple[int, int]:
    """Top and left of a crop in which no class fills `share` of the labelled pixels; the last of
    eleven where there is none."""
    height, width = labels.shape

    def drawn() -> tuple[int, int]:
        top = int(rng.integers(0, max(height - side, 0) + 1))
        return top, int(rng.integers(0, max(width - side, 0) + 1))

    top, left = drawn()
    if share < 1:
        for _ in range(CROPS):
            window = labels[top : top + side, left : left + side]
            counts = np.bincount(window.reshape(-1), minlength=VOID + 1)[:VOID]
            if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < share:
                break
            top, left = drawn()
    return top, left


def _resized(pixels: Pixels, size: tuple[int, int], how: int) -> Pixels:
    return np.asarray(cv2.resize(pixels, size[::-1], interpolation=how), np.uint8)
