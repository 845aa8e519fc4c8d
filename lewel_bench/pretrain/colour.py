"""Colour operations on batches of views, in the 8-bit arithmetic of Pillow.

Every operation takes and returns whole levels 0..255 in float32 and floors where Pillow stores a
byte, so a batch equals the per-sample PIL transform (`augment.reference`) to a few levels. Shapes:
B views, b of them, S pixels a side; parameters are rows of `augment.draw`.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lewel_bench.pretrain import blur

# Columns of the parameters. A factor of 1 (a hue or sigma of 0) leaves the view as it is.
FLIP, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA, TAPS, SOLARIZE = range(10)
BOX = slice(10, 14)  # top, left, height, width of the crop as shares of the image; not a colour
PARAMS = 14
# ORDER indexes this tuple, whose entries are columns; it is -1 where there is no jitter.
ORDERS = tuple(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in all recipes
_GROUP = 2**19  # floats of the views that a CPU takes through the chain at once, within its cache

Params = np.ndarray[Any, np.dtype[np.float32]]
Op = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def distort(
    pixels: Tensor, params: Tensor, device: torch.device, *, compile: bool = False
) -> Tensor:
    """Normalised views (B, 3, S, S) float32, channels_last, on `device`, from crops `pixels`
    uint8 (B, S, S, 3) and `params` float32 (B, PARAMS), both on the host.

    Nothing is read back from the device. On a CPU each operation touches only the views that it
    applies to; elsewhere all operations run masked, as one graph with `compile`.
    """
    assert pixels.dtype == torch.uint8 and params.device.type == "cpu"
    if device.type == "cpu":
        return _indexed(pixels, params)
    return masked(pixels, params, device, compile=compile)


@torch.no_grad()
def normalise(pixels: Tensor, device: torch.device) -> Tensor:
    """Images uint8 (B, S, S, 3) as ImageNet-normalised float32 (B, 3, S, S), channels_last."""
    x = _send(pixels, device).permute(0, 3, 1, 2).float()
    return _normalised(x, _moments(device)).contiguous(memory_format=torch.channels_last)


# On a CPU: views that share an order of operations go through the chain together.


def _indexed(pixels: Tensor, params: Tensor) -> Tensor:
    count, size = pixels.shape[:2]
    out = torch.empty(count, 3, size, size).contiguous(memory_format=torch.channels_last)
    for rows in _groups(params[:, ORDER].numpy(), max(1, _GROUP // (3 * size * size))):
        x = pixels[rows].permute(0, 3, 1, 2).contiguous().float()  # (b, 3, S, S)
        out[rows] = _normalised(_chain(x, params[rows]), _moments(x.device))
    return out


def _groups(order: Params, most: int) -> Iterator[Tensor]:
    """Indices of views of the same order of jitter, at most `most` together."""
    for code in np.unique(order):
        rows = torch.from_numpy(np.flatnonzero(order == code))
        yield from (rows[first : first + most] for first in range(0, len(rows), most))


def _chain(x: Tensor, params: Tensor) -> Tensor:
    order = int(params[0, ORDER])
    for op in ORDERS[order] if order >= 0 else ():
        column = params[:, op]
        x = _where(x, column != (0.0 if op == HUE else 1.0), _JITTER[op], column)
    x = _where(x, params[:, GREY] > 0, lambda x, _: _grey(x).repeat(1, 3, 1, 1), params)
    kernel = _kernel(params)
    if kernel:
        sigma = params[:, SIGMA]
        x = _where(x, sigma > 0, lambda x, sigma: _blur(x, sigma, kernel), sigma)
    x = _where(x, params[:, SOLARIZE] > 0, lambda x, _: _solarize(x), params)
    return _where(x, params[:, FLIP] > 0, lambda x, _: x.flip(-1), params)


def _where(x: Tensor, on: Tensor, op: Op, values: Tensor) -> Tensor:
    """`x` with `op(x, values)` in its rows that are `on`, at the cost of those rows."""
    at = on.nonzero()[:, 0]
    if len(at) == len(x):
        return op(x, values)
    if len(at):
        x[at] = op(x[at], values[at])
    return x


# On an accelerator: every operation on every view, selected by masks, so that the host never waits.


def masked(
    pixels: Tensor, params: Tensor, device: torch.device, *, compile: bool = False
) -> Tensor:
    """`distort` by masks instead of indices; all tensors that steer it are made on the host."""
    steps = _send(_steps(params), device)
    program = _compiled_program() if compile else _program
    with torch.autocast(device.type, enabled=False):
        out: Tensor = program(
            _send(pixels, device),
            steps,
            _send(params, device),
            _moments(device),
            _kernel(params),
            bool((params[:, SOLARIZE] > 0).any()),
        )
    return out


@functools.cache
def _compiled_program() -> Callable[..., Tensor]:
    return torch.compile(_program, fullgraph=True, dynamic=False)


def _steps(params: Tensor) -> Tensor:
    """The jitter's four operations of each view in their order: (B, 4, 2) of column and value."""
    table = torch.tensor([(BRIGHTNESS, 1.0)]).repeat(len(params), 4, 1)  # changes nothing
    for order in _kinds(params[:, ORDER]):
        rows = params[:, ORDER] == order
        for step, op in enumerate(ORDERS[order] if order >= 0 else ()):
            value = params[rows, op]
            table[rows, step, 0] = op
            table[rows, step, 1] = value
            if op == HUE:
                table[rows, step, 0] = torch.where(value != 0, HUE, BRIGHTNESS).float()
                table[rows, step, 1] = torch.where(value != 0, _shift(value), 1.0)
    return table


