"""Planning passes, with scripts instead of SLURM's commands."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from lab import Bench

from lewel_bench.slurm import actions, ledger, survey, sweep
from lewel_bench.slurm.executor import SubmissionRejected
from lewel_bench.slurm.ledger import ForeignCluster, Ledger, LedgerEntry, PlannerBusy
from lewel_bench.slurm.plan import PlannedJob

CONFIG = "ClusterName = stand-in\\nMaxArraySize = 1001\\nMaxJobCount = 10000\\n"
ME = os.getuid()


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Jobs of two kinds, which two calls of sbatch submit."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stand_in(bin_folder, "scontrol", f"printf '{CONFIG}'")
    stand_in(bin_folder, "squeue", "true")
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    bench = Bench(tmp_path / "runs", wake=True)
    bench.add("a", "pretrain")
    bench.add("b", "light")
    return bench


def accept(bench: Bench, which: str) -> None:
    """An sbatch that accepts its n-th call if the shell test `which` of $n is true."""
    seen = bench.root.parent / "calls"
    script = (
        f'echo "$@" >> {seen}; n=$(wc -l < {seen}); [ {which} ] && '
        'echo "Submitted batch job $n" || { echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }'
    )
    stand_in(bench.root.parent / "bin", "sbatch", script)


def show(bench: Bench, *lines: str) -> None:
    """Let squeue print `lines`."""
    (bench.root.parent / "queue").write_text("".join(f"{line}\n" for line in lines))
    stand_in(bench.root.parent / "bin", "squeue", f"cat {bench.root.parent}/queue")


def answered(bench: Bench) -> list[LedgerEntry]:
    """The submissions that sbatch accepted, in order."""
    return sorted((e for e in Ledger(bench.root).entries() if e.id), key=lambda e: e.id or "")


def line(entry: LedgerEntry, state: str, reason: str = "None") -> str:
    return f"{entry.id}|{state}|1|0:00||{reason}|{ME}|main|{entry.submission.name}"


def test_nothing_is_submitted(bench: Bench) -> None:
    """A run without the cluster was refused because of jobs that sbatch had rejected."""
    accept(bench, "$n -le 0")
    with pytest.raises(SubmissionRejected, match="QOSMaxSubmitJobPerUserLimit"):
        bench.run()
    assert not survey.unfinished_keys(bench.root)


@pytest.mark.parametrize("accepted", [1, 2])
def test_a_rejection_does_not_stop_other_arrays(bench: Bench, accepted: int) -> None:
    accept(bench, f"$n -eq {accepted}")
    done = bench.run()
    assert list(done.submitted) == [str(accepted)] and "QOSMaxSubmit" in done.error
    states = [state for state, _ in done.states.values()]
    assert states == (["submit", "held"] if accepted == 1 else ["held", "submit"])


def test_a_rejected_planning_job_is_reported(bench: Bench) -> None:
    accept(bench, "$n -le 2")
    done = bench.run_with_wakes()
    assert done.count("submit") == 2 and not done.wake
    assert done.error.startswith("no planning job was submitted: SLURM rejected 1 light job: ")
    assert "QOSMaxSubmit" in done.error
    assert done.error.endswith("set max_queued of cluster lab (now 2000) below it")


def test_a_planning_job_is_submitted_after_a_rejection(bench: Bench) -> None:
    """Rejected jobs wait for running jobs, and a planning job is still submitted."""
    accept(bench, "$n -ne 2 -a $n -ne 4")
    first = bench.run_with_wakes()
    assert list(first.submitted) == ["1"] and first.wake == "3"
    job, wake = answered(bench)
    show(bench, line(job, "RUNNING"), line(wake, "RUNNING"))
    second = bench.run_with_wakes()
    assert not second.submitted and "QOSMaxSubmit" in second.error and second.wake == "5"
    assert second.states["b"][0] == "held"


def on_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="another"))


def wake_script(bench: Bench) -> str:
    """The script of the last sbatch."""
    return Path((bench.root.parent / "calls").read_text().split()[-1]).read_text()


def test_a_rejection_is_known_on_another_host(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for a running sbatch, no planning job was submitted, and the sweep ended."""
    accept(bench, "$n -ne 2")
    assert bench.run_with_wakes().wake == "3"
    job, wake = answered(bench)
    (bench.root / "a" / "record.json").write_text("{}")
    show(bench, line(job, "COMPLETED"), line(wake, "RUNNING"))
    on_another_host(monkeypatch)
    done = bench.run_with_wakes()
    assert [batch.tasks for batch in done.submitted.values()] == [(("b",),)] and done.wake == "5"


