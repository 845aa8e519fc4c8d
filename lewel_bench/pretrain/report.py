"""How a long computation communicates with its caller: events out, stop requests in."""

from collections.abc import Callable
from typing import Any, Protocol

Stop = Callable[[], bool]


class Report(Protocol):
    """Called as `report("step", step=..., loss=...)`; values are plain data."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


class Stopped(Exception):
    """Raised after saving, when a stop was requested; running again resumes from there."""


class Diverged(ValueError):
    """A loss that is not finite; the message names step, lr and the last good checkpoint."""


def silent(event: str, /, **fields: Any) -> None:
    """A report that discards all events."""


def never() -> bool:
    """A stop that is never requested."""
    return False
