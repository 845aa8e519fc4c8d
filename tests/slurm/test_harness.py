"""`lewel-bench run --cluster lab` on a real SLURM, at a tiny scale."""

import json
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import command, environment
from lab import Lab, until

from lewel_bench.slurm import queue
from tests.evals.checkpoints import layouts
from tests.harness.test_end_to_end import PROTOCOLS, TINY, records

SITE = """\
[clusters.lab]
wake_delay_s = 0
[clusters.lab.defaults]
timeout_min = 10
signal_delay_s = 30
[clusters.lab.kinds.semi]
pack = 2
[clusters.two]
[clusters.two.defaults]
timeout_min = 10
signal_delay_s = 30
nodes = 2
tasks_per_node = 2
[clusters.two.kinds.light]
nodes = 1
tasks_per_node = 1
"""
SHARED = {**TINY, "args.queue": 64, "epochs": 2}


def words(images: Path, evals: tuple[str, ...] = (), **more: Any) -> list[str]:
    settings = {**SHARED, **more}
    for name in evals:
        settings |= {f"{name}.{k}": v for k, v in PROTOCOLS[name].items()}
    words = ["run", "--method", "lewel_m,moco_v2", "--epochs", "200", "--suite", "shapes"]
    words += ["--evals", ",".join(evals) or "none", "--data", str(images), "--workers", "0"]
    for name, value in settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return words


