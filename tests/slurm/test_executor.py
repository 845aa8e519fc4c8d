"""Submission on a real SLURM: speed, the code that runs, several processes, and the mutants whose
harm only shows there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from lab import Bench, Lab, until

from lewel_bench.slurm import (
    actions,
    attempt,
    executor,
    in_job,
    ledger,
    queue,
    snapshot,
    survey,
)
from lewel_bench.slurm.ledger import Submission
from lewel_bench.slurm.profile import load_profile


def test_a_thousand_jobs_in_seconds_and_one_call_to_see_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(1200):
        bench.add(f"c{i:04d}")
    subprocess.run(["scontrol", "update", "partition=main", "state=down"], check=True)
    try:
        began, cpu = time.monotonic(), time.process_time()
        done = bench.run()
        spent, cpu = time.monotonic() - began, time.process_time() - cpu
        print(f"1200 jobs in {spent:.2f} s ({cpu:.2f} s of CPU)")
        assert [len(batch.tasks) for batch in done.submitted.values()] == [1000, 200]
        assert cpu < 5
        calls = []
        ask = queue.ask
        monkeypatch.setattr(queue, "ask", lambda c, *r: calls.append(c) or ask(c, *r))
        live = survey.live_jobs(bench.root)
        assert len(live) == 1200 and len(calls) == 1
        assert sorted(job.position for job in live.values()) == list(range(1, 1201))
        assert len(actions.cancel(bench.root, list(live))) == 1200
    finally:
        subprocess.run(["scontrol", "update", "partition=main", "state=up"], check=True)
    until(bench.idle)


def test_a_record_without_a_job_makes_jobs_ready(bench: Bench) -> None:
    """An imported checkpoint has a record, but no job in the sweep that evaluates it."""
    bench.add("a", needs=["imported"])
    assert bench.run().states["a"][0] == "waiting"
    (bench.root / "imported").mkdir()
    (bench.root / "imported" / "record.json").write_text("{}")
    assert bench.run().states["a"][0] == "submit"
    until(lambda: bench.run().states["a"][0] == "done")


def test_queued_jobs_run_the_submitted_code(bench: Bench, tmp_path: Path) -> None:
    """The checkout is edited, and a folder `pretrain/` appears, between submit and start."""
    checkout = tmp_path / "checkout"
    package = checkout / "lewel_bench"
    shutil.copytree(
        executor.package_folder(), package, ignore=shutil.ignore_patterns("__pycache__")
    )
    wanted = package / "slurm" / "wanted.py"
    wanted.write_text(
        "import sys\nfrom pathlib import Path\nfrom lewel_bench.files import create_json\n"
        "import lewel_bench.pretrain\n"
        "create_json(Path(sys.argv[1]) / 'record.json', {'code': 'then'})\n"
    )
    bench.add("a")
    bench.sweep = replace(
        bench.sweep, package=package, command=("-m", "lewel_bench.slurm.wanted", "{folder}")
    )
    subprocess.run(["scontrol", "update", "partition=main", "state=down"], check=True)
    before = Path.cwd()
    try:
        os.chdir(checkout)
        bench.run()
        for name in ("pretrain", "submitit"):
            (checkout / name).mkdir()
            (checkout / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
        for path in package.rglob("*.py"):
            path.write_text("raise SystemExit('edited')")
    finally:
        os.chdir(before)
        subprocess.run(["scontrol", "update", "partition=main", "state=up"], check=True)
    bench.finish()
    assert json.loads((bench.root / "a" / "record.json").read_text()) == {"code": "then"}


def test_a_snapshot_records_its_commit(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    package = checkout / "thing"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")

    def git(*words: str) -> str:
        names = ("-c", "user.name=t", "-c", "user.email=t@t")
        command = ["git", "-C", str(checkout), *names, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    first = snapshot.take(package, tmp_path / "code")
    assert snapshot.take(package, tmp_path / "code") == first
    assert snapshot.take(first / "thing", tmp_path / "elsewhere") == first
    content = json.loads((first / snapshot.SNAPSHOT).read_text())
    assert content == {
        "commit": git("rev-parse", "HEAD").strip(), "dirty": False, "diff": "", "untracked": []
    }  # fmt: skip
    (package / "__init__.py").write_text("x = 2\n")
    (package / "new.py").write_text("")
    second = snapshot.take(package, tmp_path / "code")
    assert second != first and (first / "thing" / "__init__.py").read_text() == "x = 1\n"
    content = json.loads((second / snapshot.SNAPSHOT).read_text())
    assert content["dirty"] and "+x = 2" in content["diff"] and content["untracked"] == ["new.py"]


def test_a_dead_rank_ends_the_job(lab: Lab, tmp_path: Path) -> None:
    bench = Bench(
        tmp_path / "runs",
        defaults={"nodes": 2, "tasks_per_node": 2, "timeout_min": 10, "signal_delay_s": 30},
    )
    bench.add("a")
    code = (
        "import os, sys, time, signal, pathlib\n"
        "names = 'RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT'.split()\n"
        "path = pathlib.Path(sys.argv[1]) / ('rank' + os.environ['RANK'])\n"
        "path.write_text(' '.join(os.environ[n] for n in names))\n"
        "while len(list(path.parent.glob('rank[0-9]'))) < 4: time.sleep(0.1)\n"
        "if os.environ['RANK'] == '3': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(100)\n"
    )
    bench.sweep = replace(bench.sweep, command=("-c", code, "{folder}"))
    bench.run()
    until(lambda: len(list((bench.root / "a").glob("rank[0-9]"))) == 4)
    began = time.monotonic()
    until(bench.idle, 15)
    print(f"a dead rank ended the job after {time.monotonic() - began:.1f} s")
    ranks = [(bench.root / "a" / f"rank{i}").read_text().split() for i in range(4)]
    assert [rank[:4] for rank in ranks] == [
        ["0", "4", "0", "2"], ["1", "4", "1", "2"], ["2", "4", "0", "2"], ["3", "4", "1", "2"]
    ]  # fmt: skip
    assert len({tuple(rank[4:]) for rank in ranks}) == 1
    assert bench.run().states["a"][0] == "submit"


def test_the_environment_of_a_job_does_not_leak() -> None:
    inherited = {
        "SLURM_CONF": "c", "SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1", "SBATCH_X": "",
        "A": "b",
        "SUBMITIT_EXECUTOR": "slurm", "MASTER_ADDR": "n1", "RANK": "0", "CUDA_VISIBLE_DEVICES": "0",
        attempt.CLAIM_VARIABLE: "x", in_job.WAKE: "u", "PYTHONPATH": ".:/somewhere:relative",
    }  # fmt: skip
    assert executor.clean_environment(inherited, Path("/code")) == {
        "SLURM_CONF": "c", "A": "b", "PYTHONSAFEPATH": "1", "PYTHONPATH": "/code:/somewhere"
    }  # fmt: skip


def test_a_planner_that_keeps_its_environment_is_caught(bench: Bench) -> None:
    """The mutant of test_planning_inside_an_array_task: its jobs take themselves for task 1."""
    bench.add("a", ticks=2)
    mutant = (
        "import sys, runpy; from lewel_bench.slurm import executor; "
        "old = executor.clean_environment; "
        "executor.clean_environment = lambda e, c: {**e, **old(e, c)}; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", mutant, *bench.planner_command()[1:]]
    words = ["sbatch", "--array=1-1", "-n2", "-o", str(bench.root / "planner.log")]
    wrapped = f"--wrap={shlex.join(command)}"
    subprocess.run([*words, wrapped], check=True, env=bench.planner_environment())
    logs = bench.root / ".slurm" / "logs"
    seen: list[str] = []

    def loads() -> list[str]:
        text = "".join(p.read_text() for p in logs.glob("*/*log*"))
        seen[:] = re.findall(
            r"Loading pickle: .*/(\S+)_0_submitted.pkl|Loading.*/(\S+)_submitted", text
        )
        return seen

    until(loads)
    print(seen)
    entry = next(iter(ledger.Ledger(bench.root).entries()))
    assert entry.id not in str(seen)


def test_without_fencing_split_brain_is_caught(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies that both keep their claim violate what test_split_brain checks."""
    package = bench.root.parent / "mutant" / "lewel_bench"
    shutil.copytree(
        executor.package_folder(), package, ignore=shutil.ignore_patterns("__pycache__")
    )
    path = package / "slurm" / "attempt.py"
    text = path.read_text()
    claim_line = 'return claim.get("attempt") == name'
    assert claim_line in text
    path.write_text(text.replace(claim_line, "return True"))
    bench.sweep = replace(bench.sweep, package=package)
    bench.add("a", ticks=100, tick_s=0.1, save_every=1000)
    bench.run()
    until(lambda: bench.ticks("a") >= 10)
    node = bench.attempts("a")[0].node
    lab.node("stop", node)
    lab.node("down", node)
    until(lambda: len(bench.attempts("a")) == 2)
    bench.finish()
    assert bench.ticks("a") > 150  # both ran to the end
    assert "late" in bench.commits("a")  # only the hard link kept the second from committing


