"""What a figure shows, as values; `draw` makes an image of it."""

from dataclasses import dataclass
from typing import Literal


class Unmeasured(ValueError):
    """What a figure would show is not there; the message says how to get it."""


@dataclass(frozen=True)
class Series:
    """Points to be drawn alike: a `line` with a marker at each, only `marks`, or a `star` that says
    which one was chosen. `spread` is half the length of a point's bar (0: none), `texts` stand
    beside the points; both are empty or as long as `x`."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    kind: Literal["line", "marks", "star"] = "line"


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `scale` is of the horizontal one; its `ticks` are where points stand (none:
    as it comes). `spans` are stretches of it that a note speaks of, as (from, to, text)."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    scale: Literal["linear", "log2", "log"] = "linear"
    ticks: tuple[float, ...] = ()
    spans: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A figure: its panels side by side, and notes below."""

    title: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()


def words(name: str) -> str:
    """A name as a reader sees it."""
    return name.replace("_", " ")
