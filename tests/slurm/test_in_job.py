"""The code inside a SLURM job, without SLURM."""

import errno
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lewel_bench.slurm import actions, attempt, in_job, survey
from lewel_bench.slurm.ledger import Ledger, LedgerEntry

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
def test_only_a_preemption_in_its_grace_time_is_one(shown: str, told: bool) -> None:
    """SLURM omits PreemptTime where nothing was ever preempted."""
    assert in_job.shows_preemption(shown) == told


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder in PATH; restores the signal handlers of this process."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(in_job, "REQUEUE_WAIT_S", 0.0)
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in signals]
    yield bin_folder
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


def run(folder: Path, code: str) -> int:
    """The exit code of a job that is warned while it computes."""
    books = Ledger(folder / "runs")
    command = ("-c", WARNED + code, "{folder}")
    (books.root / "key").mkdir(parents=True, exist_ok=True)
    submission = books.record_intent(kind="light", tasks=(("key",),), command=command)
    return in_job.TaskRunner(books, submission).run()


@pytest.mark.parametrize(("code", "asks"), [(SAVES, True), (FINISHES, False)])
def test_only_unfinished_jobs_are_requeued(
    tmp_path: Path, commands: Path, code: str, asks: bool
) -> None:
    """A job that finished after its warning was requeued needlessly."""
    (commands / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    (commands / "scontrol").chmod(0o755)
    assert run(tmp_path, code) == 0
    assert (tmp_path / "asked").exists() == asks


def test_a_node_without_scontrol_ends_a_saved_job_cleanly(
    tmp_path: Path, commands: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, SAVES) == 0
    assert "No such file or directory: 'scontrol'" in capfd.readouterr().err
    (tried,) = attempt.history(tmp_path / "runs" / "key")
    assert tried.outcome == "stopped"


def test_the_test_job_reports_what_a_node_lacks(tmp_path: Path, commands: Path) -> None:
    (commands / "squeue").write_text("")
    (commands / "squeue").chmod(0o755)
    asked = {"paths": [str(commands), "/not/there"], "commands": ["squeue", "sbatch"]}
    (tmp_path / "u.asked.json").write_text(json.dumps(asked))
    in_job.probe(str(tmp_path), "u")
    answer = json.loads((tmp_path / "u.answer.json").read_text())
    assert (answer["missing"], answer["lacks"]) == (["/not/there"], ["sbatch"])
    assert answer["python"] == sys.version.split()[0]


def test_an_old_failure_does_not_hide_a_new_one(tmp_path: Path, commands: Path) -> None:
    """Only the first rank that fails writes failure.json."""
    (tmp_path / "runs" / "key").mkdir(parents=True)
    (tmp_path / "runs" / "key" / in_job.FAILURE).write_text('{"message": "the old one"}')
    new = """
path = folder / 'failure.json'
path.exists() or path.write_text('{"message": "the new one"}')
sys.exit(1)
"""
    run(tmp_path, new)
    (tried,) = attempt.history(tmp_path / "runs" / "key")
    assert (tried.outcome, tried.message) == ("error", "the new one")


PACK = """
import json, os, pathlib, sys
from lewel_bench.slurm.attempt import check_claim
from lewel_bench.slurm.in_job import Channel
channel, folder = Channel(), pathlib.Path(sys.argv[1])
while folder:
    channel.ready()
    (folder / 'process').write_text(str(os.getpid()))
    check_claim()
    if (folder / 'dies').exists():
        os.kill(os.getpid(), 9)
    (folder / 'record.json').write_text('{}')
    folder = channel.next()
"""


def test_the_jobs_of_a_pack_share_a_process(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing torch took longer than the jobs. A killed job does not end the others."""
    monkeypatch.setenv("PYTHONPATH", str(Path(in_job.__file__).parents[2]))
    books = Ledger(tmp_path)
    for key in "abcde":
        (tmp_path / key).mkdir()
    (tmp_path / "c" / "dies").touch()
    submission = books.record_intent(
        kind="light", tasks=(tuple("abcde"),), command=("-c", PACK, "{folder}")
    )
    began = time.monotonic()
    assert in_job.TaskRunner(books, submission).run() == 1
    assert time.monotonic() - began < in_job.EXIT_TIMEOUT_S
    process = {key: (tmp_path / key / "process").read_text() for key in "abcde"}
    assert process["a"] == process["b"] == process["c"] != process["d"] == process["e"]
    tried = {key: attempt.history(tmp_path / key) for key in "abcde"}
    assert [tried[key][0].outcome for key in "abcde"] == ["done", "done", "killed", "done", "done"]
    assert all(len(attempts) == 1 and attempts[0].ready for attempts in tried.values())


SHORT = """
import json, os, pathlib, signal, sys, time
from lewel_bench.slurm.in_job import Channel
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
folder = pathlib.Path(sys.argv[1])
time.sleep(1)
started = max(json.loads(p.read_text())['started'] for p in (folder / 'attempts').glob('*.json'))
Channel().ready()
time.sleep(SHARE * (time.time() - started))
(folder / f'checkpoint-{len(list(folder.glob("checkpoint-*")))}').touch()
os.kill(os.getppid(), signal.SIGUSR2)
time.sleep(0.2)
sys.exit(75)
"""


@pytest.mark.parametrize(("share", "asks"), [(0, False), (1.5, True)])
def test_an_allocation_must_train_for_longer_than_it_starts(
    tmp_path: Path,
    commands: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    asks: bool,
) -> None:
    """A job whose time limit allowed a few steps was requeued endlessly."""
    monkeypatch.setenv("PYTHONPATH", str(Path(in_job.__file__).parents[2]))
    monkeypatch.setattr(in_job, "POLL_S", 0.01)
    (commands / "scontrol").write_text(
        f'#!/bin/sh\n[ "$1" = show ] || echo $@ >> {tmp_path}/asked\n'
    )
    (commands / "scontrol").chmod(0o755)
    books = Ledger(tmp_path)
    (tmp_path / "key").mkdir()
    code = SHORT.replace("SHARE", str(share))
    submission = books.record_intent(
        kind="light", tasks=(("key",),), command=("-c", code, "{folder}"), max_attempts=2
    )
    for _ in range(2):
        in_job.TaskRunner(books, submission).run()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["requeue 7"] * (2 if asks else 1)
    books.record_submitted(submission.uid, "7")
    books.record_ended(LedgerEntry(submission, "7", ended={0: "COMPLETED"}))
    verdict = survey.verdicts_on(tmp_path, ["key"])["key"]
    assert verdict.again == asks
    assert ("the last 2 allocations spent more time starting" in verdict.reason) == (not asks)
    actions.retry(tmp_path, ["key"])
    assert survey.verdicts_on(tmp_path, ["key"])["key"].again


def test_a_full_disk_is_reported(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither failure.json nor the attempt could be written, and status showed "interrupted"."""

    def full(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    code = f"sys.exit({in_job.EXIT['disk full']})"
    with monkeypatch.context() as patched:
        begin = attempt.begin

        def begin_then_fill(*arguments: Any) -> attempt.Attempt:
            made = begin(*arguments)
            patched.setattr(attempt, "write_json", full)
            return made

        patched.setattr(attempt, "begin", begin_then_fill)
        run(tmp_path, code)
    (tried,) = attempt.history(tmp_path / "runs" / "key")
    assert tried.outcome == "disk full" and tried.message.startswith(
        "no space left on the file system"
    )
    verdict = survey.verdicts_on(tmp_path / "runs", ["key"])["key"]
    assert verdict.again and verdict.reason.startswith("disk full, no space left on the file")
