"""Which signals ask a run to save and stop."""

import signal
from collections.abc import Iterator

import pytest

from lewel_bench.harness import signals


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