def test_planners_without_a_lock_are_caught(bench: Bench) -> None:
    """The mutant of test_three_planners_in_the_same_second."""
    rounds = 10
    for i in range(rounds):
        bench.add(f"r{i:02d}", ticks=0)
    mutant = (
        "import sys, runpy, contextlib; from lewel_bench.slurm.ledger import Ledger; "
        "Ledger.lock = lambda *_: contextlib.nullcontext(); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", mutant, *bench.planner_command(str(rounds))[1:]]
    planners = [subprocess.Popen(command, env=bench.planner_environment()) for _ in range(3)]
    assert [planner.wait(100) for planner in planners] == [0, 0, 0]
    submitted = sum(
        len(entry.submission.tasks) for entry in ledger.Ledger(bench.root).entries() if entry.id
    )
    assert submitted > rounds
    bench.finish()
    assert all("first" in bench.commits(job.key) for job in bench.jobs)


def test_scripts_follow_the_rules(tmp_path: Path) -> None:
    """Needs no cluster."""
    if shutil.which("srun") is None:
        pytest.skip("submitit needs srun")
    profile = load_profile("preemptible", {})
    submission = Submission("UID", "pretrain", (("a",), ("b",)), code="/code")
    books = ledger.Ledger(tmp_path)
    options = executor.SbatchOptions(profile.kinds["pretrain"], "afterany:7")
    text = executor.script(profile, books, submission, options)
    for line in (
        "#SBATCH --array=0-1%2", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4", "#SBATCH --constraint='a100|h100'", "#SBATCH --requeue",
        "#SBATCH --signal=USR2@180", "#SBATCH --job-name=lewel-UID", "#SBATCH --open-mode=append",
        "#SBATCH --dependency=afterany:7", "set -e", 'export TMPDIR="/local/$USER"',
    ):  # fmt: skip
        assert line in text, text
    assert "export PYTHONSAFEPATH=1 PYTHONPATH=/code" in text
    assert "--kill-on-bad-exit=1 --cpus-per-task=8 apptainer exec --nv" in text
