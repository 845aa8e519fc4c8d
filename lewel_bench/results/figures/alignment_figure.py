"""Figure 5 as an image: images, their views, and the alignment maps laid over them.

H, W of an image, S pixels a side of a view, h, w of a map.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lewel_bench.results.figures.draw import Format, saved, style, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]
TILE = 1.05  # inches
TITLE = 0.68  # letters of the title for one of a note
HEAT = "inferno"  # its lightness rises evenly, so it reads the same in greyscale
FRAMES = ("#1b6ac9", "#e07b00")  # of the first and the second view; solid and dashed


@dataclass(frozen=True)
class View:
    """One view of an image: its pixels (S, S, 3) in 0..1, its crop in the image (top, left, height,
    width in pixels of the image), and its maps (K, h, w), each of which sums to 1."""

    pixels: Array
    box: tuple[float, float, float, float]
    maps: Array


@dataclass(frozen=True)
class ImageMaps:
    """One image (H, W, 3) in 0..1 with its two views."""

    name: str
    pixels: Array
    views: tuple[View, View]


def alignment_figure(
    shown: list[ImageMaps], channels: list[int], title: str, notes: tuple[str, ...], format: Format
) -> bytes:
    """Two rows an image: the image with both crops marked, then view and maps of each.

    A map is drawn from its smallest to its largest weight; below it stands its largest as a
    multiple of the mean, which says how far from uniform it is.
    """
    with style():
        return _draw(shown, channels, title, notes, format)


def _draw(
    shown: list[ImageMaps], channels: list[int], title: str, notes: tuple[str, ...], format: Format
) -> bytes:
    from matplotlib.figure import Figure

    columns, rows = 2 + len(channels), 2 * len(shown)
    width = columns * TILE
    lines = wrapped(notes, width)
    titles = wrapped((title,), width * TITLE)
    head, foot = 0.35 + 0.2 * len(titles), 0.13 * len(lines) + 0.3
    height = rows * (TILE + 0.06) + head + foot
    figure = Figure(figsize=(width, height))
    figure.suptitle(
        "\n".join(titles), x=0.01, y=1 - 0.08 / height, ha="left", va="top", fontsize=9.5
    )
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.005,
        right=0.995,
        top=1 - head / height,
        bottom=foot / height,
        wspace=0.04,
        hspace=0.17,
    )
    names = ("image", "views", *(f"map {k}" for k in channels))
    for i, image in enumerate(shown):
        whole = figure.add_subplot(grid[2 * i : 2 * i + 2, 0])
        _image(whole, image)
        tops = [whole]
        for v, view in enumerate(image.views):
            axes = figure.add_subplot(grid[2 * i + v, 1])
            axes.imshow(view.pixels)
            _frame(axes, v)
            tops += [axes] if v == 0 else []
            for k, heat in enumerate(view.maps):
                axes = figure.add_subplot(grid[2 * i + v, 2 + k])
                _overlay(axes, view.pixels, heat)
                tops += [axes] if v == 0 else []
        if i == 0:
            for axes, name in zip(tops, names, strict=True):
                axes.set_title(name, fontsize=8, loc="center", pad=3)
    figure.text(0.01, (foot - 0.22) / height, "\n".join(lines), va="top", ha="left", fontsize=6.5)
    return saved(figure, format)


def _image(axes: "Axes", image: ImageMaps) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(image.pixels)
    axes.set_anchor("N")
    for v, view in enumerate(image.views):
        top, left, height, width = view.box
        look: dict[str, Any] = {
            "edgecolor": FRAMES[v],
            "linestyle": ("-", "--")[v],
            "linewidth": 1.6,
        }
        axes.add_patch(Rectangle((left, top), width, height, fill=False, **look))
    axes.axis("off")
    name = image.name if len(image.name) <= 20 else f"…{image.name[-19:]}"
    axes.text(0.5, -0.03, name, transform=axes.transAxes, ha="center", va="top", fontsize=6)


def _frame(axes: "Axes", number: int) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=FRAMES[number], linewidth=1.6)
        spine.set_linestyle(("-", "--")[number])


def _overlay(axes: "Axes", pixels: Array, heat: Array) -> None:
    side = len(pixels)
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
    axes.imshow(pixels @ np.array([0.299, 0.587, 0.114]), cmap="gray", vmin=0, vmax=1)
    axes.imshow(heat, cmap=HEAT, alpha=0.6, extent=extent, interpolation="bilinear")
    axes.set_xlim(-0.5, side - 0.5)
    axes.set_ylim(side - 0.5, -0.5)
    axes.axis("off")
    peak = heat.max() * heat.size
    axes.text(
        0.5,
        -0.02,
        f"max {peak:.2f}x",
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=5.5,
    )
