"""Running jobs on this machine."""

import os
import time
from pathlib import Path

import pytest
from finished import SHAPES

from lewel_bench.harness import local, log, plan, signals, status
from lewel_bench.harness.datasets import Datasets
from lewel_bench.harness.site import MachineSettings, Site
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.pretrain.report import Stopped, silent
from lewel_bench.results.record import NAME


def _runner(root: Path, **settings: object) -> local.Runner:
    datasets = Datasets(Site(), root, SHAPES, needed=False)
    jobs = plan.chain(RECIPES["lewel_m_200ep"], [], 0, SHAPES, datasets)
    machine = MachineSettings.model_validate({"device": "cpu", **settings})
    return local.Runner(jobs, root, machine, lambda job: silent, print)


@pytest.mark.parametrize("since", [50.0, None])
def test_what_failed_while_a_companion_started_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: float | None
) -> None:
    if since:
        monkeypatch.setenv(status.BEGAN, str(time.time() - since))
    runner = _runner(tmp_path)
    (job,) = runner.pending
    monkeypatch.setattr(local.jobs, "run", lambda *_: (tmp_path / job.key / NAME).touch())
    status.write_spec(job, tmp_path)
    log.write_failure(tmp_path / job.key, ValueError("no such luck"))
    os.utime(tmp_path / job.key / status.FAILURE, (time.time() - 5,) * 2)
    if since is None:  # it failed in an earlier `run`
        assert runner.run() == [job.key]
        return
    with pytest.raises(local.Unfinished, match="no such luck"):
        runner.run()


def test_what_ended_a_companion_is_not_tried_again(tmp_path: Path) -> None:
    runner = _runner(tmp_path)
    (job,) = runner.pending
    status.write_spec(job, tmp_path)
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
    with pytest.raises(Stopped, match="before its processes had begun"):
        runner.run()
    assert not runner.failed
