"""The random parameters and crops of an image, and the per-sample transform to test them against.

A view is a crop box, cut and resized on the host (`crop`), and a row of parameters for the colour
operations, which run on whole batches on the device (`colour.distort`). Shapes: H, W of the decoded
image, S pixels a side of the view.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lewel_bench.pretrain import colour
from lewel_bench.pretrain.colour import MEAN, PARAMS, STD, distort, normalise
from lewel_bench.pretrain.views import Span, ViewSpec

__all__ = [
    "MEAN", "PARAMS", "STD", "Box", "center", "crop", "distort", "draw", "normalise", "reference",
    "train_crop",
]  # fmt: skip

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_TRIES = 10  # of RandomResizedCrop, as torchvision
_CROP_DRAWS = 4 * _TRIES
_DRAWS = _CROP_DRAWS + 11  # of one view; a fixed number, so that views are drawn independently


class Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int


def draw(
    spec: ViewSpec,
    height: int,
    width: int,
    size: int,
    rng: np.random.Generator,
    first: colour.Params | None = None,
) -> tuple[Box, colour.Params]:
    """The crop box and the parameters (PARAMS,) of one view of `size` pixels.

    Takes a fixed number of draws from `rng`. The distributions are torchvision's
    RandomResizedCrop, ColorJitter, RandomApply and RandomGrayscale. `first` are the parameters of
    the image's first view, for a view that copies its flip.
    """
    numbers: list[float] = rng.random(_DRAWS).tolist()
    jitter, order, *strengths, grey, blur, sigma, solarize, flip = numbers[_CROP_DRAWS:]
    row = [0.0, -1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    if spec.flip == "first":
        assert first is not None, "the first view cannot be flipped as the first"
        row[colour.FLIP] = first[colour.FLIP]
    else:
        row[colour.FLIP] = float(flip < spec.flip)
    if jitter < spec.jitter:
        row[colour.ORDER] = float(int(order * len(colour.ORDERS)))
        b, c, s, h = (2 * u - 1 for u in strengths)  # in ±1
        row[colour.BRIGHTNESS] = max(0.0, 1 + spec.brightness * b)
        row[colour.CONTRAST] = max(0.0, 1 + spec.contrast * c)
        row[colour.SATURATION] = max(0.0, 1 + spec.saturation * s)
        row[colour.HUE] = spec.hue * h
    row[colour.GREY] = float(grey < spec.grey)
    if blur < spec.blur:
        low, high = spec.blur_sigma
        row[colour.SIGMA] = low + (high - low) * sigma
        row[colour.TAPS] = spec.taps(size)
    row[colour.SOLARIZE] = float(solarize < spec.solarize)
    box = _random_box(height, width, spec.scale, spec.ratio, numbers)
    row[colour.BOX] = [
        box.top / height,
        box.left / width,
        box.height / height,
        box.width / width,
    ]
    return box, np.array(row, dtype=np.float32)


def train_crop(
    image: Pixels, size: int, scale: Span, rng: np.random.Generator, out: Tensor
) -> None:
    """RandomResizedCrop(size, scale) and a flip of `image` written into `out` (S, S, 3), for
    training on frozen features and fine-tuning."""
    numbers: list[float] = rng.random(_CROP_DRAWS + 1).tolist()
    box = _random_box(image.shape[0], image.shape[1], scale, (3 / 4, 4 / 3), numbers)
    crop(image, box, size, "bilinear", out)
    if numbers[-1] < 0.5:
        out.copy_(out.flip(1))


def center(image: Pixels, resize: int, size: int, out: Tensor) -> None:
    """The shorter side resized to `resize`, then the centre of `size`, written into `out`
    (S, S, 3): torchvision's Resize and CenterCrop."""
    if size > resize:
        raise ValueError(f"a centre crop of {size} px does not fit into images resized to {resize}")
    height, width = image.shape[:2]
    if height <= width:
        shape = (resize, int(resize * width / height))
    else:
        shape = (int(resize * height / width), resize)
    whole = torch.empty(*shape, 3, dtype=torch.uint8)
    _resize(image, shape, "bilinear", whole)
    top, left = (round((side - size) / 2) for side in shape)
    out.copy_(whole[top : top + size, left : left + size])


def crop(image: Pixels, box: Box, size: int, interpolation: str, out: Tensor) -> None:
    """The `box` of `image` (H, W, 3), resized with antialiasing, written into `out` (S, S, 3)
    uint8: torchvision's resized_crop of a PIL image, within one level."""
    top, left, height, width = box
    _resize(image[top : top + height, left : left + width], (size, size), interpolation, out)


def reference(image: Image.Image, box: Box, params: Tensor, spec: ViewSpec, size: int) -> Tensor:
    """One view (3, S, S) by Pillow and torchvision: what `crop` and `distort` are tested against.

    `image` is RGB; `params` is the row that `draw` returned with `box`.
    """
    from PIL import ImageFilter, ImageOps
    from torchvision.transforms import functional as V

    row = params.tolist()
    resample = V.InterpolationMode(spec.interpolation)
    image = V.resized_crop(image, *box, [size, size], resample)
    jitter = {
        colour.BRIGHTNESS: V.adjust_brightness,
        colour.CONTRAST: V.adjust_contrast,
        colour.SATURATION: V.adjust_saturation,
        colour.HUE: V.adjust_hue,
    }
    for op in colour.ORDERS[int(row[colour.ORDER])] if row[colour.ORDER] >= 0 else ():
        if row[op] != (op != colour.HUE):
            image = jitter[op](image, row[op])
    if row[colour.GREY]:
        image = V.to_grayscale(image, 3)
    if row[colour.SIGMA] and row[colour.TAPS]:
        image = V.gaussian_blur(image, [int(row[colour.TAPS])] * 2, [row[colour.SIGMA]] * 2)
    elif row[colour.SIGMA]:
        image = image.filter(ImageFilter.GaussianBlur(row[colour.SIGMA]))
    if row[colour.SOLARIZE]:
        image = ImageOps.solarize(image, 128)
    if row[colour.FLIP]:
        image = V.hflip(image)
    view: Tensor = V.normalize(V.to_tensor(image), MEAN, STD)
    return view


def _random_box(height: int, width: int, scale: Span, ratio: Span, numbers: list[float]) -> Box:
    """torchvision's RandomResizedCrop.get_params from the first uniform `numbers`."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for first in range(0, _CROP_DRAWS, 4):
        u_area, u_ratio, u_top, u_left = numbers[first : first + 4]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
        aspect = math.exp(low + (high - low) * u_ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def _find_resizers() -> dict[str, Any]:
    """The private operators that write into a given tensor: one copy less than `interpolate`."""
    values = {}
    for name in ("bilinear", "bicubic"):
        packet = getattr(torch.ops.aten, f"_upsample_{name}2d_aa", None)
        values[name] = getattr(packet, "out", None)
    return values


_RESIZERS = _find_resizers()


def _resize(image: Pixels, shape: tuple[int, int], interpolation: str, out: Tensor) -> None:
    source = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1, 3, h, w), channels_last
    target = out.permute(2, 0, 1)[None]
    resizer = _RESIZERS[interpolation]
    if resizer is not None:
        resizer(source, list(shape), False, None, None, out=target)
    else:
        target.copy_(F.interpolate(source, shape, mode=interpolation, antialias=True))
