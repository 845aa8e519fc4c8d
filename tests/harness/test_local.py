"""Running jobs on this machine."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import planning
import pytest
from command_line import write_images
from finished import SHAPES

from lewel_bench.harness import rundir, status
from lewel_bench.harness.jobs import local, log, ranks, signals, variables
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.pretrain.report import Stopped, silent
from lewel_bench.results.record import NAME


def _runner(root: Path, **settings: object) -> local.Runner:
    datasets = Datasets(Site(), root, SHAPES, needed=False)
    jobs = planning.chain(RECIPES["lewel_m_200ep"], [], 0, SHAPES, datasets)
    machine = MachineSettings.model_validate({"device": "cpu", **settings})
    return local.Runner(jobs, root, machine, lambda job: silent, print)


@pytest.mark.parametrize("since", [50.0, None])
def test_what_failed_while_a_companion_started_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: float | None
) -> None:
    if since:
        monkeypatch.setenv(variables.BEGAN, str(time.time() - since))
    runner = _runner(tmp_path)
    (job,) = runner.pending
    monkeypatch.setattr(local.jobs, "run", lambda *_: (tmp_path / job.key / NAME).touch())
    rundir.RunDir(tmp_path).job(job.key).write_spec(job)
    log.write_failure(tmp_path / job.key, ValueError("no such luck"))
    os.utime(tmp_path / job.key / rundir.FAILURE, (time.time() - 5,) * 2)
    if since is None:  # it failed in an earlier `run`
        assert runner.run() == [job.key]
        return
    with pytest.raises(local.Unfinished, match="no such luck"):
        runner.run()


def test_what_ended_a_companion_is_not_tried_again(tmp_path: Path) -> None:
    runner = _runner(tmp_path)
    (job,) = runner.pending
    rundir.RunDir(tmp_path).job(job.key).write_spec(job)
    (tmp_path / job.key / "crash-0.log").write_text("Fatal Python error: Segmentation fault\n\n")
    with pytest.raises(local.Unfinished, match="its process was ended by SIGSEGV: see"):
        runner.run()
    assert not runner.mistakes


def test_ranks_that_end_without_a_word_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _runner(tmp_path, processes=2)
    (job,) = runner.pending

    def watched(command: list[str], environment: dict[str, str]) -> int:
        return 1

    monkeypatch.setattr(local, "_watched", watched)
    with pytest.raises(local.Unfinished, match="torchrun ended with exit code 1"):
        runner.run()
    assert status.survey(tmp_path)[job.key].state == "failed"


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (
            RuntimeError("Connection closed by peer"),
            137,
            "2 processes was ended by SIGKILL, as the kernel",
        ),
        (ValueError("broken image"), 137, "broken image"),
        (RuntimeError("it went wrong"), 1, ": RuntimeError: it went wrong"),
        (None, 143, "2 processes was ended by SIGTERM;"),
    ],
)
def test_what_ended_one_rank_is_said_not_what_the_others_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception | None, code: int, expected: str,
) -> None:  # fmt: skip
    runner = _runner(tmp_path, processes=2)
    (job,) = runner.pending

    def watched(command: list[str], environment: dict[str, str]) -> int:
        if error:
            log.write_failure(tmp_path / job.key, error)
        return code

    monkeypatch.setattr(local, "_watched", watched)
    with pytest.raises(local.Unfinished) as failed:
        runner.run()
    assert expected in str(failed.value) and str(failed.value).count("RuntimeError") <= 1
    assert status.survey(tmp_path)[job.key].state == "failed"


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ({0: (-15, 8), 1: (-9, 7)}, 137),
        ({0: (1, 7), 1: (-9, 7)}, 137),
        ({0: (1, 7), 1: (-9, 37)}, 1),  # it did not end when it was asked to
        ({0: (1, 7), 1: (-15, 7)}, 1),
        ({0: (-15, 7)}, 1),
    ],
)
def test_the_first_rank_that_failed_gives_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, ended: dict[int, tuple[int, int]], code: int
) -> None:
    failures = {rank: SimpleNamespace(exitcode=e, timestamp=t) for rank, (e, t) in ended.items()}

    def fail(_: list[str]) -> None:
        error = ranks.ChildFailedError.__new__(ranks.ChildFailedError)
        error.failures = failures
        raise error

    monkeypatch.setattr(ranks.run, "main", fail)
    monkeypatch.setattr(ranks.logging, "disable", lambda level: None)
    assert ranks.main() == code


def test_a_stop_before_the_processes_have_begun_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _runner(tmp_path, processes=2)
    asked = []

    def watched(command: list[str], environment: dict[str, str]) -> int:
        asked.append(True)  # a signal ends torchrun, whose ranks still import
        return 1

    monkeypatch.setattr(local, "_watched", watched)
    monkeypatch.setattr(signals, "asked_to_stop", lambda: bool(asked))
    with pytest.raises(Stopped, match="before its processes started"):
        runner.run()
    assert not runner.failed


def test_a_rank_that_fails_alone_ends_the_others(tmp_path: Path) -> None:
    """The others wait for it in a collective; it exited with 0, and they waited 10 minutes."""
    images = write_images(tmp_path / "images")
    datasets = Datasets(Site(), tmp_path, SHAPES, {"": images})
    jobs = planning.jobs(
        SHAPES,
        datasets,
        method=("moco_v2_200ep",),
        evals=("none",),
        settings=tuple(
            {
                "batch": 8,
                "bn_group": 4,
                "args.queue": 16,
                "backbone.width": 4,
                "image_size": 32,
                "args.hidden": 8,
                "epochs": 50,
            }.items()
        ),
    )
    machine = MachineSettings(device="cpu", processes=2, workers=0)
    runner = local.Runner(jobs, tmp_path / "runs", machine, lambda job: silent, print)
    (images / "train" / "class0" / "000.jpg").write_bytes(b"no image")  # read by one rank
    began = time.monotonic()
    with pytest.raises(local.Unfinished, match=r"000\.jpg") as failed:
        runner.run()
    assert failed.value.mistakes and time.monotonic() - began < 60
    assert status.survey(tmp_path / "runs")[jobs[0].key].state == "failed"


def test_ranks_in_a_collective_end_after_another_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    monkeypatch.setattr(local.jobs, "GRACE_S", 0)
    monkeypatch.setattr("os._exit", ended.append)
    log.write_failure(tmp_path, ValueError("out of luck"))
    local.jobs._end_with_others(tmp_path)
    assert ended == [1]