def test_an_sbatch_that_fails_but_submits(bench: Bench) -> None:
    """sbatch timed out on a submission that the controller had accepted."""
    bin_folder, queue = bench.root.parent / "bin", bench.root.parent / "queue"
    stand_in(
        bin_folder,
        "sbatch",
        f'echo "7|PENDING|1|0:00||None|{ME}|main|$(grep -o "lewel-[0-9a-f]*" "$1" | head -1)" '
        f"> {queue}\n"
        "echo Socket timed out >&2; exit 1",
    )
    stand_in(bin_folder, "squeue", f"cat {queue} 2> /dev/null || true")
    bench.jobs = bench.jobs[:1]
    done = bench.run()
    assert list(done.submitted) == ["7"] and not done.error
    assert sorted(Ledger(bench.root).logs(answered(bench)[0].submission.uid).glob("7_submitted*"))


def test_an_sbatch_of_another_host_is_checked_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its planner was killed, so no job id is known that could wake a pass."""
    accept(bench, "$n -le 9")
    bench.jobs = bench.jobs[:1]
    Ledger(bench.root).record_intent(kind="pretrain", tasks=(("a",),))
    on_another_host(monkeypatch)
    done = bench.run_with_wakes()
    assert done.states["a"] == ("held", "sbatch has not answered yet") and done.wake == "1"
    script = wake_script(bench)
    assert f"--begin=now+{sweep.RECHECK_S}\n" in script and "--dependency" not in script


def test_held_jobs_wait_for_another_sweep(bench: Bench) -> None:
    """A sweep whose jobs were all held, with none in the queue, ended for good."""
    accept(bench, "$n -le 9")
    bench.sweep = replace(bench.sweep, profile=bench.profile.model_copy(update={"max_queued": 1}))
    show(
        bench,
        f"90|RUNNING|1|0:00||None|{ME}|main|lewel-other",
        f"91|PENDING|1|0:00||None|{ME}|main|lewel-wake-x-y",
    )
    done = bench.run_with_wakes()
    assert done.count("held") == 2 and done.wake == "1"
    assert "--dependency=afterany:90\n" in wake_script(bench)


def test_held_jobs_wait_for_any_task(bench: Bench) -> None:
    """The sweep's own task may be long, while others make room."""
    accept(bench, "$n -le 9")
    bench.sweep = replace(bench.sweep, profile=bench.profile.model_copy(update={"max_queued": 2}))
    show(bench, f"90|RUNNING|1|0:00||None|{ME}|main|lewel-other")
    done = bench.run_with_wakes()
    assert [state for state, _ in done.states.values()] == ["submit", "held"]
    assert "--dependency='afterany:1?afterany:90'\n" in wake_script(bench)


def test_a_stuck_planning_job_is_replaced(bench: Bench) -> None:
    accept(bench, "$n -le 9")
    stand_in(bench.root.parent / "bin", "scancel", f"echo $@ > {bench.root.parent}/cancelled")
    assert bench.run_with_wakes().wake == "3"
    a, b, wake = answered(bench)
    living = line(a, "RUNNING"), line(b, "RUNNING")
    show(bench, *living, line(wake, "PENDING", "Priority"))
    assert bench.run_with_wakes().wake == "3"
    show(bench, *living, line(wake, "PENDING", "PartitionConfig"))
    done = bench.run_with_wakes()
    assert done.wake == "4" and "PartitionConfig" in done.stuck["planning job 3"]
    assert done.stuck["planning job 3"].endswith("; job 4 replaces it")
    assert (bench.root.parent / "cancelled").read_text() == "3\n"


def test_a_planning_job_that_cannot_be_cancelled_is_harmless(bench: Bench) -> None:
    """An error was reported, and the new planning job was not."""
    accept(bench, "$n -le 9")
    stand_in(bench.root.parent / "bin", "scancel", "echo slow >&2; exit 1")
    bench.run_with_wakes()
    a, b, wake = answered(bench)
    living = line(a, "RUNNING"), line(b, "RUNNING")
    show(bench, *living, line(wake, "PENDING", "PartitionConfig"))
    done = bench.run_with_wakes()
    assert done.wake == "4" and not done.error


def test_a_planning_job_that_a_user_holds_is_kept(bench: Bench) -> None:
    accept(bench, "$n -le 9")
    bench.run_with_wakes()
    a, b, wake = answered(bench)
    held_line = line(wake, "PENDING", "JobHeldUser")
    for living in ([line(a, "RUNNING"), line(b, "RUNNING")], [line(a, "RUNNING")]):
        show(bench, *living, held_line)  # the second time b is lost, and submitted again
        done = bench.run_with_wakes()
        assert done.wake == "3" and done.stuck["planning job 3"].endswith(
            "release it with scontrol release"
        )
    assert len(done.submitted) == 1


