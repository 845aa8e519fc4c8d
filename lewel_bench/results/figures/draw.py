"""Figures as PNG and SVG, the same bytes for the same content.

Only this file and `alignment_figure` draw with matplotlib.

Series differ by marker and line style as well as by colour, so greyscale tells them apart.
"""

import io
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lewel_bench.results.figures.chart import Chart, Panel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]
FORMATS: tuple[Format, ...] = ("png", "svg")
DPI = 200

COLOURS = ("#2f6db3", "#c4631a", "#35855a", "#8558b0", "#b03a5b", "#7a7a7a")
MARKERS = "osD^vPX"
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
STAR = "#d01c1c"
INK = "#010203"  # stands for the page's own text colour in an inline SVG
WIDTH, HEIGHT = 4.4, 3.2  # inches of a panel
COLUMNS = 3  # panels in a row
LINE = 0.17  # inches of a line of notes
LETTERS = 16.5  # of a note's line, an inch
TITLE_LETTERS = 10.5  # of the title's

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8c8c8c",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.hashsalt": "lewel-bench",
    "lines.markersize": 5.5,
    "lines.linewidth": 1.4,
}
# The letters of a file are drawn as paths, so it looks alike everywhere; those inside a page stay
# text in the page's font and colour.
INLINE: dict[str, Any] = {
    "svg.fonttype": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}


def format_of(path: Path) -> Format:
    """The format that a file's ending names. Raises ValueError for another one."""
    for format in FORMATS:
        if path.suffix.lower() == f".{format}":
            return format
    raise ValueError(f"{path}: a figure's file name must end in .png or .svg")


def draw(chart: Chart, format: Format) -> bytes:
    """`chart` as the content of a file."""
    with style():
        return saved(_figure(chart), format)


def inline(chart: Chart) -> str:
    """The panels of `chart` as an <svg> element to stand in a page: no title and no notes, in the
    page's font and text colour, on no ground of its own."""
    with style(INLINE):
        text = saved(_figure(chart, bare=True), "svg", transparent=True).decode()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = text.replace("'DejaVu Sans'", "inherit")
    return re.sub(r'<g id="[^"]*"', "<g", text)  # an id may stand but once in a page


@contextmanager
def style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draw as all our figures are drawn, whatever the user's matplotlibrc says."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("figures need matplotlib: pip install matplotlib") from None
    looks: Any = {**STYLE, **(more or {})}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(looks)
        yield


def saved(figure: "Figure", format: Format, *, transparent: bool = False) -> bytes:
    """A figure as a file's content, without a date or the name of a version."""
    content = io.BytesIO()
    unsaid: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    figure.savefig(
        content, format=format, dpi=DPI, metadata=unsaid[format], transparent=transparent
    )
    return content.getvalue()


def _figure(chart: Chart, bare: bool = False) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    width = columns * WIDTH
    title = textwrap.wrap(chart.title, int(width * TITLE_LETTERS))
    notes = [] if bare else wrapped(chart.notes, width)
    below = LINE * len(notes) + (0.1 if notes else 0)
    names = _names(chart)
    legend = 0.24 * len(_legend_rows(list(names), width))
    height = rows * HEIGHT + below + legend + (0 if bare else 0.1 + 0.2 * len(title))
    figure = Figure(figsize=(width, height), layout="constrained")
    if not bare:
        looks: dict[str, Any] = {"ha": "left", "fontsize": 10.5, "fontweight": "bold"}
        figure.suptitle("\n".join(title), x=0.01, **looks)
    upper: Any = figure
    if notes:
        parts: Any = figure.subfigures(2, 1, height_ratios=(height - below, below))
        upper, lower = parts
        lower.text(0.01, 1, "\n".join(notes), va="top", ha="left", fontsize=7.5)
    for i, panel in enumerate(chart.panels):
        _panel(upper.add_subplot(rows, columns, i + 1), panel, names)
    if legend:
        handles = _handles(figure)
        wide = max(len(row) for row in _legend_rows(list(names), width))
        upper.legend(
            [handles[name] for name in names], list(names), loc="outside lower center", ncols=wide
        )
    return figure


def wrapped(notes: tuple[str, ...], inches: float) -> list[str]:
    """Notes as lines that fit a width."""
    return [line for note in notes for line in textwrap.wrap(note, int(inches * LETTERS))]


def _names(chart: Chart) -> dict[str, int]:
    """The labels of the chart's series, each with the number that its looks come from."""
    labels = dict.fromkeys(series.label for panel in chart.panels for series in panel.series)
    return {label: i for i, label in enumerate(labels)}


def _legend_rows(names: list[str], inches: float) -> list[list[str]]:
    if len(names) < 2:
        return []
    letters = max(map(len, names)) + 10  # with its line
    wide = max(1, min(len(names), int(inches * 13.5 / letters)))
    return [names[i : i + wide] for i in range(0, len(names), wide)]


def _handles(figure: "Figure") -> dict[str, Any]:
    options: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            options.setdefault(label, handle)
    return options


def _panel(axes: "Axes", panel: Panel, names: Mapping[str, int]) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.scale == "log2":
        axes.set_xscale("log", base=2)
    elif panel.scale == "log":
        axes.set_xscale("log")
    if panel.ticks:
        axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        axes.minorticks_off()
        axes.tick_params("x", labelsize=9 if len(panel.ticks) < 9 else 6.5)
    for i, (start, end, text) in enumerate(panel.spans):
        axes.axvspan(start, end, color="#8c8c8c", alpha=(0.16, 0.07)[i % 2], lw=0, zorder=0)
        axes.annotate(
            text,
            ((start * end) ** 0.5 if panel.scale != "linear" else (start + end) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7.5,
        )
    for series in panel.series:
        _series(axes, series, names[series.label])
    axes.margins(y=0.14)


def _series(axes: "Axes", series: Series, number: int) -> None:
    star = series.kind == "star"
    colour = STAR if star else COLOURS[number % len(COLOURS)]
    many = len(series.x) > 40  # a marker at each would hide the line
    looks: dict[str, Any] = {
        "color": colour,
        "marker": "*" if star else MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)] if series.kind == "line" else "none",
        "markevery": max(1, len(series.x) // 12) if many else None,
        "markerfacecolor": "none" if star or number % 2 else colour,
        "markersize": 13 if star else None,
        "zorder": 3 if star else 2,
    }
    bars = axes.errorbar(
        series.x,
        series.y,
        yerr=series.spread if any(series.spread) else None,
        capsize=3,
        label=series.label,
        **looks,
    )
    bars.lines[0].set_gid(f"series {series.label}")
    tops = map(sum, zip(series.y, series.spread or [0.0] * len(series.y), strict=True))
    for x, top, text in zip(series.x, tops, series.texts, strict=False):
        options: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
        axes.annotate(text, (x, top), fontsize=7, **options)