def _program(
    pixels: Tensor,
    steps: Tensor,
    params: Tensor,
    moments: tuple[Tensor, Tensor],
    kernel: tuple[int, int] | None,
    solarize: bool,
) -> Tensor:
    x = pixels.permute(0, 3, 1, 2).float()  # (B, 3, S, S)
    wide = params[:, :, None, None, None]  # (B, PARAMS, 1, 1, 1)
    for op, value in (
        (s[:, 0, None, None, None], s[:, 1, None, None, None]) for s in steps.unbind(1)
    ):
        grey = _grey(x)
        other = torch.where(op == CONTRAST, _mean(grey), torch.where(op == SATURATION, grey, 0.0))
        x = torch.where(op == HUE, _turn(x, value[:, 0]), _blend(other, x, value))
    x = torch.where(wide[:, GREY] > 0, _grey(x), x)
    if kernel:
        x = _blur(x, params[:, SIGMA], kernel)
    if solarize:
        x = torch.where(wide[:, SOLARIZE] > 0, _solarize(x), x)
    x = torch.where(wide[:, FLIP] > 0, x.flip(-1), x)
    return _normalised(x, moments).contiguous(memory_format=torch.channels_last)


# The operations, each on x (b, 3, S, S) of whole levels.


def _blend(other: Tensor | float, x: Tensor, factor: Tensor) -> Tensor:
    """Pillow's `Image.blend(other, x, factor)`."""
    return ((x - other) * factor + other).clamp_(0, 255).floor_()


def _grey(x: Tensor) -> Tensor:  # (b, 1, S, S)
    """Pillow's mode L, whose weights are 16-bit fixed point; sums stay below 2^24: exact."""
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) * 2**-16).floor()


def _mean(grey: Tensor) -> Tensor:  # (b, 1, 1, 1)
    """The mean level, half rounded up, in integers: float32 is exact only for a row's sum."""
    count = grey.shape[-1] * grey.shape[-2]
    total = grey.sum(-1).to(torch.int64).sum(-1)
    return torch.div(2 * total + count, 2 * count, rounding_mode="floor").float()[..., None, None]


def _shift(hue: Tensor) -> Tensor:
    """Hue in turns as torchvision adds it to Pillow's byte: truncated, then modulo 256."""
    return (hue.double() * 255).trunc().remainder(256).float()


def _turn(x: Tensor, shift: Tensor) -> Tensor:
    """`x` through Pillow's 8-bit HSV with `shift` (b, 1, 1) added to the hue modulo 256.

    Quotients of integers below 2^24 are floored exactly. Pillow's own rounding is one lower for
    0.3 % of all colours, and differs for 7 of the 2^24 colours on the way back.
    """
    red, green, blue = x.unbind(1)  # (b, S, S)
    top = torch.maximum(red, torch.maximum(green, blue))
    span = top - torch.minimum(red, torch.minimum(green, blue))
    turn = torch.where(
        red == top,
        green - blue,
        torch.where(green == top, blue - red + 2 * span, red - green + 4 * span),
    )
    turn = torch.where(turn < 0, turn + 6 * span, turn)  # six spans are a full turn
    hue = (turn * 42.5 / span.clamp(min=1)).floor() + shift
    hue = torch.where(hue >= 256, hue - 256, hue) * (6 / 255)
    depth = top * (span * 255 / top.clamp(min=1)).floor() / 255
    top = top + 0.5
    return torch.stack(
        (
            top - depth * (2 - (hue - 3).abs()).clamp(0, 1),
            top - depth * ((hue - 2).abs() - 1).clamp(0, 1),
            top - depth * ((hue - 4).abs() - 1).clamp(0, 1),
        ),
        dim=1,
    ).floor()


def _solarize(x: Tensor) -> Tensor:
    return torch.where(x < 128, x, 255 - x)


def _kernel(params: Tensor) -> tuple[int, int] | None:
    """The taps of a true Gaussian (0: Pillow's blur) and the reach of Pillow's passes; None where
    no view is blurred. The views of one call share the kind of their blur."""
    blurred = params[params[:, SIGMA] > 0]
    if not len(blurred):
        return None
    taps = _kinds(blurred[:, TAPS])
    assert len(taps) == 1, "views of several kinds of blur in one batch"
    # a reach of 2 serves every sigma below 2.4: one program for all batches
    return taps[0], max(2, blur.box_reach(float(blurred[:, SIGMA].max())))


def _blur(x: Tensor, sigma: Tensor, kernel: tuple[int, int]) -> Tensor:
    taps, reach = kernel
    return blur.gaussian(x, sigma, taps) if taps else blur.pillow(x, sigma, reach)


def _normalised(x: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
    mean, std = moments
    return (x - 255 * mean) / (255 * std)


@functools.cache
def _moments(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std (3, 1, 1); sent once, as sending a host tensor waits for the device."""
    mean, std = (torch.tensor(values).to(device)[:, None, None] for values in (MEAN, STD))
    return mean, std


def _kinds(column: Tensor) -> list[int]:
    return [int(value) for value in np.unique(column.numpy())]


def _send(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=True)


def _wide(op: Op) -> Op:
    return lambda x, value: op(x, value[:, None, None, None])


_JITTER: dict[int, Op] = {
    BRIGHTNESS: _wide(lambda x, factor: _blend(0.0, x, factor)),
    CONTRAST: _wide(lambda x, factor: _blend(_mean(_grey(x)), x, factor)),
    SATURATION: _wide(lambda x, factor: _blend(_grey(x), x, factor)),
    HUE: _wide(lambda x, hue: _turn(x, _shift(hue[:, 0]))),
}
