"""`--cluster`: what a user sees, with stand-ins for SLURM."""

import dataclasses
import os
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lewel_bench.files import LEDGER, Lock, newest_match
from lewel_bench.harness import cluster, cluster_status, rundir, status
from lewel_bench.harness.cluster_status import with_cluster
from lewel_bench.harness.jobs import launch, variables
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.harness.request import Command, Compute
from lewel_bench.harness.verbs.cancel import cancel
from lewel_bench.harness.verbs.logs import logs
from lewel_bench.results.record import NAME
from lewel_bench.slurm import actions, attempt, in_job, ledger, queue, retry, survey, sweep
from lewel_bench.slurm.plan import JobArray
from lewel_bench.slurm.profile import load_profile, parse_profile
from lewel_bench.slurm.sweep import PlanningPass, Sweep
from lewel_bench.terminal import escaped
from tests.harness.test_cost import jobs_of


def test_a_planning_job_tries_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody would run it again; a user gets the error at once."""
    outcomes: list[Exception | PlanningPass] = []

    def advance(work: Sweep, cells: object, *, attended: bool) -> PlanningPass:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(sweep, "advance", advance)
    monkeypatch.setattr(cluster, "PAUSES_S", (0.0, 0.0, 0.0))
    work = Sweep(tmp_path, load_profile("cpu", {}), ())
    down, busy = queue.SlurmUnreachable("down"), ledger.PlannerBusy("locked")
    good, rejected = (
        PlanningPass({}, wake="7"),
        PlanningPass({}, error="QOSMaxSubmitJobPerUserLimit"),
    )
    outcomes += [down, busy, rejected, good]
    assert cluster._advance(work, (), attended=False) == good and not outcomes
    outcomes += [down, good]
    with pytest.raises(queue.SlurmUnreachable):
        cluster._advance(work, (), attended=True)
    outcomes[:] = [rejected] * 4
    assert cluster._advance(work, (), attended=False) == rejected and not outcomes
    first, second = (
        PlanningPass({}, {id: JobArray("light", 0, ((id,),))}, error="no") for id in "12"
    )
    outcomes[:] = [first, second, down, good]
    assert set(cluster._advance(work, (), attended=False).submitted) == {"1", "2"}
    outcomes[:] = [first, down, down, second]
    assert set(cluster._advance(work, (), attended=False).submitted) == {"1", "2"}
    outcomes[:] = [first, down, down, down]
    last = cluster._advance(work, (), attended=False)
    assert set(last.submitted) == {"1"} and last.error == "no planning job was submitted: down"


def test_the_tries_of_a_planning_job_fit_its_time_limit() -> None:
    for name in ("a100", "cpu", "preemptible"):
        light = load_profile(name, {}).kinds["light"]
        tries = len(cluster.PAUSES_S) + 1
        longest = sum(cluster.PAUSES_S) + tries * ledger.WOKEN_LOCK_S
        assert longest < light.timeout_min * 60 - light.signal_delay_s


@pytest.mark.parametrize("wake", [True, False])
def test_planning_jobs_must_be_possible_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wake: bool
) -> None:
    """A `light` kind that never starts ended a sweep without any job of that kind."""
    mine = load_profile("mine", {"mine": {"defaults": {"nodes": 1}, "wake": wake}})
    seen: list[set[str]] = []

    def possible(on: object, kinds: set[str]) -> None:
        seen.append(kinds)
        raise ValueError("enough")

    monkeypatch.setenv(variables.COMMAND, "lewel-bench run")  # else submit would set it
    monkeypatch.setattr(cluster.check, "require_possible", possible)
    job = jobs_of(tmp_path, "moco_v2_200ep")[0]
    settings, run = MachineSettings(), Command("run")
    with pytest.raises(ValueError, match="enough"):
        cluster.submit(
            tmp_path, mine, [job], [job], settings, lambda: None, command=run, dry_run=False
        )
    assert seen == [{"pretrain", "light"} if wake else {"pretrain"}]


def test_corrected_paths_reach_a_job_that_was_planned_before(tmp_path: Path) -> None:
    """Its key does not depend on them, and its processes read them from its folder."""
    job = jobs_of(tmp_path, "moco_v2_200ep")[0]
    moved = job.model_copy(update={"data": job.data.model_copy(update={"root": "/right"})})
    assert moved.key == job.key
    folder = tmp_path / job.key
    rundir.RunDir(tmp_path).job(job.key).write_spec(job)
    rundir.RunDir(tmp_path).job(moved.key).write_spec(moved)
    assert rundir.JobDir(folder).read_spec().data.root == "/right"
    (folder / NAME).write_text("{}")
    rundir.RunDir(tmp_path).job(job.key).write_spec(job)
    assert rundir.JobDir(folder).read_spec().data.root == "/right"


def test_the_newest_mark(tmp_path: Path) -> None:
    """mmengine's numbers have no leading zeros, and a second training has its own folder."""
    assert newest_match(tmp_path, rundir.CHECKPOINTS) == ""
    (tmp_path / "refit").mkdir()
    for name in (
        "checkpoint-00000009-ff.pt",
        "checkpoint-00000010-0a.pt",
        "refit/checkpoint-00000002-aa.pt",
        "iter_5000.pth",
        "iter_10000.pth",
    ):
        (tmp_path / name).touch()
        assert newest_match(tmp_path, rundir.CHECKPOINTS) == name


