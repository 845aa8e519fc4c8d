"""Faults on a real SLURM: each ends, after at most one more run, in the result without a fault."""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from lab import Bench, Lab, until

from lewel_bench.slurm import actions, queue, survey, sweep
from lewel_bench.slurm.ledger import Ledger
from lewel_bench.slurm.queue import SlurmUnreachable

LONG = {"ticks": 40, "tick_s": 0.1, "save_every": 5}


def job(bench: Bench, key: str) -> str:
    return survey.live_jobs(bench.root)[key].job


def signal(bench: Bench, key: str, name: str) -> None:
    subprocess.run(["scancel", f"--signal={name}", job(bench, key)], check=True)


def test_a_graph_of_jobs_and_a_second_run(bench: Bench) -> None:
    bench.add("p", "pretrain")
    searches = [bench.add(f"s{i}", "semi", ["p"]) for i in range(3)]
    bench.add("f", "light", searches)
    first = bench.run()
    assert first.count("submit") == 1 and first.count("waiting") == 4
    assert bench.run().submitted == {}
    for _ in range(2):
        until(bench.idle)
        bench.run()
    bench.finish()
    bench.check()
    assert bench.run().submitted == {}


def test_a_sweep_continues_without_its_client(lab: Lab, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "runs", wake=True)
    for p in ("p", "q"):
        bench.add(p, "pretrain")
        searches = [bench.add(f"{p}s{i}", "semi", [p]) for i in range(2)]
        bench.add(f"{p}f", "light", searches)
    assert bench.run_with_wakes().wake
    bench.finish()
    bench.check()


def test_what_stops_a_sweep_is_shown(lab: Lab, tmp_path: Path) -> None:
    """A cancelled planning job, and a partition whose nodes are all drained."""
    bench = Bench(tmp_path / "runs", wake=True)
    bench.add("p", "pretrain", **LONG)
    bench.add("s", "semi", ["p"])
    drain = ["scontrol", "update", "nodename=ALL", "reason=test"]
    subprocess.run([*drain, "state=drain"], check=True)
    try:
        wake = bench.run_with_wakes().wake
        around = survey.survey(bench.root)
        assert "none of its nodes can start a job (2 drain" in around.closed["main"]
        (planning_job,) = around.planning_jobs
        assert (planning_job.job, planning_job.state) == (wake, "queued")
    finally:
        subprocess.run([*drain[:-1], "state=resume"], check=True)
    queue.cancel([wake])
    until(lambda: survey.survey(bench.root).planning_jobs[0].state == "CANCELLED")
    until(lambda: survey.live_jobs(bench.root)["p"].state == "running")
    assert not survey.survey(bench.root).closed


def test_a_job_warned_twice_saves_and_resumes_twice(bench: Bench) -> None:
    bench.add("a", **{**LONG, "save_every": 10**9})
    bench.run()
    for restart in (0, 1):
        until(lambda n=restart: bench.ticks("a") >= 5 + 10 * n and len(bench.attempts("a")) > n)
        signal(bench, "a", "USR2")
        until(lambda n=restart: len(bench.attempts("a")) == n + 2)
    assert bench.run().submitted == {}
    bench.finish()
    bench.check()
    assert [attempt.outcome for attempt in bench.attempts("a")] == ["stopped", "stopped", "done"]
    assert bench.ticks("a") == 40  # no tick was computed twice


def test_a_real_time_limit(lab: Lab, tmp_path: Path) -> None:
    limits = {"timeout_min": 1, "signal_delay_s": 30}
    bench = Bench(tmp_path / "runs", defaults=limits)
    bench.add("a", ticks=350, tick_s=0.1)
    bench.run()
    until(lambda: len(bench.attempts("a")) == 2, 80)
    bench.finish()
    bench.check()
    assert bench.ticks("a") == 350


