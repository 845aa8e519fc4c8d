"""The command line as a user types it: help, lists, mistakes, speed."""

import json
import resource
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import planning
import pytest
from command_line import Bench, command, environment

import lewel_bench
from lewel_bench.evals.dataset import Dataset
from lewel_bench.harness.cli import main
from lewel_bench.harness.plan import suites
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import record
from lewel_bench.results.record import Checkpoint, Data, Record

ROLES = ("train", "select", "report")
RUN = ("run", "--suite", "shapes", "--method", "lewel_m", "--epochs", "200")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--method", "lewelb", "--epochs", "200"], "Did you mean 'lewel_b'"),
        (["run", "--method", "lewel_b", "--epochs", "200"], "--suite shapes"),
        (["run", "--suite", "shape", "--table", "1"], "Did you mean 'shapes'"),
        (["run", "--suite", "shapes", "--table", "99"], "unknown table '99'"),
        ([*RUN[:-1], "0"], "at least 1"),
        ([*RUN, "--set", "optimizer.lr=-0.1"], "optimizer.lr"),
        ([*RUN, "--set", "optimiser.lr=0.1"], "Did you mean 'optimizer'"),
        ([*RUN, "--set", "args.headz=2"], "unknown argument of lewel_m"),
        ([*RUN, "--set", "lr"], "KEY=VALUE"),
        ([*RUN, "--set", "batch=50"], "not divisible"),
        ([*RUN, "--set", "epochs=0"], "epochs"),
        ([*RUN, "--set", "linear_lars.lrs=0.1"], "a list, such as [0.1, 0.2]"),
        ([*RUN, "--seeds", "x"], "--seeds"),
        ([*RUN, "--seeds", str(2**64)], "for one seed write"),
        ([*RUN, "--seeds", f"0,{2**32}"], "is more than 4294967295"),
        ([*RUN, "--evals", "linaer"], "Did you mean 'linear'"),
        ([*RUN, "--data", "/does/not/exist"], "no folder"),
        ([*RUN, "--data", "pretran=/tmp"], "Did you mean 'pretrain'"),
        ([*RUN, "--processes", "0"], "processes"),
        ([*RUN, "--device", "tpu"], "use cpu, cuda or cuda:N"),
        ([*RUN, "--lrs=-1"], "lrs.0: Input should be greater than 0 (got -1.0)"),
        (["run", "--suite", "shapes", "--method", "lewelm_200ep"], "Nearest of"),
        ([*RUN, "--root", ""], "--root is empty"),
        ([*RUN, "--dry-run", "--probe", "0"], "--probe must be at least 2, got 0"),
        ([*RUN, "--root", "/proc/none"], "cannot write to the run root /proc/none"),
        ([*RUN, "--set", "linear_lars.epochs=0"], "linear_lars: epochs"),
        ([*RUN, "--jobs", "0"], "jobs"),
        ([*RUN, "--jobs", "2", "--processes", "2"], "among single-process jobs"),
        ([*RUN, "--jobs", "2", "--cluster", "a100"], "--jobs is for this machine only"),
        (
            [*RUN, "--processes", "2", "--cluster", "a100"],
            "on a cluster set tasks_per_node in its profile",
        ),
        ([*RUN, "--device", "coda", "--cluster", "a100"], "use cpu, cuda or cuda:N"),
        (["table", "1", "--suite", "shapes", "--format", "mdd"], "Did you mean 'md'"),
        (["table", "seven"], "unknown table"),
        (["explain", "table1:lewel_x:200:top1"], "Did you mean 'lewel_"),
        (["explain", "table1:lewel_m:200:top2"], "200:top1"),
        (["explain", "tabel1"], "is not a cell"),
        (["explain", "table8:lewel_m:200:2x:box_ap"], "is blank in the paper"),
        (["explain", "table9:byol:overhead"], "BYOL is a baseline"),
        (["ls", "recipe"], "Did you mean 'recipes'"),
        (["status", "--state", "don"], "Did you mean 'done'"),
        (["data", "check", "/does/not/exist"], ""),
        (["frobnicate"], "unknown command 'frobnicate'"),
    ],
)
def test_mistakes_exit_2_in_one_message(bench: Bench, arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_site_file_mistakes(tmp_path: Path, bench: Bench) -> None:
    (tmp_path / "lewel-bench.toml").write_text("rnus = 'x'")
    done = bench("status")
    assert done.returncode == 2 and "Did you mean 'runs'" in done.stderr
    (tmp_path / "lewel-bench.toml").write_text("runs = ")
    done = bench("status")
    assert done.returncode == 2 and "not valid TOML" in done.stderr


@pytest.mark.parametrize(
    "what", ["methods", "recipes", "protocols", "tables", "suites", "conflicts", "runs"]
)
def test_lists(bench: Bench, what: str) -> None:
    done = bench("ls", what, "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows or what == "runs"
    assert bench("ls", what).returncode == 0


def test_dry_run_starts_nothing(bench: Bench, tmp_path: Path) -> None:
    done = bench(*RUN, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "lewel_m_200ep" in done.stdout and "\nto run: " in done.stdout
    assert not list(tmp_path.glob("runs/*/spec.json"))


def _seconds(arguments: list[str], cwd: Path) -> float:
    """Processor seconds of a command (one thread: what a user waits on an idle machine)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(*arguments), cwd=cwd, env=environment(), check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["ls", "methods"], ["ls", "recipes"], ["status"], ["table", "1"]],
    ids=" ".join,
)
def test_starts_quickly(arguments: list[str], tmp_path: Path) -> None:
    """The bar is 0.5 s; 1.5 here leaves room for a slow machine. torch alone would take 3."""
    assert min(_seconds(arguments, tmp_path) for _ in range(3)) < 1.5


def _many_records(root: Path, count: int) -> None:
    """Finished Table 1 cells of the shapes suite, seed after seed."""
    suite = suites.SUITES["shapes"]
    now = datetime.now(UTC)
    made = seed = 0

    def dataset(name: str, role: str) -> Dataset:
        from lewel_bench.harness.plan.datasets import shapes_id

        return Dataset(name=name, id=shapes_id(), root="")

    while made < count:
        for name in ("lewel_m_200ep", "moco_v2_200ep", "lewel_m_100ep", "moco_v2_100ep"):
            for job in planning.chain(RECIPES[name], ["linear_lars"], seed, suite, dataset):
                record.commit(
                    root / job.key,
                    Record(
                        key=job.key,
                        kind=job.kind,
                        name=job.name,
                        spec=job.identity(),
                        seed=seed,
                        metrics={"top1": 50 + seed / 100, "top5": 90.0},
                        commit="c",
                        dirty=False,
                        version="0",
                        command=" ".join(command(*RUN, "--seeds", "625", "--data", str(root))),
                        environment={"device": "NVIDIA H100 80GB HBM3", "threads": "16"},
                        data={
                            r: Data(name="shapes", fingerprint="f" * 64, images=9) for r in ROLES
                        },
                        checkpoint=Checkpoint(file="backbone.safetensors", sha256="0" * 64),
                        upstream=() if job.upstream is None else (job.upstream,),
                        started=now,
                        finished=now,
                        seconds=1.0,
                    ),
                )
                made += 1
        seed += 1


def test_a_run_root_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt --root looks like one where nothing is measured yet."""
    for words in (["table", "5", "--format", "csv"], ["explain", "table1:lewel_m:200:top1"]):
        for root, message in (
            (tmp_path, ""),
            (tmp_path / "no", f"no run root {tmp_path / 'no'} yet"),
        ):
            assert main([*words, "--root", str(root)]) == 0
            assert (error := capsys.readouterr().err).count("\n") == bool(
                message
            ) and message in error


def test_a_list_in_a_pipe_has_a_line_a_row(bench: Bench) -> None:
    done = bench("ls", "conflicts")
    result = bench("ls", "conflicts", "--format", "json")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(json.loads(result.stdout))
    assert {line[lines[0].index("the paper") - 1] for line in lines} == {" "}


def test_five_thousand_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars are 2 s, 5 for the report and 0.75 for a DataFrame; the rest is room for a slow
    machine."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    root = tmp_path / "runs"
    _many_records(root, 5000)
    assert _seconds(["table", "all", "--suite", "shapes", "--root", str(root)], tmp_path) < 10
    for form in ("text", "json"):
        assert _seconds(["status", "--root", str(root), "--format", form], tmp_path) < 10
    begun = time.process_time()
    assert len(lewel_bench.open_root(root).records()) == 5000
    assert time.process_time() - begun < 5
    written = ["report", "report.html", "--suite", "shapes", "--root", str(root)]
    assert _seconds(written, tmp_path) < 20
    assert (tmp_path / "report.html").stat().st_size < 5e6
    done = subprocess.run(
        command("table", "1", "--suite", "shapes", "--root", str(root), "--format", "json"),
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    (row,) = [r for r in json.loads(done.stdout)["rows"] if r["recipe"] == "lewel_m"]
    cell = row["cells"]["200:top1"]
    assert cell["n"] == 625 and cell["mean"] == pytest.approx(50 + 624 / 200)
