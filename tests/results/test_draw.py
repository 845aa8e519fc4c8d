"""LabelledImages hold what their chart says: read back from the SVG, not from pixels."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lewel_bench.results.figures.alignment_figure import ImageMaps, View, alignment_figure
from lewel_bench.results.figures.chart import Chart, Panel, Series
from lewel_bench.results.figures.draw import draw, format_of, inline

SVG = "{http://www.w3.org/2000/svg}"
X = (0.0, 0.1, 0.3, 1.0)
Y = (60.0, 61.5, 70.25, 66.0)
HOSTILE = '<script>alert("&")</script> $x_'


def chart(**panel: object) -> Chart:
    series = (
        Series("measured", X, Y, spread=(1.0, 0.0, 2.0, 0.5), texts=("n=3", "n=1", "n=3", "n=2")),
        Series("published", (0.3,), (75.0,), kind="marks"),
        Series(HOSTILE, X, tuple(y - 5 for y in Y)),
    )
    fields: dict[str, object] = {"spans": ((0.0, 0.3, "[1]"),), **panel}
    panels = (Panel("top-1", "β", "top-1 (%)", series, **fields),)  # type: ignore[arg-type]
    return Chart(f"A title with {HOSTILE}", panels, ("a note & more",))


def markers(svg: str, label: str) -> list[tuple[float, float]]:
    """Where the markers of a series stand in an SVG."""
    (group,) = (g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("id") == f"series {label}")
    return [(float(u.get("x", "")), float(u.get("y", ""))) for u in group.iter(f"{SVG}use")]


def test_the_points_of_an_svg_are_those_of_the_chart() -> None:
    """Places in the image are an affine map of the values, y downwards."""
    svg = draw(chart(), "svg").decode()
    drawn = np.array(markers(svg, "measured"))
    assert len(drawn) == len(X)
    for axis, values, sign in ((0, X, 1), (1, Y, -1)):
        slope, offset = np.polyfit(values, drawn[:, axis], 1)
        assert np.sign(slope) == sign
        np.testing.assert_allclose(slope * np.array(values) + offset, drawn[:, axis], atol=1e-3)
        published = {0: 0.3, 1: 75.0}[axis]
        ((*place,),) = markers(svg, "published")
        assert place[axis] == pytest.approx(slope * published + offset, abs=1e-3)


def test_a_logarithmic_axis_spaces_by_ratios() -> None:
    series = Series("a", (8, 16, 64), (1, 2, 3))
    panel = Panel("", "c", "", (series,), scale="log2", ticks=(8, 16, 64))
    x = [place for place, _ in markers(draw(Chart("", (panel,)), "svg").decode(), "a")]
    assert (x[2] - x[1]) / (x[1] - x[0]) == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("format", ["png", "svg"])
def test_the_same_chart_gives_the_same_bytes(format: str) -> None:
    first = draw(chart(), format)  # type: ignore[arg-type]
    assert first == draw(chart(), format)  # type: ignore[arg-type]
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[format])
    assert b"matplotlib v" not in first.lower() and b"2026" not in first


def test_series_differ_without_their_colours() -> None:
    """By marker and line, so that a greyscale print tells them apart."""
    names = [f"s{i}" for i in range(6)]
    panel = Panel("", "", "", tuple(Series(n, X, Y) for n in names))
    svg = draw(Chart("", (panel,)), "svg").decode()
    looks = set()
    for name in names:
        (group,) = (
            g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("id") == f"series {name}"
        )
        line, marker = group.find(f"{SVG}path"), next(group.iter(f"{SVG}defs")).find(f"{SVG}path")
        assert line is not None and marker is not None
        dashes = re.search(r"stroke-dasharray: ([^;]*)", line.get("style", ""))
        looks.add((dashes and dashes[1], marker.get("d")))
    assert len(looks) == len(names)


def test_inside_a_page_text_is_text_in_the_pages_colour() -> None:
    text = inline(chart())
    root = ET.fromstring(text)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"measured", "published", HOSTILE, "n=3", "[1]", "top-1 (%)"} <= {*words}
    assert "currentColor" in text and "#010203" not in text and "<script" not in text
    assert "A title" not in text and "a note" not in text  # the page says these itself
    fills = [p.get("style", "") for p in root.iter(f"{SVG}path")]
    assert not any("fill: #ffffff" in style and "opacity" not in style for style in fills)


def test_a_file_says_its_format_by_its_ending() -> None:
    assert format_of(Path("a.PNG")) == "png" and format_of(Path("b.svg")) == "svg"
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        format_of(Path("c.pdf"))


def test_a_long_title_is_as_wide_as_its_picture() -> None:
    view = View(np.zeros((8, 8, 3)), (0, 0, 8, 8), np.ones((1, 2, 2)))
    title = "Figure 5. Alignment maps of LEWEL_M, uncoupled, 14 epochs, seed 0 (215569bdf005)"
    svg = alignment_figure(
        [ImageMaps("a.jpg", np.zeros((8, 8, 3)), (view, view))], [0], title, (), "svg"
    )
    comments = re.findall(r"<!-- (.*?) -->", svg.decode())  # one for each line
    first = next(n for n, value in enumerate(comments) if value.startswith("Figure 5."))
    lines = next(
        comments[first:n]
        for n in range(first + 1, len(comments) + 1)
        if comments[n - 1].endswith(")")
    )
    assert " ".join(lines) == title and len(lines) > 1 and max(map(len, lines)) < 50


def test_a_map_lies_on_its_view_the_right_way_round() -> None:
    """A map with its weight at the top right, and one with it at the bottom left."""
    heat = np.array([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
    view = View(np.zeros((8, 8, 3)), (0, 0, 8, 8), heat)
    shown = [ImageMaps("a.jpg", np.zeros((8, 8, 3)), (view, view))]
    svg = alignment_figure(shown, [0, 1], "title", (), "svg")
    first, second = (overlay(svg, place) for place in (2, 3))  # after image and view
    for actual, (row, column) in ((first, (0, -1)), (second, (-1, 0))):
        brightest = actual[row, column]
        others = [actual[y, x] for y in (0, -1) for x in (0, -1) if (y, x) != (row, column)]
        assert brightest > 60 > 20 > max(others)


def overlay(svg: bytes, place: int) -> np.ndarray[Any, Any]:
    """The lightness of an <image> of an image, its top row first."""
    images = re.findall(rb"<image.*?/>", svg, re.DOTALL)
    content = re.search(rb"base64,\s*([^\"]+)", images[place])
    assert content
    picture = Image.open(io.BytesIO(base64.b64decode(content[1]))).convert("L")
    pixels = np.asarray(picture).astype(int)
    return pixels[::-1] if b"scale(1 -1)" in images[place] else pixels


def test_a_mosaic_says_how_far_from_uniform_a_map_is() -> None:
    """A map of 2 x 2 with half of its weight in one place: twice the mean."""
    heat = np.array([[[0.5, 1 / 6], [1 / 6, 1 / 6]], [[0.25, 0.25], [0.25, 0.25]]])
    view = View(np.full((8, 8, 3), 0.5), (0, 1, 4, 5), heat)
    shown = [ImageMaps("a/<b>.jpg", np.zeros((6, 9, 3)), (view, view))]
    svg = alignment_figure(shown, [7, 3], "title", ("note",), "svg").decode()
    assert svg == alignment_figure(shown, [7, 3], "title", ("note",), "svg").decode()
    comments = re.findall(r"<!-- (.*?) -->", svg)  # matplotlib names what it draws as paths
    assert comments.count("max 2.00x") == 2 and comments.count("max 1.00x") == 2
    assert {"map 7", "map 3", "views", "image"} <= {*comments}
    assert len(re.findall(r"<image", svg)) == 1 + 2 * (1 + 2)  # a map is one with its view