def test_jobs_of_a_local_run_are_not_submitted(bench: Bench) -> None:
    accept(bench, "$n -le 9")
    bench.sweep = replace(bench.sweep, busy=lambda keys: {"a"}.intersection(keys))
    done = bench.run()
    assert [batch.tasks for batch in done.submitted.values()] == [(("b",),)]
    assert done.states["a"] == ("local", "")


def test_jobs_that_need_a_local_run_are_checked_later(bench: Bench) -> None:
    """The sweep ended, because none of its own jobs could wake a pass."""
    accept(bench, "$n -le 9")
    bench.jobs[1:] = [PlannedJob("b", "light", ("a",))]
    bench.sweep = replace(bench.sweep, busy=lambda keys: {"a"}.intersection(keys))
    done = bench.run_with_wakes()
    assert [state for state, _ in done.states.values()] == ["local", "waiting"]
    script = wake_script(bench)
    assert done.wake == "1" and f"--begin=now+{sweep.RECHECK_S}\n" in script
    assert "--dependency" not in script
    show(bench, line(answered(bench)[0], "PENDING", "BeginTime"))
    assert bench.run_with_wakes().wake == "1"


def test_a_planning_job_waits_shorter_for_another_planner(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WOKEN_LOCK_S", 0.01)
    with (
        Ledger(bench.root).lock(),
        pytest.raises(PlannerBusy, match=r"lock for 0\.01 s while planning"),
    ):
        bench.run(attended=False)


def test_jobs_of_another_cluster_are_not_taken_for_lost(bench: Bench) -> None:
    accept(bench, "$n -le 9")
    bench.run()
    away = CONFIG.replace("stand-in", "away")
    stand_in(bench.root.parent / "bin", "scontrol", f"printf '{away}'")
    for look in (
        lambda: survey.live_jobs(bench.root),
        lambda: sweep.preview(bench.sweep, bench.jobs),
        lambda: actions.cancel(bench.root, ["a"]),
    ):
        with pytest.raises(ForeignCluster, match="submitted to the cluster 'stand-in'"):
            look()


def test_cancel_writes_each_submission_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(bench.root.parent / "bin", "scancel", "true")
    books = Ledger(bench.root)
    submission = books.record_intent(kind="light", tasks=tuple((f"k{i}",) for i in range(50)))
    books.record_submitted(submission.uid, "7")
    show(bench, *(f"7_{i}|PENDING|1|0:00||None|{ME}|main|{submission.name}" for i in range(50)))
    written: list[str] = []
    monkeypatch.setattr(
        Ledger, "record_ended", lambda self, entry: written.append(entry.submission.uid)
    )
    assert len(actions.cancel(bench.root, [f"k{i}" for i in range(50)])) == 50
    assert written == [submission.uid]


OTHER = ME + 70_000  # a user without a name


def submitted_by_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> LedgerEntry:
    with monkeypatch.context() as patched:
        patched.setattr(ledger.os, "getuid", lambda: OTHER)
        accept(bench, "$n -le 9")
        bench.run()
    return answered(bench)[0]


def test_squeue_is_called_for_every_user_of_the_ledger(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.jobs = bench.jobs[:1]
    theirs = submitted_by_another(bench, monkeypatch)
    folder = bench.root.parent
    living = line(theirs, "RUNNING").replace(f"|{ME}|", f"|{OTHER}|")
    stand_in(folder / "bin", "squeue", f'echo "$@" > {folder}/asked; echo "{living}"')
    done = bench.run()
    assert done.states["a"] == ("live", "") and not done.submitted
    assert f"-u {ME},{OTHER} " in (folder / "asked").read_text()
    # another user's jobs neither count against this user's limit nor make room
    bench.sweep = replace(bench.sweep, profile=bench.profile.model_copy(update={"max_queued": 1}))
    bench.add("c", "pretrain")
    assert bench.run().states["c"][0] == "submit"


def test_hidden_jobs_of_another_user_are_not_taken_for_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted_by_another(bench, monkeypatch)
    monkeypatch.setattr(ledger.os, "getuid", lambda: OTHER + 1)
    stand_in(bench.root.parent / "bin", "scontrol", f"printf '{CONFIG}PrivateData = jobs,usage\\n'")
    for look in (bench.run, lambda: survey.live_jobs(bench.root)):
        with pytest.raises(
            ForeignCluster, match=f"user {OTHER} has submitted jobs.*PrivateData=jobs"
        ):
            look()
