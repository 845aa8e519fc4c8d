"""When a training loop logs, saves and stops, on a clock of its own."""

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import ranks

from lewel_bench.pretrain import pacer
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.pacer import ASK_EVERY, LOG_EVERY_S, Pacer
from lewel_bench.pretrain.report import Stopped, never

Tick = Callable[[float], None]


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Tick:
    """Moves the pacer's clock on by seconds."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pacer, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def move(seconds: float) -> None:
        clock.now += seconds

    return move


def test_a_log_counts_steps_and_seconds_since_the_last(tick: Tick) -> None:
    pace = Pacer(Machine(), never, step=7)
    assert not pace.log_is_due()
    tick(LOG_EVERY_S)
    assert not pace.log_is_due()
    tick(1.0)
    assert pace.log_is_due()
    assert pace.since_log(10) == (3, LOG_EVERY_S + 1.0)
    assert not pace.log_is_due()
    tick(4.0)
    pace.restart_log(11)  # as after a monitor, whose seconds are not training
    tick(0.5)
    assert pace.since_log(12) == (1, 0.5)


def test_a_save_is_due_after_its_seconds_whatever_is_logged(tick: Tick) -> None:
    pace = Pacer(Machine(save_every_s=10.0), never)
    assert not pace.save_is_due() and pace.save_is_due(now=True)
    tick(9.0)
    pace.since_log(1)
    assert not pace.save_is_due()
    tick(1.0)
    assert pace.save_is_due()
    pace.saved("step 1 of 2")
    tick(9.0)
    assert not pace.save_is_due()
    pace.restart_save()
    tick(9.0)
    assert not pace.save_is_due()
    tick(1.0)
    assert pace.save_is_due()


def test_a_stop_is_raised_after_saving_only() -> None:
    pace = Pacer(Machine(save_every_s=1e9), lambda: True)
    assert pace.stop_requested() and pace.save_is_due()
    with pytest.raises(Stopped, match="saved at step 3 of 9"):
        pace.saved("step 3 of 9")


def test_a_single_process_asks_after_any_step() -> None:
    pace = Pacer(Machine(), never)
    assert all(pace.asks(step) for step in range(1, 2 * ASK_EVERY))


def _rank(rank: int, world: int) -> list[object]:
    # only rank 1 is asked to stop, or only its time has come
    stopping = Pacer(Machine(save_every_s=1e9), lambda: rank == 1)
    late = Pacer(Machine(save_every_s=0.0 if rank == 1 else 1e9), never)
    idle = Pacer(Machine(save_every_s=1e9), never)
    asked = [step for step in range(1, 2 * ASK_EVERY + 3) if idle.asks(step, last=step == 41)]
    due = [pace.save_is_due() for pace in (stopping, late, idle)]
    try:
        stopping.saved("step 20 of 42")
    except Stopped as stopped:
        return [asked, due, str(stopped), os.getpid()]
    raise AssertionError("no rank may go on")


def test_ranks_ask_at_the_same_steps_and_act_together() -> None:
    first, second = ranks.run(_rank, 2)
    assert first[:3] == second[:3] and first[3] != second[3]
    assert first[:3] == [[20, 40, 41], [True, True, False], "saved at step 20 of 42"]
