"""Which signals ask a run to save and stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from lewel_bench.harness.jobs import signals


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    monkeypatch.setattr(signals, "_received", [])
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_asks_to_stop(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    signals.listen()
    signal.raise_signal(number)
    assert signals.asked_to_stop() and signals.received() == number
    assert f"{number.name}: saving, then stopping" in capfd.readouterr().err


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.listen()
    signal.raise_signal(signal.SIGHUP)
    assert not signals.asked_to_stop()


def test_a_signal_within_a_blocked_write_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled ssh blocks the output of a run; its handler must not write to the same stream."""
    read_end, theirs = os.pipe()
    stream = os.fdopen(theirs, "w")
    stream.reconfigure(line_buffering=True)
    monkeypatch.setattr(sys, "stderr", stream)
    signals.listen()

    def stall() -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        while os.read(read_end, 2**16):
            pass

    reader = threading.Thread(target=stall)
    reader.start()
    try:
        stream.write("x" * 2**20 + "\n")
    finally:
        stream.close()
        reader.join()
        os.close(read_end)
    assert signals.received() == signal.SIGTERM
