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
    before = {one: signal.getsignal(one) for one in signals.SIGNALS}
    monkeypatch.setattr(signals, "_received", [])
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("one", signals.SIGNALS)
def test_a_signal_asks_to_stop(one: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    signals.listen()
    signal.raise_signal(one)
    assert signals.asked_to_stop() and signals.received() == one
    assert f"{one.name}: saving, then stopping" in capfd.readouterr().err


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.listen()
    signal.raise_signal(signal.SIGHUP)
    assert not signals.asked_to_stop()


def test_a_signal_within_a_blocked_write_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled ssh blocks what a run says; its handler must not write into the same stream."""
    ours, theirs = os.pipe()
    stream = os.fdopen(theirs, "w")
    stream.reconfigure(line_buffering=True)
    monkeypatch.setattr(sys, "stderr", stream)
    signals.listen()

    def stall() -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        while os.read(ours, 2**16):
            pass

    reader = threading.Thread(target=stall)
    reader.start()
    try:
        stream.write("x" * 2**20 + "\n")
    finally:
        stream.close()
        reader.join()
        os.close(ours)
    assert signals.received() == signal.SIGTERM