def test_cancel_reports_what_it_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-D means no; a job whose sbatch has not answered is not cancelled."""
    live = {key: survey.LiveJob(key, "queued", job) for key, job in (("a", "7"), ("b", ""))}
    monkeypatch.setattr(survey, "live_jobs", lambda root: live)
    monkeypatch.setattr(actions, "cancel", lambda root, keys: {"7": ["a"]})
    monkeypatch.setattr(sys, "stdin", StringIO(""))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert cancel(tmp_path, ["a", "b"], yes=False) == 1
    assert "not cancelled: 2 jobs" in capsys.readouterr().out
    assert cancel(tmp_path, ["a", "b"], yes=True) == 0
    output = capsys.readouterr().out
    assert "cancelled 1 task with 1 of these jobs\n1 job ended meanwhile, or" in output


def test_an_unrelated_spec_is_no_job(tmp_path: Path) -> None:
    (tmp_path / ("a" * 12)).mkdir()
    (tmp_path / ("a" * 12) / rundir.SPEC).write_text("{}")
    assert status.survey(tmp_path) == {}


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A submitted job, whose queue is what `queue.tasks` is patched to."""
    job = jobs_of(tmp_path, "moco_v2_200ep")[0]
    rundir.RunDir(tmp_path).job(job.key).write_spec(job)
    books = ledger.Ledger(tmp_path)
    books.bind_cluster("mine", queue.Limits("here", 1001, 10000))
    intent = books.record_intent(kind="pretrain", tasks=((job.key,),))
    books.record_submitted(intent.uid, "7")
    monkeypatch.setattr(queue, "limits", lambda: queue.Limits("here", 1001, 10000))
    monkeypatch.setattr(
        queue, "tasks", lambda users=(): [queue.QueuedTask("7", intent.name, "RUNNING")]
    )
    monkeypatch.setattr(cluster_status.shutil, "which", lambda name: f"/usr/bin/{name}")
    return job


def test_a_local_run_refuses_submitted_jobs(
    submitted: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="1 of these jobs are queued or running on a cluster"):
        cluster.refuse_submitted(tmp_path, [submitted])
    monkeypatch.setattr(queue, "tasks", lambda users=(): [])
    cluster.refuse_submitted(tmp_path, [submitted])  # it has ended, but no pass has recorded it yet

    def no_slurm(users: object = ()) -> list[queue.QueuedTask]:
        raise ValueError("squeue not found")

    monkeypatch.setattr(queue, "tasks", no_slurm)
    with pytest.raises(ValueError, match=r"squeue not found; remove .*\.slurm if none of its"):
        cluster.refuse_submitted(tmp_path, [submitted])
    monkeypatch.setattr(queue, "limits", lambda: queue.Limits("there", 1001, 10000))
    monkeypatch.setattr(queue, "tasks", lambda users=(): [])
    with pytest.raises(ValueError, match="this is 'there'") as away:
        cluster.refuse_submitted(tmp_path, [submitted])
    assert str(away.value).count("remove") == 1
    work = cluster._sweep(tmp_path, load_profile("cpu", {}), MachineSettings(), Command("run"))
    keys = {submitted.key, "another"}
    assert not work.busy(keys)
    with Lock(tmp_path / submitted.key / rundir.LOCK):
        assert work.busy(keys) == {submitted.key}
    with rundir.RunDir(tmp_path).queue(["another"]):  # queued, not begun
        assert work.busy(keys) == {"another"}


