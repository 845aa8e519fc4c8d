"""What the log of a run says over time."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from lewel_bench.files import read_regular

if TYPE_CHECKING:
    from pandas import DataFrame

Curve = tuple[str, str]  # its name, and what its places are: "epoch" or "step"

EVENTS = "events.jsonl"  # in the folder of a job
LARGEST_EVENTS = 2**28  # bytes that are read of one events.jsonl
LARGEST = sys.float_info.max
PLACES = ("step", "steps", "epoch", "epochs")
NO_CURVE = (*PLACES, "time", "seed", "images_per_s", "data_wait", "lr", "factor")


def frame(path: Path) -> "DataFrame":
    """The curves of an events.jsonl, a row a point in the order of the log: `quantity` ("loss"),
    `candidate` (which of several in one run, from 0; NA: there is one), `epoch` or `step` (NaN: the
    point has the other) and `value`, in the unit of the log."""
    from pandas import DataFrame

    types = {"quantity": "str", "candidate": "Int64", "epoch": float, "step": float, "value": float}
    rows = [
        {"quantity": name, "candidate": candidate, axis: place, "value": value}
        for (name, axis), candidate, points in logged(path)
        for place, value in points
    ]
    return DataFrame(rows, columns=list(types)).astype(types)


def logged(path: Path) -> list[tuple[Curve, int | None, list[tuple[float, float]]]]:
    """What an events.jsonl says over time: quantities, which of several candidates (None: there is
    one) and (place, value) in order. A place is an epoch, or a step where no epoch was logged.

    What an interrupted run did again counts as it came out the last time.
    """
    logged_points: dict[tuple[Curve, int | None], list[tuple[float, float]]] = {}
    for event in _events(path):
        if event.get("event") not in ("step", "epoch", "monitor", "evaluated"):
            continue
        axis = "epoch" if "epoch" in event else "step"
        if not is_number(event.get(axis)):
            continue
        split = f"{event['split']} " if "split" in event else ""
        for name, value in event.items():
            is_list = isinstance(value, list) and len(value) > 1
            for i, element in enumerate(value if isinstance(value, list) else [value]):
                if name in NO_CURVE or not is_number(element):
                    continue
                points = logged_points.setdefault(
                    ((split + name, axis), i if is_list else None), []
                )
                while points and points[-1][0] >= event[axis]:
                    points.pop()
                points.append((event[axis], element))
    return [(curve, candidate, points) for (curve, candidate), points in logged_points.items()]


def parse_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The whole events among the lines of an events file."""
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut by a window or by a kill; the events around it are whole
        if isinstance(event, dict):
            yield event


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value out of free JSON is a number that can be drawn: finite, and not a bool."""
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def _events(path: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = read_regular(path, LARGEST_EVENTS).decode(errors="replace").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        return
    yield from parse_events(lines)
