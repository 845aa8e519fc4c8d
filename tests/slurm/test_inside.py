"""What a job reads off SLURM, without one."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lewel_bench.slurm import attempt, inside
from lewel_bench.slurm.ledger import Ledger

WARNED = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
os.kill(os.getppid(), signal.SIGUSR2)
time.sleep(0.2)
folder = pathlib.Path(sys.argv[1])
"""
FINISHES = "(folder / 'record.json').write_text('{}')"
SAVES = "(folder / 'checkpoint-1').touch(); sys.exit(75)"


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (
            "JobState=RUNNING PreemptEligibleTime=2026-11-25T13:33 PreemptTime=2026-11-25T13:34",
            True,
        ),
        ("JobState=RUNNING PreemptEligibleTime=2026-11-25T13:33 PreemptTime=None Start=x", False),
        ("JobState=RUNNING PreemptTime=Unknown", False),
        ("JobState=RUNNING EligibleTime=2026-11-25T13:33:52 AccrueTime=Unknown", False),
        ("JobState=CANCELLED PreemptTime=2026-11-25T13:34", False),
    ],
)
def test_only_a_preemption_in_its_grace_time_asks_for_more(shown: str, told: bool) -> None:
    """SLURM leaves PreemptTime out where nothing was ever preempted."""
    assert inside.in_grace(shown) == told


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the only commands that a job finds, and the signals of this process kept."""
    there = tmp_path / "bin"
    there.mkdir()
    monkeypatch.setenv("PATH", str(there))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(inside, "LEAVE_S", 0.0)
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(one) for one in signals]
    yield there
    for one, handler in zip(signals, before, strict=True):
        signal.signal(one, handler)


def run(folder: Path, code: str) -> int:
    """The exit code of a job that is warned while it computes."""
    books = Ledger(folder / "runs")
    command = ("-c", WARNED + code, "{folder}")
    (books.root / "key").mkdir(parents=True, exist_ok=True)
    one = books.intend(kind="light", tasks=(("key",),), command=command)
    return inside.Watch(books, one).run()


@pytest.mark.parametrize(("code", "asks"), [(SAVES, True), (FINISHES, False)])
def test_only_what_is_left_to_do_asks_for_more(
    tmp_path: Path, commands: Path, code: str, asks: bool
) -> None:
    """A job that finished after its warning was started again, for nothing."""
    (commands / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    (commands / "scontrol").chmod(0o755)
    assert run(tmp_path, code) == 0
    assert (tmp_path / "asked").exists() == asks


def test_a_node_without_scontrol_ends_a_saved_job_cleanly(
    tmp_path: Path, commands: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, SAVES) == 0
    assert "No such file or directory: 'scontrol'" in capfd.readouterr().err
    (one,) = attempt.history(tmp_path / "runs" / "key")
    assert one.outcome == "stopped"


def test_doctor_is_told_what_a_node_lacks(tmp_path: Path, commands: Path) -> None:
    (commands / "squeue").write_text("")
    (commands / "squeue").chmod(0o755)
    asked = {"paths": [str(commands), "/not/there"], "commands": ["squeue", "sbatch"]}
    (tmp_path / "u.asked.json").write_text(json.dumps(asked))
    inside.probe(str(tmp_path), "u")
    answer = json.loads((tmp_path / "u.answer.json").read_text())
    assert (answer["missing"], answer["lacks"]) == (["/not/there"], ["sbatch"])
    assert answer["python"] == sys.version.split()[0]


def test_an_old_failure_does_not_hide_the_new_one(tmp_path: Path, commands: Path) -> None:
    """Of several ranks the first to fail writes it, and no other after that."""
    (tmp_path / "runs" / "key").mkdir(parents=True)
    (tmp_path / "runs" / "key" / inside.FAILURE).write_text('{"message": "the old one"}')
    new = """
path = folder / 'failure.json'
path.exists() or path.write_text('{"message": "the new one"}')
sys.exit(1)
"""
    run(tmp_path, new)
    (one,) = attempt.history(tmp_path / "runs" / "key")
    assert (one.outcome, one.message) == ("error", "the new one")