@pytest.mark.parametrize("told", [True, False])
def test_preemption(lab: Lab, tmp_path: Path, told: bool) -> None:
    lab.configure(LAB_CTLD_PARAMS="preempt_send_user_signal" if told else "")
    bench = Bench(tmp_path / "runs", defaults={"partition": "low", "cpus_per_task": 2})
    bench.add("a", **LONG)
    bench.run()
    until(lambda: bench.ticks("a") >= 3)
    mine = job(bench, "a")
    high = ["sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]
    subprocess.run(high, check=True, capture_output=True)
    until(lambda: len(bench.attempts("a")) == 2)
    bench.finish()
    bench.check()
    assert bench.ticks("a") == 40
    assert bench.attempts("a")[1].job == mine


def test_requeued_by_hand(bench: Bench) -> None:
    bench.add("a", **LONG)
    bench.run()
    until(lambda: bench.ticks("a") >= 12)
    subprocess.run(["scontrol", "requeue", job(bench, "a")], check=True)
    assert bench.run().submitted == {}
    bench.finish()
    bench.check()
    assert len(bench.attempts("a")) == 2


def test_a_node_loses_power(lab: Lab, bench: Bench) -> None:
    bench.add("a", **LONG)
    bench.run()
    until(lambda: bench.ticks("a") >= 12)
    node = bench.attempts("a")[0].node
    lab.node("crash", node)
    lab.node("down", node)
    assert bench.run().submitted == {}
    bench.finish()
    bench.check()
    assert [attempt.outcome for attempt in bench.attempts("a")] == ["", "done"]


def test_split_brain(lab: Lab, bench: Bench) -> None:
    """Only the node's daemon dies: the task survives while SLURM starts a second copy."""
    bench.add("a", ticks=200, tick_s=0.1, save_every=5)
    bench.run()
    until(lambda: bench.ticks("a") >= 10)
    node = bench.attempts("a")[0].node
    lab.node("stop", node)
    lab.node("down", node)
    until(lambda: len(bench.attempts("a")) == 2)
    until(lambda: bench.attempts("a")[0].outcome == "fenced", 10)
    bench.finish()
    bench.check()
    # the first copy ticks on until it checks its claim and saves
    assert bench.ticks("a") <= 200 + 30


@pytest.mark.parametrize("which", ["task", "array"])
def test_cancelled_by_hand(bench: Bench, which: str) -> None:
    for key in "ab":
        bench.add(key, **LONG)
    bench.run()
    until(lambda: bench.ticks("a") >= 3 and bench.ticks("b") >= 3)
    id = job(bench, "a")
    queue.cancel([id if which == "task" else id.partition("_")[0]])
    until(lambda: "a" not in survey.live_jobs(bench.root))
    # an unattended pass does not submit cancelled jobs again
    assert bench.run(attended=False).states["a"][0] == "cancelled"
    until(bench.idle)
    assert bench.run().states["a"][0] == "submit"
    bench.finish()
    bench.check()


def test_failures_wait_for_retry(bench: Bench) -> None:
    bench.add("a", fault="raise")
    bench.add("b", fault="nan")
    bench.add("c", "light", ["a"])
    bench.add("d")
    bench.run()
    until(bench.idle)
    again = bench.run()
    assert again.submitted == {}
    for key, why in (
        ("a", "failed: a test's raise"),
        ("b", "non-finite loss: a test's nan"),
    ):
        state, reason = again.states[key]
        message, _, log = reason.partition("; see ")
        assert (state, message) == ("given_up", why)
        assert Path(log) in survey.log_paths(bench.root, key)
    assert again.states["c"] == ("blocked", "needs a (failed)")
    assert again.states["d"] == ("done", "")
    for key in "ab":
        (bench.root / key / "mended").touch()
    actions.retry(bench.root, ["a", "b"])
    bench.run()
    until(bench.idle)
    bench.run()
    bench.finish()
    bench.check()


def test_out_of_memory_once_more_with_half(bench: Bench) -> None:
    bench.add("a", fault="oom")
    bench.add("b", fault="sigkill")
    bench.run()
    until(bench.idle)
    (bench.root / "b" / "mended").touch()
    bench.run()
    bench.finish()
    bench.check()
    assert [(o.outcome, o.halvings) for o in bench.attempts("a")] == [("oom", 0), ("done", 1)]
    assert [o.outcome for o in bench.attempts("b")] == ["killed", "done"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_planner_is_killed_around_sbatch(bench: Bench, tmp_path: Path, when: str) -> None:
    for i in range(3):
        bench.add(f"a{i}", ticks=5, tick_s=0.4)
    real = shutil.which("sbatch")
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "sbatch"
    call = f'{real} "$@"\n' if when == "after" else ""
    fake.write_text(f"#!/bin/bash\n{call}kill -KILL $PPID\n")
    fake.chmod(0o755)
    planner = bench.planner(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    planner.communicate()
    assert planner.returncode == -9
    second = bench.run()
    assert bool(second.submitted) == (when == "before")
    bench.finish(30)  # less than the minute that submitit's tasks wait for their pickles
    bench.check()
    assert all(len(bench.attempts(f"a{i}")) == 1 for i in range(3))


def test_the_controller_is_down(lab: Lab, bench: Bench) -> None:
    bench.add("a", ticks=280, tick_s=0.1, save_every=5)
    bench.add("b", fault="sigkill")
    bench.run()
    until(lambda: bench.ticks("a") >= 3 and sum(t.is_alive for t in queue.tasks()) == 1)
    seen = time.time()
    subprocess.run(["scontrol", "update", f"JobId={job(bench, 'a')}", "Comment=new"], check=True)
    until(
        lambda: lab.saved() > seen
    )  # else the restarted controller takes the ended job for a running one
    lab.controller("kill")
    for ask in (bench.run, lambda: survey.live_jobs(bench.root)):
        with pytest.raises(SlurmUnreachable):
            ask()
    lab.controller("start")  # while the job runs
    assert bench.run().states["a"][0] == "live"
    (bench.root / "b" / "mended").touch()
    until(lambda: (bench.root / "a" / "record.json").exists())
    until(bench.idle)
    bench.run()
    bench.finish()
    bench.check()
    assert len(bench.attempts("a")) == 1


def test_the_controller_forgets_a_job(lab: Lab, bench: Bench) -> None:
    # a controller without memory counts from 1 again, and drains a node that has a job of that id
    subprocess.run(["sbatch", "--wrap=true", "--output=/dev/null"], check=True)
    bench.add("a", ticks=150, tick_s=0.1, save_every=5)
    bench.run()
    until(lambda: bench.ticks("a") >= 3)
    lab.controller("amnesia")
    lab.controller("start")
    until(lambda: not survey.live_jobs(bench.root))
    assert (
        len(bench.run().submitted) == 1
    )  # the task of the lost job may survive, without the claim
    bench.finish()
    bench.check()
    assert len(bench.attempts("a")) == 2


def test_the_run_root_is_full_during_a_save(lab: Lab, tmp_path: Path) -> None:
    mounted = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)]
    if os.getuid() or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("needs to mount a small file system")
    try:
        bench = Bench(tmp_path / "runs")
        bench.add("a", **LONG)
        bench.run()
        until(lambda: bench.ticks("a") >= 7)
        filler = tmp_path / "filler"
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        until(lambda: not survey.live_jobs(bench.root))
        assert not bench.done()
        (tried,) = bench.attempts("a")
        assert tried.outcome == "disk full" and "no space left" in tried.message
        filler.unlink()
        assert len(bench.run().submitted) == 1
        bench.finish()
        bench.check()
        resumed = bench.attempts("a")[-1]
        assert resumed.mark  # it resumed from its last complete checkpoint
    finally:
        until(bench.idle, 30)
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_three_planners_in_the_same_second(bench: Bench, tmp_path: Path) -> None:
    rounds = 50
    for i in range(rounds):
        bench.add(f"r{i:02d}", ticks=0)
    planners = [bench.planner(rounds=str(rounds)) for _ in range(3)]
    for planner in planners:
        out, _ = planner.communicate(timeout=200)
        assert planner.returncode == 0, out
    bench.finish()
    bench.check()
    assert all(len(bench.attempts(job.key)) == 1 for job in bench.jobs)


def test_two_users_share_a_run_root(lab: Lab) -> None:
    """Each planner took the other's running jobs for lost, submitted them again and fenced the
    running ones, endlessly."""
    first, second = (
        {"user": name, "group": GROUP, "extra_groups": [], "umask": 0o002, "cwd": "/"}
        for name in ("daemon", "games")
    )
    shared = lab.folder / "shared"
    shared.mkdir()
    os.chown(shared, -1, GROUP)
    shared.chmod(0o2775)
    before = os.umask(0o002)
    try:
        bench = Bench(shared / "runs", python=python_for(first))
        for key in "ab":
            bench.add(key, **LONG)
        plan_as(bench, first)
        until(lambda: bench.ticks("a") >= 10 and bench.ticks("b") >= 10)
        plan_as(bench, second)
        assert [e.submission.user for e in Ledger(bench.root).entries()] == [uid("daemon")]
        with pytest.raises(ValueError, match=r"such as SLURM job .*, were submitted by daemon"):
            cancel_as(uid("games"), bench)
        queue.cancel([job(bench, "b")])
        until(lambda: "b" not in survey.live_jobs(bench.root))
        plan_as(bench, second)  # it resumes from the other user's checkpoint
        assert len(Ledger(bench.root).entries()) == 2
        bench.finish()
        bench.check()
    finally:
        os.umask(before)
    assert [attempt.outcome for attempt in bench.attempts("a")] == ["done"]
    assert [attempt.outcome for attempt in bench.attempts("b")] == ["stopped", "done"]
    assert bench.attempts("b")[1].mark
    closed = [p for p in shared.rglob("*") if not p.stat().st_mode & 0o020]
    assert not closed, closed


GROUP = 100  # users


def uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def python_for(who: dict[str, Any]) -> str:
    """An interpreter that another user can start, unlike one in root's home."""
    packages = [path for path in sys.path if "site-packages" in path]
    code = f"import sys; sys.path += {packages}; import submitit, pydantic, filelock"
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with suppress(OSError):
            if not subprocess.run([python, "-c", code], **who, capture_output=True).returncode:
                return python
    pytest.skip(f"needs root, and a Python with our packages that {who['user']} can start")


def plan_as(bench: Bench, who: dict[str, Any]) -> None:
    packages = [path for path in sys.path if "site-packages" in path]
    paths = [str(Path(sweep.__file__).parents[2]), *packages]
    planner = bench.planner(who=who, PYTHONPATH=":".join(paths))
    out, _ = planner.communicate(timeout=60)
    assert planner.returncode == 0, out


def cancel_as(user: int, bench: Bench) -> None:
    with patch.object(queue.os, "getuid", lambda: user):
        actions.cancel(bench.root, ["a"])


def test_planning_inside_an_array_task(bench: Bench) -> None:
    """Its SLURM_ARRAY_TASK_ID=1 must not reach the jobs that it submits."""
    for i in range(2):
        bench.add(f"a{i}", ticks=2)
    command = ["sbatch", "--array=1-1", "-n2", "-o", str(bench.root / "planner.log")]
    wrapped = shlex.join(bench.planner_command())
    subprocess.run([*command, f"--wrap={wrapped}"], check=True, env=bench.planner_environment())
    bench.finish(40)
    bench.check()
    assert all(len(bench.attempts(f"a{i}")) == 1 for i in range(2))
    single = bench.add("b", ticks=2)
    wrapped = shlex.join(bench.planner_command())
    subprocess.run([*command, f"--wrap={wrapped}"], check=True, env=bench.planner_environment())
    bench.finish(40)
    assert len(bench.attempts(single)) == 1
