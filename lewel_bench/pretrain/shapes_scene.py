"""A textured scene with objects: its pixels, and the object that is visible at each of them.

A class is an outline together with a surface texture of about its own scale. Size, tilt, colours
and contrast are drawn for each object, background, light and colour cast for each image, all
independently of the class, so that a mean colour, a pixel or a fixed filter says little about it.
What two crops of one image share is, more than anything else, the class: that is why pre-training
learns it within a few hundred steps. With objects rotated by any angle, with backgrounds of as much
contrast as the objects, or with colour casts, exposures and noise that identify an image, a small
network learns those instead in that time, with most seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.floating[Any]]
Rng = np.random.Generator
SUPERSAMPLE = 3  # outlines are drawn this much larger and averaged down


class Shape(NamedTuple):
    """An object to draw: class index, centre and radius in pixels, and the instance it is part of
    (from 1; several shapes of one instance are a crowd)."""

    kind: int
    y: float
    x: float
    radius: float
    instance: int


@dataclass(frozen=True)
class Scene:
    """`pixels` (H, W, 3) uint8; `instances` (H, W) uint8: 0 or the instance seen there; for each
    instance its area in pixels had nothing covered it (`inside`) nor the frame cut it (`whole`)."""

    pixels: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    inside: dict[int, int]
    whole: dict[int, int]


def draw(shapes: Sequence[Shape], height: int, width: int, rng: Rng) -> Scene:
    """The scene with `shapes` painted one after the other: later ones cover earlier ones."""
    image = _background(height, width, rng)
    instances = np.zeros((height, width), np.uint8)
    inside: dict[int, int] = {}
    whole: dict[int, int] = {}
    for shape in shapes:
        alpha, top, left = _silhouette(shape, rng)
        rows = slice(max(top, 0), min(top + len(alpha), height))
        columns = slice(max(left, 0), min(left + len(alpha), width))
        cut = alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        whole[shape.instance] = whole.get(shape.instance, 0) + int((alpha > 0.5).sum())
        inside[shape.instance] = inside.get(shape.instance, 0) + int((cut > 0.5).sum())
        surface = _surface(shape, rows, columns, rng)
        image[rows, columns] += cut[..., None] * (surface - image[rows, columns])
        instances[rows, columns][cut > 0.5] = shape.instance
    return Scene(_photograph(image, rng), instances, inside, whole)


def spread(count: int, height: int, width: int, rng: Rng, tries: int = 6) -> Array:
    """(count, 2) centres, each the one of `tries` random points farthest from those before."""
    points = rng.uniform(0.04, 0.96, (count, tries, 2)) * (height, width)
    chosen = points[:1, 0]
    for candidates in points[1:]:
        distance = np.hypot(*(candidates[:, None] - chosen[None]).transpose(2, 0, 1)).min(1)
        chosen = np.vstack([chosen, candidates[distance.argmax()]])
    return chosen.astype(np.float32)


# Outlines: polygons of radius about 1 around the origin, as (N, 2) x, y.


def _polar(radius: Callable[[Array], Array], count: int = 48) -> Array:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False, dtype=np.float32)
    return np.stack([radius(angle) * np.cos(angle), radius(angle) * np.sin(angle)], 1)


def _points(*numbers: float) -> Array:
    return np.array(numbers, np.float32).reshape(-1, 2)


def _star() -> Array:
    angle = np.arange(10, dtype=np.float32) * np.float32(np.pi / 5)
    radius = np.where(np.arange(10) % 2, 0.48, 1.08).astype(np.float32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _ring() -> Array:
    circle = _polar(np.ones_like)
    closed = np.vstack([circle, circle[:1]])
    return np.vstack([closed, 0.45 * closed[::-1]])  # outwards round, then back round the hole


def _crescent() -> Array:
    outer = np.linspace(0.9, 2 * np.pi - 0.9, 32, dtype=np.float32)
    inner = np.linspace(2 * np.pi - 1.45, 1.45, 24, dtype=np.float32)
    first = np.stack([np.cos(outer), np.sin(outer)], 1)
    second = np.stack([0.5 + 0.79 * np.cos(inner), 0.79 * np.sin(inner)], 1)
    return np.vstack([first, second])


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False, dtype=np.float32)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16, y / 16], 1)


def _leaf() -> Array:
    x = np.linspace(-1.15, 1.15, 24, dtype=np.float32)
    y = 0.6 * (1 - (x / 1.15) ** 2)
    return np.vstack([np.stack([x, y], 1), np.stack([x, -y], 1)[-2:0:-1]])


OUTLINES: dict[str, Array] = {
    "arrow": _points(0, -1.1, 0.85, -0.05, 0.4, -0.05, 0.4, 1, -0.4, 1, -0.4, -0.05, -0.85, -0.05),
    "bolt": _points(
        0.3, -1.1, -0.75, 0.15, -0.1, 0.2, -0.35, 1.1, 0.8, -0.25, 0.12, -0.3, 0.75, -1
    ),
    "crescent": _crescent(),
    "cross": _points(
        *(-0.38, -1, 0.38, -1, 0.38, -0.38, 1, -0.38, 1, 0.38, 0.38, 0.38),
        *(0.38, 1, -0.38, 1, -0.38, 0.38, -1, 0.38, -1, -0.38, -0.38, -0.38),
    ),
    "flower": _polar(lambda angle: 0.78 + 0.27 * np.cos(5 * angle)),
    "gear": _polar(lambda angle: np.where(np.sin(9 * angle) > 0, 1.0, 0.72), 108),
    "heart": _heart(),
    "hourglass": _points(-0.8, -1, 0.8, -1, 0.22, 0, 0.8, 1, -0.8, 1, -0.22, 0),
    "leaf": _leaf(),
    "ring": _ring(),
    "star": _star(),
    "triangle": _points(0, -1.1, 1, 0.75, -1, 0.75),
}
CLASSES = tuple(OUTLINES)


# Textures: coordinates in periods -> 0..1 with soft edges.


def _soft(x: Array, sharpness: float = 3.0) -> Array:
    soft: Array = np.clip(0.5 + sharpness * x, 0, 1)
    return soft


def _wave(x: Array) -> Array:
    wave: Array = np.cos(2 * np.pi * x)
    return wave


def _zigzag(u: Array, v: Array) -> Array:
    return _soft(_wave(v + 0.9 * np.abs(u - np.round(u))), 1.5)


def _dots(u: Array, v: Array) -> Array:
    return _soft(0.3 - np.hypot(u - np.round(u), v - np.round(v)), 6)


def _bricks(u: Array, v: Array) -> Array:
    u = 0.5 * u + 0.5 * (np.floor(v) % 2)
    return _soft(np.minimum(2 * np.abs(u - np.round(u)), np.abs(v - np.round(v))) - 0.14, 6)


def _scales(u: Array, v: Array) -> Array:
    u = u + 0.5 * (np.floor(v) % 2)
    return np.clip(1.15 * np.hypot(u - np.round(u), v - np.floor(v)) ** 2, 0, 1)


def _honeycomb(u: Array, v: Array) -> Array:
    third = 0.75**0.5
    return _soft(_wave(u) + _wave(0.5 * u + third * v) + _wave(0.5 * u - third * v), 0.7)


def _mosaic(u: Array, v: Array) -> Array:
    # a hash of the cell's row and column, as shaders make one
    cell: Array = np.sin(np.floor(1.6 * u) * 12.9898 + np.floor(1.6 * v) * 78.233) * 437.585
    return cell - np.floor(cell)


# For each class the period in pixels, and the pattern.
TEXTURES: dict[str, tuple[float, Callable[[Array, Array], Array]]] = {
    "arrow": (10.0, _bricks),
    "bolt": (7.6, _zigzag),
    "crescent": (7.2, _scales),
    "cross": (10.8, _dots),
    "flower": (6.4, _honeycomb),
    "gear": (5.6, lambda u, v: _soft(_wave(np.hypot(u, v)), 1.5)),
    "heart": (8.8, lambda u, v: _soft(_wave(v + 0.3 * np.sin(2 * np.pi * 0.6 * u)), 1.5)),
    "hourglass": (6.4, lambda u, v: _soft(_wave(u) * _wave(v), 2.5)),
    "leaf": (8.0, lambda u, v: _soft(_wave(5 * np.arctan2(v, u) / (2 * np.pi)), 2)),
    "ring": (9.6, _mosaic),
    "star": (5.2, lambda u, v: _soft(_wave(u), 1.5)),
    "triangle": (6.0, lambda u, v: _soft(np.maximum(_wave(u), _wave(v)) - 0.7, 3)),
}
TILT = 0.35  # radians to either side, of outlines and of textures


def _silhouette(shape: Shape, rng: Rng) -> tuple[Array, int, int]:
    """(alpha (S, S) in 0..1, top, left) of the rotated, slightly squeezed outline."""
    angle, squeeze = rng.uniform(-TILT, TILT), rng.uniform(0.75, 1.0)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]]) * [[1], [squeeze]]
    side = int(np.ceil(2.4 * shape.radius))
    top, left = int(np.floor(shape.y - side / 2)), int(np.floor(shape.x - side / 2))
    points = OUTLINES[CLASSES[shape.kind]] @ turn * shape.radius + (shape.x - left, shape.y - top)
    mask = Image.new("L", (side * SUPERSAMPLE, side * SUPERSAMPLE))
    ImageDraw.Draw(mask).polygon([*(points * SUPERSAMPLE).ravel().tolist()], fill=255)
    return np.asarray(mask.reduce(SUPERSAMPLE), np.float32) / 255, top, left


def _surface(shape: Shape, rows: slice, columns: slice, rng: Rng) -> Array:
    """The textured, shaded surface of a shape over a window of the image: (h, w, 3)."""
    typical, texture = TEXTURES[CLASSES[shape.kind]]
    angle, period = rng.uniform(-TILT, TILT), typical * rng.uniform(0.87, 1.13)
    y = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - shape.y) / period
    x = (np.arange(columns.start, columns.stop, dtype=np.float32)[None] - shape.x) / period
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    value = texture(c * x + s * y, c * y - s * x)
    low, high = _two_colours(rng, contrast=rng.uniform(0.55, 0.85))
    shade = 1 + np.float32(rng.uniform(-0.3, 0.3) * period / shape.radius) * (c * y - s * x)
    return (low + value[..., None] * (high - low)) * shade[..., None]


def _two_colours(rng: Rng, contrast: float) -> tuple[Array, Array]:
    """A dark and a light colour whose mean levels differ by `contrast`."""
    dark = rng.uniform(0.05, 0.95 - contrast)
    tint = rng.normal(0, 0.08, (2, 3))
    pair = np.array([[dark], [dark + contrast]]) + tint - tint.mean(1, keepdims=True)
    pair = np.clip(pair, 0, 1).astype(np.float32)
    return pair[0], pair[1]


def _cloud(height: int, width: int, cell: float, rng: Rng) -> Array:
    """Smooth noise in 0..1 with blobs of about `cell` pixels: (H, W)."""
    small = rng.random((int(height / cell) + 2, int(width / cell) + 2), np.float32)
    large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(large)


def _background(height: int, width: int, rng: Rng) -> Array:
    """Regions cut by two waving lines, each clouds of its own colours and coarseness."""
    image = np.empty((height, width, 3), np.float32)
    side = (_cloud(height, width, 40, rng) > 0.5) + 2 * (_cloud(height, width, 40, rng) > 0.5)
    for region in range(4):
        pair = _two_colours(rng, contrast=rng.uniform(0.03, 0.12))
        low, high = (0.5 + 0.4 * (colour - 0.5) for colour in pair)  # near grey, in every image
        value = _cloud(height, width, float(np.exp(rng.uniform(1.5, 3.2))), rng)
        where = side == region
        image[where] = low + value[where][:, None] * (high - low)
    return image


def _photograph(image: Array, rng: Rng) -> NDArray[np.uint8]:
    """The scene under a light from one side, with colour cast, contrast and sensor noise."""
    height, width, _ = image.shape
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.25)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    light = 1 + np.float32(slope) * (np.float32(np.sin(angle)) * y + np.float32(np.cos(angle)) * x)
    cast = rng.uniform(0.97, 1.03, 3).astype(np.float32)
    image = image * (light[..., None] * cast)
    contrast, level = rng.uniform(0.9, 1.05), rng.uniform(0.48, 0.52)
    image = level + np.float32(contrast) * (image - image.mean())
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(
        rng.uniform(0.011, 0.013)
    )
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