def test_a_local_run_queues_its_jobs_before_it_checks_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass between the check and the start, while data is generated, submitted them too."""
    job = jobs_of(tmp_path, "moco_v2_200ep")[0]
    (tmp_path / LEDGER).mkdir()
    seen: list[set[str]] = []

    def free(root: Path, todo: object) -> None:
        seen.append(rundir.RunDir(root).queued_keys())
        raise ValueError("enough")

    monkeypatch.setattr(cluster, "refuse_submitted", free)
    workspace: Any = SimpleNamespace(root=tmp_path)
    asked = launch.Launch(workspace, [job], Command("run"), Compute())
    with pytest.raises(ValueError, match="enough"):
        launch._compute(asked, [job], MachineSettings(device="cpu"))
    assert seen == [{job.key}] and not rundir.RunDir(tmp_path).queued_keys()


def test_status_on_another_cluster_shows_submitted_jobs_as_queued(
    submitted: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert with_cluster(tmp_path, status.survey(tmp_path), None)[submitted.key].state == "running"
    monkeypatch.setattr(queue, "tasks", lambda users=(): [])
    monkeypatch.setattr(queue, "limits", lambda: queue.Limits("there", 1001, 10000))
    state = with_cluster(tmp_path, status.survey(tmp_path), None)[submitted.key]
    assert state.state == "queued" and "SLURM does not answer" in state.reason
    assert "were submitted to the cluster 'here'" in capsys.readouterr().err


def test_status_tells_what_the_next_run_submits_again(
    submitted: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory leaves a failure.json, and is submitted once more; an error is not."""
    monkeypatch.setattr(queue, "tasks", lambda users=(): [])
    folder = tmp_path / submitted.key
    for outcome, state in (("oom", "missing"), ("error", "failed")):
        (folder / rundir.FAILURE).write_text('{"message": "CUDA out of memory"}')
        tried = attempt.begin(folder, "u", 0, 1, 0, rundir.CHECKPOINTS)
        attempt.end(folder, tried, outcome, "CUDA out of memory")
        live_job = with_cluster(tmp_path, status.survey(tmp_path), None)[submitted.key]
        assert live_job.state == state and "CUDA out of memory" in live_job.reason
        assert ("the next run submits it again" in live_job.reason) == (outcome == "oom")


