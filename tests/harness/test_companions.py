"""The further processes of `run --jobs`."""

import time

import pytest

from lewel_bench.harness.jobs import workers as companions
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.harness.request import Command, Selection

AGAIN = Command("run", (Selection(method=("lewelb",)),))


def test_one_that_cannot_start_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    output, until = "", time.monotonic() + 120
    with companions.companions(MachineSettings(jobs=2, threads=1), AGAIN):
        while not output and time.monotonic() < until:
            time.sleep(0.1)
            output = capsys.readouterr().err
    assert output.startswith("a worker process of --jobs could not start: lewel-bench: unknown")
    assert "Did you mean 'lewel_b'" in output and "The others continue" in output


def test_one_that_ends_with_the_run_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        companions.companions(MachineSettings(jobs=3, threads=1), AGAIN),
    ):
        raise KeyboardInterrupt
    assert not capsys.readouterr().err
