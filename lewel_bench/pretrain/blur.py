"""Gaussian blur of square images as Pillow and torchvision define it, in batches.

Pillow's GaussianBlur is three box blurs of fractional radius along rows, then three along columns,
each rounded to bytes: six passes of a few taps, which cost no more than products with an S x S
matrix and are exact but for ties. A true Gaussian has many taps, so rows and columns are one matrix
product each. Shapes: B images, S pixels a side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pillow(x: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """`PIL.ImageFilter.GaussianBlur(sigma)` of whole levels `x` (B, 3, S, S), edges repeated.

    sigma (B,) is in pixels; 0 leaves an image as it is. `reach` is `box_reach(largest sigma)`.
    """
    radius = box_radius(sigma)[:, None, None, None]
    whole = radius.floor()
    inner = 1 / (2 * radius + 1)
    outer = (1 - (2 * whole + 1) * inner) / 2  # of the two pixels that the box covers in part
    weights = [
        torch.where(whole >= distance, inner, torch.where(whole + 1 == distance, outer, 0.0))
        for distance in range(reach + 1)
    ]  # each (B, 1, 1, 1)
    for dim in (-1, -1, -1, -2, -2, -2):
        x = _pass(x, weights, dim)
    return x


def gaussian(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """`x` (B, 3, S, S) under a Gaussian of an odd number of `taps`, edges reflected, rounded once:
    torchvision's `gaussian_blur`. sigma (B,) in pixels; 0 leaves an image as it is."""
    matrix = _gaussian_matrix(sigma, taps, x.shape[-1])[:, None]  # (B, 1, S, S)
    return (matrix @ (x @ matrix.mT)).round_()


def box_radius(sigma: Tensor) -> Tensor:
    """The fractional radius of the box whose third convolution has variance sigma² (Gwosdek et
    al. 2011, eq. 7, 11, 14; Pillow's BoxBlur.c)."""
    variance = sigma * sigma / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) ** 2))


def box_reach(sigma: float) -> int:
    """How far one of Pillow's passes looks for `sigma`: whole pixels of the box and one in part."""
    return int(box_radius(torch.tensor(sigma, dtype=torch.float64))) + 1


def _pass(x: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    reach, size = len(weights) - 1, x.shape[dim]
    edges = [reach, reach, 0, 0] if dim == -1 else [0, 0, reach, reach]
    padded = F.pad(x, edges, mode="replicate")
    total = x * weights[0] + 0.5
    for distance in range(1, reach + 1):
        before = padded.narrow(dim, reach - distance, size)
        after = padded.narrow(dim, reach + distance, size)
        total = total.add_((before + after).mul_(weights[distance]))
    return total.floor_()


def _gaussian_matrix(sigma: Tensor, taps: int, size: int) -> Tensor:
    reach = taps // 2
    if reach >= size:
        raise ValueError(f"a blur of {taps} taps needs images above {reach} px, not {size} px")
    offset = torch.arange(-reach, reach + 1, device=sigma.device)  # (taps,)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (B, taps)
    kernel = kernel / kernel.sum(1, keepdim=True)
    position = (torch.arange(size, device=sigma.device)[:, None] + offset).abs()  # (S, taps)
    position = size - 1 - (size - 1 - position).abs()
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    shape = len(sigma), size, taps
    return matrix.scatter_add(2, position.expand(shape), kernel[:, None].expand(shape))
