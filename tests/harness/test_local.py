"""Running jobs on this machine."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import ClassVar

import planning
import pytest
from command_line import write_images
from finished import SHAPES

from lewel_bench.harness import rundir, status
from lewel_bench.harness.jobs import job, local, log, ranks, signals, worker
from lewel_bench.harness.jobs.local import Task
from lewel_bench.harness.jobs.worker import Answer
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.pretrain.report import Report, Stopped
from lewel_bench.results.record import NAME


class Shown:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.counts: list[tuple[int, int]] = []

    def start(self, name: str) -> Report:
        def report(event: str, /, **fields: object) -> None:
            self.events.append((name, event))

        return report

    def advance(self, done: int, total: int, left_s: float | None) -> None:
        self.counts.append((done, total))


class Obedient:
    """A worker that answers at once, as `answer` says for a key."""

    started: ClassVar[list[str]] = []
    answer: ClassVar[Callable[[Path, str], Answer]]
    process = SimpleNamespace(poll=lambda: None)

    def __init__(self, root: Path, settings: MachineSettings, answers: SimpleQueue) -> None:
        self.root, self.answers = root, answers

    def start(self, key: str, processes: int) -> None:
        self.started.append(key)
        self.answers.put((self, type(self).answer(self.root, key)))

    def stop(self) -> None: ...

    def close(self) -> None: ...


def succeed(root: Path, key: str) -> Answer:
    (root / key).mkdir(parents=True, exist_ok=True)
    (root / key / NAME).touch()
    return Answer("computed")


def tasks(*names: str, needs: tuple[str, ...] = ()) -> list[Task]:
    """Tasks whose key is their name."""
    return [Task(name, f"job {name}", needs) for name in names]


def runner(
    root: Path, plan: list[Task], answer: Callable[[Path, str], Answer] = succeed, jobs: int = 1
) -> local.Runner:
    worker = type("Worker", (Obedient,), {"started": [], "answer": staticmethod(answer)})
    settings = MachineSettings(device="cpu", jobs=jobs)
    run = local.Runner(plan, root, settings, Shown(), print)
    run.worker = worker  # type: ignore[assignment]
    return run


def test_a_job_waits_for_those_that_it_needs(tmp_path: Path) -> None:
    run = runner(tmp_path, [*tasks("c", needs=("a", "b")), *tasks("a", "b")])
    assert run.run() == ["a", "b", "c"]
    assert run.view.counts == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_longest_ready_job_comes_first_where_several_run(tmp_path: Path) -> None:
    plan = [Task("a", "a", (), 1.0), Task("b", "b", (), 3.0), Task("c", "c", (), 2.0)]
    for jobs, order in ((1, ["a", "b", "c"]), (2, ["b", "c", "a"])):
        run = runner(tmp_path / str(jobs), plan, jobs=jobs)
        run.run()
        assert run.worker.started == order


def test_a_failure_blocks_those_that_need_it_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(root: Path, key: str) -> Answer:
        return Answer("failed", "no such luck", True) if key == "a" else succeed(root, key)

    run = runner(tmp_path, [*tasks("a", "b"), *tasks("c", needs=("a",))], answer)
    with pytest.raises(local.Unfinished, match="2 jobs are not done") as unfinished:
        run.run()
    assert run.computed == ["b"] and unfinished.value.mistakes
    assert run.view.counts[-1] == (1, 3)
    assert "job a (a): no such luck\n" in str(unfinished.value)
    assert "job c (c): not started, it needs a" in str(unfinished.value)
    assert "failed: job a (a): no such luck" in capsys.readouterr().out


def test_a_need_without_record_that_is_not_selected(tmp_path: Path) -> None:
    with pytest.raises(local.Unfinished, match="has no record and is not selected"):
        runner(tmp_path, tasks("c", needs=("a",))).run()


def test_what_another_process_computes_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "RETRY_S", 0.0)
    answers = iter([Answer("busy"), Answer("busy"), Answer("done")])
    run = runner(tmp_path, tasks("a"), lambda root, key: next(answers))
    assert run.run() == [] and run.worker.started == ["a"] * 3
    out = capsys.readouterr().out
    assert out.count("another process computes job a (a): waiting for its record") == 1
    assert "done by another process: job a (a)" in out


@pytest.mark.parametrize("mistake", [True, False])
def test_what_failed_in_another_process_is_not_tried_again(tmp_path: Path, mistake: bool) -> None:
    def answer(root: Path, key: str) -> Answer:
        error = ValueError("no such luck") if mistake else RuntimeError("no such luck")
        log.write_failure(root / key, error)
        return Answer("busy")

    (tmp_path / "a").mkdir()
    run = runner(tmp_path, tasks("a"), answer)
    with pytest.raises(local.Unfinished, match="no such luck") as unfinished:
        run.run()
    assert run.worker.started == ["a"] and unfinished.value.mistakes == mistake


def test_what_failed_in_an_earlier_run_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    log.write_failure(tmp_path / "a", ValueError("no such luck"))
    os.utime(tmp_path / "a" / rundir.FAILURE, (time.time() - 5,) * 2)
    assert runner(tmp_path, tasks("a")).run() == ["a"]


def test_a_signal_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(root: Path, key: str) -> Answer:
        monkeypatch.setattr(signals, "asked_to_stop", lambda: True)
        return Answer("stopped", "saved at step 3")

    run = runner(tmp_path, tasks("a", "b"), answer)
    with pytest.raises(Stopped, match="saved at step 3"):
        run.run()
    assert run.worker.started == ["a"] and run.view.counts[-1] == (0, 2)


def pretraining(root: Path, **settings: object) -> tuple[Path, MachineSettings]:
    """The folder of a pre-training with its spec, and how to run it."""
    datasets = Datasets(Site(), root, SHAPES, needed=False)
    (job,) = planning.chain(RECIPES["lewel_m_200ep"], [], 0, SHAPES, datasets)
    rundir.RunDir(root).job(job.key).write_spec(job)
    return root / job.key, MachineSettings.model_validate({"device": "cpu", **settings})


def process(root: Path, folder: Path, settings: MachineSettings) -> local.Runner:
    """A run of that job in a real worker process."""
    return local.Runner([Task(folder.name, "lewel_m")], root, settings, Shown(), print)


def test_a_worker_that_is_killed_fails_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = pretraining(tmp_path)
    monkeypatch.setattr(local.Worker, "start", lambda worker, *_: worker.process.kill())
    run = process(tmp_path, folder, settings)
    with pytest.raises(local.Unfinished, match=r"ended by SIGKILL, as the kernel.*failure\.json"):
        run.run()
    assert not run.mistakes and status.survey(tmp_path)[folder.name].state == "failed"


def test_a_worker_that_crashes_is_named_by_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(worker: local.Worker, key: str, processes: int) -> None:
        (folder / "crash-0.log").write_text("Fatal Python error: Segmentation fault\n\n")
        worker.process.send_signal(signal.SIGKILL)

    folder, settings = pretraining(tmp_path)
    monkeypatch.setattr(local.Worker, "start", crash)
    with pytest.raises(local.Unfinished, match="its process was ended by SIGSEGV: see"):
        process(tmp_path, folder, settings).run()


def test_a_worker_that_ends_without_an_answer_fails_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = pretraining(tmp_path)
    monkeypatch.setattr(local.Worker, "start", lambda worker, *_: worker.process.stdin.close())
    with pytest.raises(local.Unfinished, match="its process ended with code 0"):
        process(tmp_path, folder, settings).run()


def test_a_worker_whose_runner_has_gone_ends(tmp_path: Path) -> None:
    """The runner was killed: its pipe is closed."""
    started = local.Worker(tmp_path, MachineSettings(device="cpu"), SimpleQueue())
    assert started.process.stdin
    started.process.stdin.close()
    assert started.process.wait(timeout=60) == 0


def test_ranks_that_end_without_a_word_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = pretraining(tmp_path, processes=2)
    monkeypatch.setattr(worker, "_exit_code", lambda command: 1)
    answer = worker.compute(folder, settings, 2)
    assert answer.outcome == "failed" and "torchrun ended with exit code 1" in answer.message
    assert status.survey(tmp_path)[folder.name].state == "failed"


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (
            RuntimeError("Connection closed by peer"),
            137,
            "2 processes was ended by SIGKILL, as the kernel",
        ),
        (ValueError("broken image"), 137, "broken image"),
        (RuntimeError("it went wrong"), 1, "RuntimeError: it went wrong"),
        (None, 143, "2 processes was ended by SIGTERM"),
    ],
)
def test_what_ended_one_rank_is_said_not_what_the_others_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception | None, code: int, expected: str,
) -> None:  # fmt: skip
    folder, settings = pretraining(tmp_path, processes=2)

    def exit_code(command: list[str]) -> int:
        if error:
            log.write_failure(folder, error)
        return code

    monkeypatch.setattr(worker, "_exit_code", exit_code)
    answer = worker.compute(folder, settings, 2)
    assert expected in answer.message and answer.message.count("RuntimeError") <= 1
    assert answer.outcome == "failed" and status.survey(tmp_path)[folder.name].state == "failed"


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
    folder, settings = pretraining(tmp_path, processes=2)

    def exit_code(command: list[str]) -> int:
        monkeypatch.setattr(signals, "asked_to_stop", lambda: True)
        return 1  # a signal ends torchrun, whose ranks still import

    monkeypatch.setattr(worker, "_exit_code", exit_code)
    assert worker.compute(folder, settings, 2) == ("stopped", "before its processes started", False)


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
    rundir.RunDir(tmp_path / "runs").job(jobs[0].key).write_spec(jobs[0])
    (images / "train" / "class0" / "000.jpg").write_bytes(b"no image")  # read by one rank
    began = time.monotonic()
    answer = worker.compute(tmp_path / "runs" / jobs[0].key, machine, 2)
    assert answer.outcome == "failed" and "000.jpg" in answer.message
    assert answer.is_mistake and time.monotonic() - began < 60
    assert status.survey(tmp_path / "runs")[jobs[0].key].state == "failed"


def test_ranks_in_a_collective_end_after_another_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    monkeypatch.setattr(job, "GRACE_S", 0)
    monkeypatch.setattr("os._exit", ended.append)
    log.write_failure(tmp_path, ValueError("out of luck"))
    job._end_with_others(tmp_path)
    assert ended == [1]
