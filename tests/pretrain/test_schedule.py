import math

import pytest

from lewel_bench.pretrain.recipe import Schedule
from lewel_bench.pretrain.schedule import cosine_momentum, lr_at, step_decay

LEWEL_B = Schedule(warmup_epochs=10, cosine_per="epoch")
STEPS = 1251  # of an epoch of ImageNet-1K at batch 1024, last incomplete batch dropped


def test_lr_trace_of_the_published_log() -> None:
    """methods.md D6h: lr 3.6, 100 epochs of 1251 steps."""
    assert lr_at(3.6, LEWEL_B, 0, STEPS, 100) == pytest.approx(2.8777e-4, rel=1e-4)
    assert lr_at(3.6, LEWEL_B, 10 * STEPS - 1, STEPS, 100) == pytest.approx(3.6)
    assert lr_at(3.6, LEWEL_B, 10 * STEPS, STEPS, 100) == pytest.approx(3.6)
    assert lr_at(3.6, LEWEL_B, 99 * STEPS, STEPS, 100) == pytest.approx(0.0010965, rel=1e-4)


def test_momentum_trace_of_the_published_log() -> None:
    assert cosine_momentum(0.98, 0, 100 * STEPS) == pytest.approx(0.98)
    assert cosine_momentum(0.98, 1250, 100 * STEPS) == pytest.approx(0.980004926, abs=1e-9)
    assert cosine_momentum(0.98, 100 * STEPS, 100 * STEPS) == 1.0


def test_cosine_per_epoch_is_constant_within_an_epoch() -> None:
    rates = {lr_at(0.03, Schedule(), 5 * 100 + i, 100, 200) for i in range(100)}
    assert rates == {0.03 * 0.5 * (1 + math.cos(math.pi * 5 / 200))}


def test_cosine_per_step_ends_at_zero() -> None:
    schedule = Schedule(warmup_epochs=1, cosine_per="step")
    rates = [lr_at(1.0, schedule, step, 10, 5) for step in range(51)]
    assert rates[9] == 1.0 and rates[-1] == pytest.approx(0.0, abs=1e-15)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_step_decay() -> None:
    assert [step_decay(0.4, epoch, (30, 40)) for epoch in (0, 29, 30, 39, 40, 49)] == (
        pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])
    )


def test_warmup_may_begin_and_the_cosine_end_above_zero() -> None:
    swav = Schedule(warmup_epochs=1, cosine_per="step", start=0.0625, end=0.001)
    rates = [lr_at(4.8, swav, step, 100, 5) for step in range(501)]
    assert rates[0] == pytest.approx(0.3 + 4.5 / 100)
    assert rates[99] == pytest.approx(4.8)
    assert rates[100] == pytest.approx(4.8)
    assert rates[300] == pytest.approx((4.8 + 0.0048) / 2)
    assert rates[500] == pytest.approx(0.0048)


def test_steps_down_scale_with_the_epochs() -> None:
    instdisc = Schedule(decay_at=(0.6, 0.8))
    for epochs, first, second in ((200, 120, 160), (10, 6, 8)):
        rates = [lr_at(0.03, instdisc, epoch * 7, 7, epochs) for epoch in range(epochs)]
        expected = [0.03] * first + [0.003] * (second - first) + [0.0003] * (epochs - second)
        assert rates == pytest.approx(expected)
