"""Parsing the output of SLURM's commands, and files that machines share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lewel_bench import files
from lewel_bench.slurm import attempt, ledger, queue
from lewel_bench.slurm.queue import QueuedTask, SlurmUnreachable


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(queue, "ask", lambda command, timeout_s=0: text)


def test_squeue(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "12_3|PENDING|0.5|0:00||Priority|7|a,b|lewel-x\n13|COMPLETING|1|2:00|n1|None|8|a|a | b\n"
    )
    answer(monkeypatch, lines)
    first, second = queue.tasks()
    assert (first.index, first.reason, first.user, first.name) == (3, "Priority", 7, "lewel-x")
    assert second.name == "a | b"
    assert (second.index, second.nodes, second.is_alive) == (0, "n1", True)
    answer(monkeypatch, "garbage\n")
    with pytest.raises(SlurmUnreachable, match="garbage"):
        queue.tasks()


@pytest.mark.parametrize(
    ("state", "reason", "stuck"),
    [
        ("PENDING", "PartitionConfig", "requests more than a node"),
        ("PENDING", "launch failed requeued held", "scontrol release"),
        ("PENDING", "Priority", ""),
        ("RUNNING", "PartitionConfig", ""),
    ],
)
def test_reasons_of_jobs_that_never_start(state: str, reason: str, stuck: str) -> None:
    message = QueuedTask("1", "x", state, reason).stuck
    assert stuck in message and bool(stuck) == bool(message)


def test_a_command_that_fails_is_not_an_empty_answer(tmp_path: Path) -> None:
    with pytest.raises(SlurmUnreachable, match="slurm_load_jobs error"):
        queue.ask(["sh", "-c", "echo slurm_load_jobs error >&2; exit 1"])
    with pytest.raises(SlurmUnreachable, match="did not answer within"):
        queue.ask(["sleep", "5"], 0.1)
    with pytest.raises(ValueError, match="no-such-squeue not found"):
        queue.ask(["no-such-squeue"])


def test_options_in_the_environment_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQUEUE_PARTITION in a user's shell hid running jobs, which were submitted again."""
    for name in ("SQUEUE_PARTITION", "SLURM_CLUSTERS", "SCANCEL_STATE", "SLURM_CONF"):
        monkeypatch.setenv(name, "mine")
    assert queue.ask(["sh", "-c", "env | grep -E '^(S[A-Z]+)_.*=mine'"]) == "SLURM_CONF=mine\n"


def test_sacct_explains_and_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "7_0|CANCELLED by 0|u\n7_1|OUT_OF_MEMORY|u\n7_2|PENDING|u\n7_3|COMPLETED|other\n"
    answer(monkeypatch, text)
    ended = {"7_0": "CANCELLED", "7_1": "OUT_OF_MEMORY"}  # the id 7_3 belongs to another job
    assert queue.final_states({f"7_{i}": "u" for i in range(4)}) == ended

    def absent(command: object, timeout_s: float = 0) -> str:
        raise SlurmUnreachable("Slurm accounting storage is disabled")

    monkeypatch.setattr(queue, "ask", absent)
    assert queue.final_states({"7_0": "u"}) == {}


def test_sacct_is_called_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12,000 ids do not fit into one argument."""
    sacct = tmp_path / "sacct"
    sacct.write_text('#!/bin/sh\nfor last; do :; done; echo "${last%%,*}|FAILED|u"\n')
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    states = queue.final_states({f"1234567_{i:05d}": "u" for i in range(12000)})
    assert len(states) == 24 and states["1234567_00000"] == "FAILED"


def test_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "gpu*|2-00:00:00|4|64+|500000+|gpu:a100:8(S:0-1)|a100,ib\n")
    named, default = queue.nodes()
    assert (named.partition, default.partition) == ("gpu", "")
    assert (named.gpus, named.cpus, named.timeout_min) == (8, 64, 2880)
    assert named.features == default.features == {"a100", "ib"}


def test_the_first_writer_wins_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    assert files.create_json(path, {"n": 1}) and not files.create_json(path, {"n": 2})
    assert files.read_json(path) == {"n": 1}
    files.write_json(path, {"n": 3})
    assert files.read_json(path) == {"n": 3} and os.listdir(path.parent) == ["x.json"]
    for text in ("", "{", "[1]"):
        path.write_text(text)
        assert files.read_json(path) is None


def test_exactly_one_process_creates_a_file(tmp_path: Path) -> None:
    code = "import sys; from lewel_bench.files import create_json; from pathlib import Path; "
    code += "print(create_json(Path(sys.argv[1]), {}))"
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(5)
    ]
    assert sorted(process.communicate()[0].strip() for process in started) == ["False"] * 4 + [
        "True"
    ]


def test_the_last_to_start_has_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = attempt.begin(tmp_path, "u", 0, 1, 0, "checkpoint-*")
    monkeypatch.setenv(attempt.CLAIM_VARIABLE, f"{tmp_path}:{first.name}")
    attempt.check_claim()
    (tmp_path / "checkpoint-00000001").touch()
    second = attempt.begin(tmp_path, "u", 0, 2, 1, "checkpoint-*")
    with pytest.raises(files.ClaimLost):
        attempt.check_claim()
    assert not attempt.has_claim(tmp_path, first.name) and attempt.has_claim(tmp_path, second.name)
    attempt.end(tmp_path, second, "oom", "no memory")
    attempts = attempt.history(tmp_path)
    assert [attempt.outcome for attempt in attempts] == ["", "oom"]
    assert (attempts[1].mark, attempts[1].halvings) == ("checkpoint-00000001", 1)
    (tmp_path / attempt.CLAIM).unlink()
    assert not attempt.has_claim(tmp_path, second.name)  # a missing claim is lost


def test_the_attempts_in_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = attempt.begin(tmp_path, "u", 0, 4, 0, "*")
    attempt.reset(tmp_path)
    now = attempt.begin(tmp_path, "u", 0, 4, 0, "*")
    monkeypatch.setenv(attempt.CLAIM_VARIABLE, f"{tmp_path}:{now.name}")
    attempts = attempt.summary(tmp_path)
    assert [attempt["outcome"] for attempt in attempts] == ["killed", "done"]
    assert json.dumps(attempts) and lost.name != now.name and attempts[0]["processes"] == 4
    assert attempt.node_name() not in json.dumps(attempts)  # records are shared


def test_unrelated_json_files_are_ignored(tmp_path: Path) -> None:
    """JSON that is neither a submission nor an attempt, as in an incomplete backup."""
    books = ledger.Ledger(tmp_path)
    submission = books.record_intent(kind="light", tasks=(("key",),))
    for text in ("{}", '{"uid": "x", "kind": "light", "tasks": 3}'):
        (books.submissions / "x.intent.json").write_text(text)
        assert [entry.submission for entry in books.entries()] == [submission]
        with pytest.raises(ValueError, match=r"x\.intent\.json is missing or damaged"):
            books.submission("x")
    real = attempt.begin(tmp_path / "key", submission.uid, 0, 1, 0, "*")
    (tmp_path / "key" / files.ATTEMPTS / "0.json").write_text("{}")
    assert [attempt.name for attempt in attempt.history(tmp_path / "key")] == [real.name]
