"""How far jobs are, what they cost and what is to go."""

import json
from pathlib import Path
from typing import Any

import pytest

from lewel_bench.harness import rundir
from lewel_bench.harness.job_names import named_keys
from lewel_bench.harness.progress import Share, shares
from lewel_bench.harness.rundir import Progress
from lewel_bench.harness.status import JobState


def events(folder: Path, *entries: dict[str, Any]) -> Path:
    (folder / rundir.EVENTS).write_text("".join(json.dumps(event) + "\n" for event in entries))
    return folder


def step(n: int, time: float) -> dict[str, Any]:
    return {"event": "step", "step": n, "steps": 100, "time": time}


def test_the_pace_is_that_of_the_last_attempt(tmp_path: Path) -> None:
    assert rundir.JobDir(tmp_path).progress() is None
    slow = (step(10, 0), step(20, 1000))
    assert rundir.JobDir(events(tmp_path, step(10, 0))).progress() == Progress(10, 100, None)
    assert rundir.JobDir(events(tmp_path, *slow)).progress() == Progress(20, 100, 8000)
    again = ({"event": "start"}, step(30, 9000), step(60, 9060))
    assert rundir.JobDir(events(tmp_path, *again)).progress() == Progress(60, 100, 80)
    # the hours between two attempts are no part of it
    assert rundir.JobDir(events(tmp_path, *slow, *again)).progress() == Progress(60, 100, 80)
    assert rundir.JobDir(events(tmp_path, *slow, *again[:2])).progress() == Progress(30, 100, None)
    assert rundir.JobDir(events(tmp_path, *slow, again[0])).progress() == Progress(20, 100, None)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (30, "under a minute left"), (720, "12 min left"), (9000, "2.5 h left")],
)
def test_time_left_in_words(seconds: float | None, words: str) -> None:
    assert Progress(1, 2, seconds).left == words


def job(name: str, state: str, protocol: str = "", **more: Any) -> JobState:
    return JobState("", "", "", 0, "shapes", state, "", name, protocol, **more)


def test_hours_to_go() -> None:
    assert job("a", "done", hours=8).hours_to_go == 0
    assert job("a", "missing").hours_to_go is None
    assert job("a", "running", hours=8, progress=Progress(3, 4)).hours_to_go == 2


def test_shares_of_methods_and_tables() -> None:
    jobs = [
        job("lewel_m_200ep", "done", spent_hours=2, hours=2),
        job("lewel_m_200ep", "running", "linear_lars", hours=4, progress=Progress(1, 4)),
        job("lewel_m_200ep", "missing", "semi_1pct"),
        job("lewel_m_200ep", "stale", "linear_lars", spent_hours=7),
    ]
    methods, tables = shares(jobs)
    assert methods == [Share("lewel_m_200ep", "shapes", 1, 3, 2, 3, 1)]
    of = {share.name: share for share in tables}
    assert of["table 1"] == Share("table 1", "shapes", 1, 2, 2, 3, 0)
    assert of["table 2"] == Share("table 2", "shapes", 1, 2, 2, 0, 1)


def test_a_cell_stands_for_its_evaluations_and_their_pre_training() -> None:
    jobs = {
        "p": job("lewel_m_200ep", "done"),
        "l": job("lewel_m_200ep", "running", "linear_lars"),
        "s": job("lewel_m_200ep", "missing", "semi_1pct"),
        "o": job("moco_v2_200ep", "missing", "linear_lars"),
    }
    assert named_keys(jobs, "table1:lewel_m:200:top1", {}) == ["p", "l"]
    assert named_keys(jobs, "o", {}) == ["o"]
    for text, message in (
        ("table1:lewel_x:200:top1", "Did you mean 'lewel_m'"),
        ("table1:lewel_b:200:top1", "no job of this run root fills"),
        ("q", "unknown key 'q'"),
    ):
        with pytest.raises(ValueError, match=message):
            named_keys(jobs, text, {})