class Here:
    """A working directory with a site file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "runs"
        (folder / "lewel-bench.toml").write_text(SITE)
        (folder / "pretrain").mkdir()  # must not shadow lewel_bench.pretrain
        (folder / "pretrain" / "__init__.py").write_text("raise SystemExit('the wrong pretrain')")

    def bench(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words),
            cwd=self.folder,
            # named, because some profiles name programs
            env=environment(
                PYTHONSAFEPATH="1", LEWEL_BENCH_CONFIG=str(self.folder / "lewel-bench.toml"), **more
            ),
            capture_output=True,
            text=True,
            timeout=200,
        )

    def status(self) -> dict[str, dict[str, Any]]:
        shown = self.bench("status", "--format", "json", "--cluster", "lab")
        assert shown.returncode == 0, shown.stderr
        return {job["key"]: job for job in json.loads(shown.stdout)["jobs"]}

    def logs(self) -> str:
        paths = (self.root / ".slurm" / "logs").glob("*/*log*")
        return "\n".join(f"== {p}\n{p.read_text()}" for p in paths)


@pytest.fixture
def here(lab: Lab, tmp_path: Path) -> Here:
    return Here(tmp_path)


def measured(root: Path) -> dict[str, Any]:
    """The results that must not depend on where and how a job ran."""
    measurements = {}
    for name, record in records(root).items():
        outcome = {k: v for k, v in record["outcome"].items() if k != "attempts"}
        measurements[name] = (record["metrics"], outcome, record["checkpoint"])
    return measurements


def test_a_table_fills_without_its_client(here: Here, images: Path, tmp_path: Path) -> None:
    asked = words(images, ("linear_lars", "semi_1pct"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    first = here.bench(*asked, "--cluster", "lab")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime
    print(f"submitted in {time.monotonic() - began:.1f} s ({cpu:.1f} s of CPU)")
    assert cpu < 5  # the tests share the machine with the jobs
    assert first.returncode == 0, first.stderr
    assert "2 submitted now" in first.stdout and "will submit jobs as they become" in first.stdout
    states = {job["state"] for job in here.status().values()}
    assert states and states <= {"queued", "running", "missing"}
    again = here.bench(*asked, "--cluster", "lab")
    assert " pretrain jobs in " not in again.stdout, again.stdout
    site = here.folder / "lewel-bench.toml"
    site.write_text(SITE.replace("clusters.lab", "clusters.renamed"))  # the jobs keep their profile

    def over() -> bool:
        return not any(task.is_alive for task in queue.tasks())

    until(over, 240)
    site.write_text(SITE)
    assert {job["state"] for job in here.status().values()} == {"done"}, here.logs()
    last = here.bench(*asked, "--cluster", "lab")
    assert "nothing to do" in last.stdout
    (tmp_path / "local").mkdir()
    local = Here(tmp_path / "local")
    done = local.bench(*asked)
    assert done.returncode == 0, done.stderr
    assert measured(here.root) == measured(local.root)
    record = next(iter(records(here.root).values()))
    (attempt,) = record["outcome"]["attempts"]
    assert attempt["outcome"] == "done" and attempt["seconds"] > 0
    (final, *_) = (r for r in records(here.root).values() if r["kind"] == "final")
    half = here.root / final["key"] / "record.json"
    half.write_text(half.read_text()[:100])  # as after a full disk or an incomplete copy
    refused = here.bench(*asked, "--cluster", "lab")
    assert refused.returncode == 2 and f"{half}: incomplete" in refused.stderr
    again = here.bench(*asked, "--cluster", "lab", "--replace-corrupt")
    assert "1 submitted now" in again.stdout, again.stdout + again.stderr
    until(over, 120)
    assert measured(here.root) == measured(local.root)


def test_two_nodes_of_two_processes_train_as_torchrun_does(
    here: Here, images: Path, tmp_path: Path
) -> None:
    asked = words(images)
    asked[asked.index("lewel_m,moco_v2")] = "lewel_m"
    first = here.bench(*asked, "--cluster", "two")
    assert first.returncode == 0, first.stderr
    until(lambda: not any(t.is_alive for t in queue.tasks()), 200)
    (tmp_path / "local").mkdir()
    local = Here(tmp_path / "local")
    done = local.bench(*asked, "--processes", "4")
    assert done.returncode == 0, done.stderr
    assert measured(here.root) == measured(local.root), here.logs()
    assert {r["environment"]["processes"] for r in records(here.root).values()} == {"4"}


def test_mistakes_exit_2_in_one_line(here: Here, images: Path) -> None:
    asked = words(images)
    site = here.folder / "lewel-bench.toml"

    def mistake(name: str, *more: str, **variables: str) -> str:
        done = here.bench(*asked, "--cluster", name, *more, **variables)
        assert done.returncode == 2, done.stdout + done.stderr
        (line,) = done.stderr.strip().splitlines()
        return line

    assert "unknown cluster 'lba'. Did you mean 'lab'?" in mistake("lba")
    defaults = "[clusters.x.defaults]\ntimeout_min = 10\nsignal_delay_s = 30\n"
    for setting, message in (
        ("partition = 'mian'", "unknown partition 'mian'. Did you mean 'main'?"),
        ("cpus_per_task = 500", "need 500 per node, but no node of the default partition has more"),
        ("nodes = 9", "nodes 9, but the default partition has 2 such nodes"),
        ("constraint = 'moon'", "nvalid"),
    ):
        site.write_text(f"{SITE}{defaults}{setting}\n")
        assert message in mistake("x")
    site.write_text(SITE)
    blocked = here.folder / "blocked"
    blocked.mkdir()
    (blocked / ".slurm").write_text("a file")
    assert "choose another --root" in mistake("lab", "--root", str(blocked))
    bare = here.folder / "bin"
    bare.mkdir()
    assert "not found: run this on a login node" in mistake("lab", PATH=str(bare))
    books = here.root / ".slurm"
    books.mkdir(parents=True, exist_ok=True)
    (books / "cluster.json").write_text(json.dumps({"profile": "far", "cluster": "elsewhere"}))
    assert "were submitted to the cluster 'elsewhere'" in mistake("lab")
    assert not any(task.is_alive for task in queue.tasks())


def test_doctor(here: Here) -> None:
    sound = here.bench("doctor", "--cluster", "lab")
    assert sound.returncode == 0, sound.stdout
    assert "ran on 127.0.0." in sound.stdout and "created once and locked" in sound.stdout
    bare = here.folder / "python3"
    bare.write_text("#!/bin/bash\necho 'No module named submitit' >&2; exit 1\n")
    bare.chmod(0o755)
    site = SITE.replace("[clusters.lab]\n", f"[clusters.lab]\npython = '{bare}'\n", 1)
    (here.folder / "lewel-bench.toml").write_text(site)
    broken = here.bench("doctor", "--cluster", "lab")
    assert broken.returncode == 2
    assert "No module named submitit" in broken.stdout


def test_cancel_retry_logs_and_dry_run(here: Here, images: Path) -> None:
    asked = words(images, **{"optimizer.lr": 1e30, "schedule.warmup_epochs": 0})
    dry = here.bench(*asked, "--cluster", "lab", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "#SBATCH --array=0-1%2" in dry.stdout and "array of 2 pretrain tasks" in dry.stdout
    assert not any(task.is_alive for task in queue.tasks())
    here.bench(*asked, "--cluster", "lab")
    until(lambda: not any(t.is_alive for t in queue.tasks()), 120)
    status = here.status()
    assert {job["state"] for job in status.values()} == {"failed"}, status
    key = next(iter(status))
    logs = here.bench("logs", key)
    assert "the loss is" in logs.stdout
    failed = here.bench(*asked, "--cluster", "lab")
    assert failed.returncode == 1 and "lewel-bench retry" in failed.stderr
    assert "the next run will submit 1 failed job again" in here.bench("retry", key).stdout
    subprocess.run(["scontrol", "update", "partition=main", "state=down"], check=True)
    try:
        assert "1 submitted now" in here.bench(*asked, "--cluster", "lab").stdout
        assert here.status()[key]["state"] == "queued"
        assert "add --yes" in here.bench("cancel", key).stdout
        assert "cancelled 1 task with 1 of these jobs" in here.bench("cancel", key, "--yes").stdout
    finally:
        subprocess.run(["scontrol", "update", "partition=main", "state=up"], check=True)
    until(lambda: here.status()[key]["state"] == "missing", 20)
    assert here.status()[key]["reason"] == "cancelled; run again to resume"


def test_set_up_lines_that_fail_in_every_kind(here: Here, images: Path) -> None:
    """The jobs and the planning job failed, `status` showed "not started", and `run` submitted
    them again silently."""
    broken = SITE.replace(
        "[clusters.lab.defaults]\n", "[clusters.lab.defaults]\nsetup = ['nomod x']\n"
    )
    (here.folder / "lewel-bench.toml").write_text(broken)
    asked = words(images, ("semi_1pct",))
    asked[asked.index("lewel_m,moco_v2")] = "moco_v2"
    first = here.bench(*asked, "--cluster", "lab")
    assert first.returncode == 0 and "will submit jobs as they become" in first.stdout, first.stderr
    until(lambda: not any(t.is_alive for t in queue.tasks()), 120)
    shown = json.loads(here.bench("status", "--format", "json").stdout)
    (pretraining,) = [job for job in shown["jobs"] if job["kind"] == "pretrain"]
    assert pretraining["reason"].startswith("never started (FAILED); see ")
    assert "nomod: command not found); the next run submits it again" in pretraining["reason"]
    (note,) = [note["note"] for note in shown["cluster"]]
    assert note.startswith("no planning job will submit the ") and "ended as FAILED, see " in note
    assert note.endswith("nomod: command not found): run the same command again")
    again = here.bench(*asked, "--cluster", "lab")
    assert "warning: planning job " in again.stderr
    assert "1 job submitted again after a failure" in again.stderr
    assert again.stderr.count("nomod: command not found") == 2


def test_an_imported_checkpoint_is_evaluated(here: Here, images: Path, tmp_path: Path) -> None:
    """It is checked on the login node; its file may be deleted before the jobs run."""
    path = tmp_path / "moco.pth.tar"
    layouts.write(path, layouts.LAYOUTS["moco v2"].content(layouts.state(1), layouts.state(2)))
    asked = ["eval", "--checkpoint", str(path), "--name", "mine", "--suite", "shapes", "--force"]
    asked += ["--evals", "semi_1pct", "--data", str(images), "--workers", "0"]
    for name, value in PROTOCOLS["semi_1pct"].items():
        asked += ["--set", f"semi_1pct.{name}={json.dumps(value)}"]
    first = here.bench(*asked, "--cluster", "lab")
    assert first.returncode == 0 and "submitted now" in first.stdout, first.stderr
    path.unlink()

    def done() -> bool:
        return {record["kind"] for record in records(here.root).values()} == {
            "import",
            "search",
            "final",
        }

    until(done, 200)


def test_a_plugin_method_runs_as_submitted(here: Here, images: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "own_method.py"
    mine = here.folder / "mine.py"
    mine.write_text(example.read_text())
    asked = ["run", "--method", "./mine.py:recipe", "--suite", "shapes", "--data", str(images)]
    asked += ["--evals", "none", "--workers", "0"]
    settings = {name: value for name, value in TINY.items() if not name.startswith("args.")}
    for name, value in {**settings, "args.dim": 16, "epochs": 2}.items():
        asked += ["--set", f"{name}={json.dumps(value)}"]
    first = here.bench(*asked, "--cluster", "lab")
    assert first.returncode == 0, first.stderr
    mine.write_text("raise SystemExit('edited while the job was queued')")
    until(lambda: not any(t.is_alive for t in queue.tasks()), 120)
    (record,) = records(here.root).values()
    assert (here.root / record["key"] / "method.py").read_text() == example.read_text(), here.logs()
