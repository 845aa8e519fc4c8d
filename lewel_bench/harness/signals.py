"""Turning signals into a request to save and stop."""

import signal
import sys
from functools import partial
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_received: list[int] = []


def listen(answer: str = "saving, then stopping") -> None:
    """From now on the first of SIGNALS asks to stop, which `answer` says; a second Ctrl-C ends the
    process at once."""
    for one in SIGNALS:
        signal.signal(one, partial(_receive, answer))


def asked_to_stop() -> bool:
    """Whether a signal has come."""
    return bool(_received)


def received() -> int | None:
    """The signal that came first."""
    return _received[0] if _received else None


def _receive(answer: str, number: int, frame: FrameType | None) -> None:
    if _received and number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    _received.append(number)
    name = signal.Signals(number).name
    print(f"\n{name}: {answer} (again Ctrl-C: stop at once)", file=sys.stderr)
