"""Signals as requests to save and stop."""

import os
import signal
import sys
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import TextIO

from lewel_bench.terminal import discard

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_received: list[int] = []


def listen(answer: str = "saving, then stopping") -> None:
    """Handle SIGNALS from now on: the first one requests a stop and prints `answer`, if any; a
    second Ctrl-C ends the process at once. A SIGHUP that `nohup` ignores stays ignored."""
    terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, partial(_receive, answer, terminals))


def asked_to_stop() -> bool:
    """Whether a signal has arrived."""
    return bool(_received)


def request_stop() -> None:
    """Stop as if SIGTERM had arrived."""
    _received.append(signal.SIGTERM)


def received() -> int | None:
    """The first signal that arrived, or None."""
    return _received[0] if _received else None


def _receive(answer: str, terminals: list[TextIO], number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:  # writes to a closed terminal fail
        for stream in terminals:
            discard(stream)
    if _received and number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    _received.append(number)
    name = signal.Signals(number).name
    if not answer:
        return
    with suppress(OSError):  # not print, which is not reentrant: the signal may interrupt one
        os.write(2, f"\n{name}: {answer} (press Ctrl-C again to stop at once)\n".encode())
