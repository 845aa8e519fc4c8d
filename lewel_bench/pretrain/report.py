"""How a long computation talks to whoever started it: events out, a request to stop in."""

from collections.abc import Callable
from typing import Any, Protocol

Stop = Callable[[], bool]


class Report(Protocol):
    """Called as `report("step", step=..., loss=...)`; values are plain data."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


class Stopped(Exception):
    """Raised after saving, when a stop was asked for; running again goes on from there."""


class Diverged(ValueError):
    """A loss that is not finite; the message names step, lr and the last good checkpoint."""


def silent(event: str, /, **fields: Any) -> None:
    """A report that goes nowhere."""


def never() -> bool:
    """A stop that is never asked for."""
    return False
