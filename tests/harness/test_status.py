"""What `status` reads of a run root, whatever lies there."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import planning
import pytest
from finished import SHAPES, finish

from lewel_bench.harness import rundir, status
from lewel_bench.harness.cost.estimate import Estimator
from lewel_bench.harness.jobs import log
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import Site
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.pretrain.report import silent
from lewel_bench.results.store import Store

NAMED = {"kind": "final", "name": "x", "seed": 0}


def states(root: Path) -> dict[str, status.JobState]:
    store = Store(root)
    return status.survey(root, store, Estimator(store.records, root))


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "final"},
        NAMED | {"data": {}},
        NAMED | {"data": {"id": "d"}},
        NAMED | {"kind": "train", "data": {"id": "d"}},
        NAMED | {"recipe": [1]},
        NAMED | {"recipe": {"name": [1]}},
        NAMED | {"protocol": "linear"},
        NAMED | {"data": {"id": "d"}, "upstream": "u", "protocol": {"runner": "linear"}},
        NAMED | {"kind": "pretrain", "data": {"id": "d"}, "recipe": {"name": "lewel_m_200ep"}},
    ],
)
def test_a_spec_that_is_none_of_ours_is_no_job(tmp_path: Path, spec: dict[str, Any]) -> None:
    (tmp_path / "0123456789ab").mkdir()
    (tmp_path / "0123456789ab" / "spec.json").write_text(json.dumps(spec))
    assert states(tmp_path) == {}
    key = finish(tmp_path, "lewel_m_200ep", "linear_lars")
    (tmp_path / key / "spec.json").write_text(json.dumps(spec))
    assert states(tmp_path)[key].state == "done"


def test_a_spec_of_ours_is_a_job(tmp_path: Path) -> None:
    datasets = Datasets(Site(), tmp_path, SHAPES, needed=False)
    jobs = [
        job
        for recipe in ("lewel_m_200ep", "pcl_200ep", "moco_v2_200ep")
        for job in planning.chain(
            RECIPES[recipe],
            ["linear_lars", "semi_1pct", "voc07_det_c4", "voc12_seg_fcn_d8"],
            0,
            SHAPES,
            datasets,
        )
    ]
    for job in jobs:
        rundir.RunDir(tmp_path).job(job.key).write_spec(job)
    assert set(states(tmp_path)) == {job.key for job in jobs}


@pytest.mark.parametrize("name", ["spec.json", "events.jsonl", "failure.json"])
def test_a_file_that_is_nested_too_deeply_is_damaged(tmp_path: Path, name: str) -> None:
    last = finish(tmp_path, "moco_v2_200ep", "linear_lars", metrics={"top1": 1.0})
    (tmp_path / last / "record.json").unlink()
    (tmp_path / last / name).write_text("[" * 100_000)
    states_by_key = states(tmp_path)
    assert (last in states_by_key) == (name != "spec.json") and len(states_by_key) == 1 + (
        last in states_by_key
    )


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_a_job_that_a_native_library_ends_has_failed(tmp_path: Path, how: str) -> None:
    key = finish(tmp_path, "lewel_m_200ep", "linear_lars")
    (tmp_path / key / "record.json").unlink()
    child = os.fork()
    if not child:
        try:
            with log.crashes(tmp_path / key):
                os.kill(os.getpid(), signal.Signals[how])
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.Signals[how]
    state = states(tmp_path)[key]
    assert state.state == "failed"
    assert state.reason == (f"its process was ended by {how}: see {tmp_path / key / 'crash-0.log'}")
    assert "test_status.py" in (tmp_path / key / "crash-0.log").read_text()
    assert str(log.failure(tmp_path / key)) == state.reason
    assert log.failure(tmp_path / key, time.time() + 1) is None
    with log.crashes(tmp_path / key):  # the next attempt, killed or not
        assert states(tmp_path)[key].state == "missing"
    assert not list((tmp_path / key).glob("crash*"))


def test_an_event_after_one_that_a_kill_cut_is_whole(tmp_path: Path) -> None:
    for _ in range(2):
        log.Log(tmp_path, silent)("step", step=1, steps=2)
        with open(tmp_path / "events.jsonl", "a") as file:
            file.write('{"event": "st')
    events = [event["event"] for event in rundir.JobDir(tmp_path).last_events()]
    assert events == ["step", "step"]


def test_events_that_say_nothing_of_progress_are_left_out(tmp_path: Path) -> None:
    odd: tuple[dict[str, Any], ...] = (
        {"step": 1, "steps": 0, "time": 1},
        {"step": "2", "steps": 9, "time": 1},
        {"step": 2, "steps": 9},
        {"step": 2, "steps": None, "time": 1},
    )
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in odd))
    assert rundir.JobDir(tmp_path).progress() is None
    with open(log, "a") as file:
        file.write(json.dumps({"step": 20, "steps": 2, "time": 1}) + "\n")
    progress = rundir.JobDir(tmp_path).progress()
    assert progress and progress.share == 1