def test_a_local_failure_after_the_last_attempt_is_shown(
    submitted: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster's time limit was shown instead."""
    monkeypatch.setattr(queue, "tasks", lambda users=(): [])
    folder = tmp_path / submitted.key
    tried = attempt.begin(folder, "u", 0, 1, 0, rundir.CHECKPOINTS)
    attempt.end(folder, tried, "stopped")
    failure = folder / rundir.FAILURE
    failure.write_text('{"message": "no such folder"}')
    for later_s, state in ((10, "missing"), (100, "failed")):
        os.utime(failure, (tried.started + later_s,) * 2)
        live_job = with_cluster(tmp_path, status.survey(tmp_path), None)[submitted.key]
        assert live_job.state == state and live_job.reason.startswith("no such folder")


def test_a_job_cancelled_after_out_of_memory(
    submitted: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run resumes it; it was shown as failed."""
    monkeypatch.setattr(queue, "tasks", lambda users=(): [])
    folder = tmp_path / submitted.key
    tried = attempt.begin(folder, "u", 0, 1, 0, rundir.CHECKPOINTS)
    attempt.end(folder, tried, "oom", "CUDA out of memory")
    (folder / rundir.FAILURE).write_text('{"message": "CUDA out of memory"}')
    books = ledger.Ledger(tmp_path)
    retried = books.record_intent(kind="pretrain", tasks=((submitted.key,),))
    books.record_submitted(retried.uid, "8")
    books.record_ended(ledger.LedgerEntry(retried, "8", ended={0: "CANCELLED"}))
    state = with_cluster(tmp_path, status.survey(tmp_path), None)[submitted.key]
    assert (state.state, state.reason) == ("missing", "cancelled; run again to resume")


def test_status_warns_of_allocations_that_are_too_short(submitted: Job, tmp_path: Path) -> None:
    """It showed "73 min left" for a job whose time limit allowed a few steps each time."""
    folder = tmp_path / submitted.key
    for n in range(3):
        state = with_cluster(tmp_path, status.survey(tmp_path), None)[submitted.key]
        assert "allocations" not in state.reason
        tried = attempt.begin(folder, "u", 0, 1, 0, rundir.CHECKPOINTS)
        late = dataclasses.replace(tried, ready=tried.started + 60)
        attempt.end(folder, late, "stopped", retry.TIME_LIMIT)
        (folder / f"checkpoint-{n:08d}-x.pt").touch()
    state = with_cluster(tmp_path, status.survey(tmp_path), None)[submitted.key]
    assert state.state == "running"
    assert "the last 3 allocations spent more time starting (about 60 s)" in state.reason
    assert state.reason.endswith("after 5 the job counts as failed")


def test_a_full_disk_is_not_shown_as_an_interruption(
    submitted: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "tasks", lambda users=(): [])
    folder = tmp_path / submitted.key
    (folder / rundir.EVENTS).write_text('{"event": "step", "step": 4, "steps": 9, "time": 1}\n')
    assert status.survey(tmp_path)[submitted.key].reason.startswith("interrupted at step 4")
    (entry,) = ledger.Ledger(tmp_path).entries()
    tried = attempt.begin(folder, entry.submission.uid, 0, 1, 0, rundir.CHECKPOINTS)
    attempt.end(folder, tried, "disk full", "no space left on the file system of x")
    state = with_cluster(tmp_path, status.survey(tmp_path), None)[submitted.key]
    assert state.state == "missing"
    assert state.reason.startswith("disk full, no space left on the file system of x")


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        ({0: "CANCELLED"}, "(the last one, 8, ended as CANCELLED): run the same command again"),
        ({}, "planning job 8 is queued (Dependency); it will submit jobs as they become ready"),
    ],
)
def test_status_tells_whether_a_planning_job_submits_the_rest(
    submitted: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended: dict[int, str],
    message: str,
) -> None:
    """A sweep whose planning job was cancelled was shown as if it had just begun."""
    books = ledger.Ledger(tmp_path)
    wake = books.record_intent(kind="light", tasks=((),), wakes="tag")
    books.record_submitted(wake.uid, "8")
    tasks = [] if ended else [queue.QueuedTask("8", wake.name, "PENDING", "Dependency")]
    monkeypatch.setattr(queue, "tasks", lambda users=(): tasks)
    books.record_ended(ledger.LedgerEntry(wake, "8", ended=ended))
    notes: list[str] = []
    with_cluster(tmp_path, status.survey(tmp_path), None, notes)
    assert message in notes[-1]


def test_a_planning_job_keeps_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site file may be edited during a sweep."""
    mine = parse_profile("mine", {"defaults": {"partition": "then"}}, "the site file")
    intent = ledger.Ledger(tmp_path).record_intent(
        kind="light", tasks=((),), wakes="tag", profile=mine.model_dump(mode="json")
    )
    monkeypatch.setenv(in_job.WAKE, str(ledger.Ledger(tmp_path).intent_path(intent.uid)))
    site = Site(clusters={"renamed": {}})
    assert cluster.profile(site, "mine") == mine
    with pytest.raises(ValueError, match="unknown cluster 'other'"):
        cluster.profile(site, "other")


@pytest.mark.parametrize("follow", [False, True])
def test_control_characters_in_a_log_are_escaped(
    follow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    log, tail = tmp_path / "a.log", tmp_path / "tail"
    log.write_bytes(b"\x1b[31mred \xff\n")
    tail.write_text('#!/bin/sh\ncat "$4"\n')  # instead of tail -n 50 -F FILE, which does not end
    tail.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(survey, "log_paths", lambda root, key: [log])
    with escaped():
        assert logs(tmp_path, ["k"], "k", follow=follow) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "\\x1b[31mred \ufffd"
