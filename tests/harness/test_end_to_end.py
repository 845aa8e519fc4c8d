"""The main job through the real command line, in processes of their own, at a tiny scale."""

import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import Bench, command, environment, write_images
from PIL import Image

TINY = {
    "image_size": 32, "backbone.width": 8, "epochs": 3, "batch": 16, "bn_group": 8,
    "schedule.warmup_epochs": 1, "args.hidden": 16,
}  # fmt: skip
EVALUATION = {"image_size": 32, "resize": 36, "batch": 16, "held_out": 6}
PROTOCOLS = {
    "linear_lars": {**EVALUATION, "epochs": 10},
    "linear_sgd": {**EVALUATION, "epochs": 3, "milestones": [2]},
    "semi_1pct": {**EVALUATION, "epochs": 2, "milestones": [1], "head_lrs": [0.1]},
    "semi_10pct": {**EVALUATION, "epochs": 2, "milestones": [1], "head_lrs": [0.1]},
}
METHODS = {
    "lewel_m": {"args.queue": 64, "args.d": 16},
    "moco_v2": {"args.queue": 64, "args.dim": 16},
    "lewel_b": {"args.d": 16},
    "byol": {"args.dim": 16},
}
# The others keep what they know in the same checkpoints, which tests/pretrain/test_train.py stops
# and goes on from; being killed takes them a minute more.
OTHERS: dict[str, dict[str, Any]] = {
    "densecl": {"args.queue": 64, "args.dim": 16},
    "instdisc": {"args.m": 20, "args.dim": 16, "args.hidden": None},
    "pcl": {"args.queue": 64, "args.dim": 16, "args.clusters": "4,6", "args.warmup": 0},
    "resim": {"args.queue": 64, "args.dim": 16, "args.fpn": 8, "args.near": 12},
    "simsiam": {"args.dim": 16},
    "barlow_twins": {"args.dim": 16, "bn_group": None},
    "simclr": {"args.dim": 16, "bn_group": None},
    "swav": {
        "args.dim": 16, "args.prototypes": 8, "args.queue": 96, "args.queue_from": 0,
        "bn_group": None,
    },
    "moco_v2_symmetric": {"args.queue": 64, "args.dim": 16},
    "pixpro_400ep": {"args.dim": 16},
    "supervised_90ep": {"args.hidden": None},
}  # fmt: skip
SLOW = bool(os.environ.get("LEWEL_BENCH_SLOW"))


def arguments(images: Path, method: str, evals: tuple[str, ...], **more: Any) -> list[str]:
    """`run` at the tiny scale."""
    settings = {**TINY, **(METHODS | OTHERS)[method], **more}
    settings = {k: v for k, v in settings.items() if k != "args.hidden" or v is not None}
    length = [] if method.endswith("ep") else ["--epochs", "200"]
    for name in evals:
        settings |= {f"{name}.{k}": v for k, v in PROTOCOLS[name].items()}
    words = ["--suite", "shapes", "--data", str(images)]
    for name, value in settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return [
        "run", "--method", method, *length, "--evals", ",".join(evals) or "none",
        "--workers", "1", *words,
    ]  # fmt: skip


def records(root: Path) -> dict[str, dict[str, Any]]:
    """The records under a root, by name of the job."""
    loaded = [json.loads(path.read_text()) for path in root.glob("*/record.json")]
    return {f"{file['name']}/{file['key']}": file for file in loaded}


def results(root: Path) -> dict[str, Any]:
    """What must not depend on how a run went: metrics, outcomes and hashes of checkpoints."""
    return {
        name: (record["metrics"], record["outcome"], record["checkpoint"])
        for name, record in records(root).items()
    }


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    """The events of the one job of a kind."""
    for folder in root.glob("*/spec.json"):
        if json.loads(folder.read_text())["kind"] == kind:
            path = folder.parent / "events.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            return [json.loads(line) for line in lines if line.endswith("}")]
    return []


def start(cwd: Path, words: list[str]) -> subprocess.Popen[str]:
    """The command, in a process group of its own."""
    return subprocess.Popen(
        command(*words), cwd=cwd, env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def stop_at(process: subprocess.Popen[str], root: Path, kind: str, step: int, how: int) -> None:
    """Send a signal once the job of a kind has saved a checkpoint at `step` or later."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        if any(e["event"] == "checkpoint" and e["step"] >= step for e in events(root, kind)):
            os.killpg(process.pid, how)
            process.wait(timeout=60)
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at step {step}")


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of every method, computed without interruption."""
    loaded = {}
    for method in METHODS | OTHERS if SLOW else METHODS:
        cwd = tmp_path_factory.mktemp(method)
        evals = ("linear_lars",) if method == "lewel_m" else ()
        done = subprocess.run(
            command(*arguments(images, method, evals)),
            cwd=cwd, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        loaded[method] = results(cwd / "runs")
        assert loaded[method]
    return loaded


@pytest.mark.parametrize(
    "method",
    [
        *METHODS,
        *(
            pytest.param(name, marks=pytest.mark.skipif(not SLOW, reason="LEWEL_BENCH_SLOW=1"))
            for name in OTHERS
        ),
    ],
)
def test_killed_pretraining_resumes_bit_for_bit(
    method: str, images: Path, tmp_path: Path, undisturbed: dict[str, Any], bench: Bench
) -> None:
    step = random.randint(1, 5)
    print(f"killed once a checkpoint at step {step} was there")
    evals = ("linear_lars",) if method == "lewel_m" else ()
    words = [*arguments(images, method, evals), "--save-every", "0.001"]
    stop_at(start(tmp_path, words), tmp_path / "runs", "pretrain", step, signal.SIGKILL)
    assert not records(tmp_path / "runs")
    status = json.loads(bench("status", "--format", "json").stdout)["jobs"]
    (job,) = [j for j in status if j["kind"] == "pretrain"]
    assert job["state"] == "missing" and "interrupted at step" in job["reason"]
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    assert any(e["event"] == "resumed" for e in events(tmp_path / "runs", "pretrain"))
    assert results(tmp_path / "runs") == undisturbed[method]


def test_killed_linear_evaluation_resumes_bit_for_bit(
    images: Path, tmp_path: Path, undisturbed: dict[str, Any], bench: Bench
) -> None:
    words = [*arguments(images, "lewel_m", ("linear_lars",)), "--save-every", "0.001"]
    process = start(tmp_path, words)
    until = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*/checkpoint-*")) or not events(
        tmp_path / "runs", "final"
    ):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    folder = next(
        p.parent for p in (tmp_path / "runs").glob("*/spec.json") if '"final"' in p.read_text()
    )
    while not list(folder.glob("checkpoint-*")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "runs") == undisturbed["lewel_m"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_save_and_say_how_to_go_on(
    how: signal.Signals, images: Path, tmp_path: Path, undisturbed: dict[str, Any], bench: Bench
) -> None:
    words = [*arguments(images, "moco_v2", ()), "--save-every", "1000"]
    process = start(tmp_path, words)
    until = time.monotonic() + 120
    while not any(e["event"] == "start" for e in events(tmp_path / "runs", "pretrain")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + how, out + err
    assert "Run the same command again to continue" in err and "Traceback" not in err
    assert list((tmp_path / "runs").glob("*/checkpoint-*"))
    assert bench(*words).returncode == 0
    assert results(tmp_path / "runs") == undisturbed["moco_v2"]


def test_a_closed_terminal_saves_in_every_process(images: Path, tmp_path: Path) -> None:
    words = [*arguments(images, "moco_v2", (), epochs=200), "--seeds", "2", "--jobs", "2"]
    child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)
        os.execve(sys.executable, command(*words), environment())
    logs: list[Path] = []
    until = time.monotonic() + 120
    try:
        while len(logs) < 2 or not all('"step"' in path.read_text() for path in logs):
            assert time.monotonic() < until
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 65536)
            logs = list((tmp_path / "runs").glob("*/events.jsonl"))
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    for log in logs:
        last = json.loads(log.read_text().splitlines()[-1])
        assert last["event"] == "stopped" and "saved at step" in last["message"]
        assert list(log.parent.glob("checkpoint-*")) and not (log.parent / "failure.json").exists()


def test_two_runs_at_once_compute_each_key_once(
    images: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    words = arguments(images, "lewel_m", ("linear_lars",))
    both = [start(tmp_path, words) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
    for kind in ("pretrain", "final"):
        assert [e["event"] for e in events(tmp_path / "runs", kind)].count("start") == 1
    assert results(tmp_path / "runs") == undisturbed["lewel_m"]


def test_jobs_at_once_give_the_same_numbers(
    images: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    words = arguments(images, "lewel_m", ("linear_lars",))
    process = start(tmp_path, [*words, "--seeds", "2", "--jobs", "2"])
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    results_by_name = results(tmp_path / "runs")
    assert undisturbed["lewel_m"].items() <= results_by_name.items() and len(results_by_name) == 4
    commands = {record["command"] for record in records(tmp_path / "runs").values()}
    assert len(commands) == 1 and commands.pop().endswith("--jobs 2")
    assert {record["environment"]["threads"] for record in records(tmp_path / "runs").values()} == {
        str(max(1, len(os.sched_getaffinity(0)) // 2))
    }


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which lewel_m with all its evaluations has run, and the words that ran it."""
    cwd = tmp_path_factory.mktemp("finished")
    # as many epochs as the suite has for 200: a table's column is of that length
    evals = ("linear_lars", "semi_1pct", "semi_10pct")
    words = arguments(images, "lewel_m", evals, epochs=12)
    done = subprocess.run(
        command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return cwd, words


def _in(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )


def _where(words: list[str], *protocols: str) -> list[str]:
    """The part of `run`'s words that a table needs to find the same keys."""
    return words[words.index("--suite") :]


def test_running_again_does_nothing(finished: tuple[Path, list[str]]) -> None:
    cwd, words = finished
    before = {p: p.stat().st_mtime_ns for p in cwd.glob("runs/*/record.json")}
    done = _in(cwd, *words)
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in cwd.glob("runs/*/record.json")} == before


def test_tables_explain_and_status(finished: tuple[Path, list[str]]) -> None:
    cwd, words = finished
    where = _where(words)
    for number, row, column in (("1", "lewel_m", "200:top1"), ("2", "lewel_m:200", "10pct:top5")):
        done = _in(cwd, "table", number, *where, "--format", "json")
        assert done.returncode == 0, done.stderr
        rows = {r["id"]: r for r in json.loads(done.stdout)["rows"]}
        cell = rows[row]["cells"][column]
        assert cell["n"] == 1 and cell["state"] == "done" and cell["mean"] is not None
        assert cell["verdict"] == "not comparable"
        (key,) = cell["keys"]
        record = json.loads((cwd / "runs" / key / "record.json").read_text())
        assert record["metrics"][column.split(":")[1]] == cell["mean"]
        assert cell["delta"] is None and cell["published"]
        tested = "tested on 18 images of 3 classes (tiny, fingerprint "
        assert any(why.startswith(tested) for why in cell["incomparable"])
        assert cell["where"] == ["tiny (18 images), ResNet-18 of width 8"]

        done = _in(cwd, "explain", f"table{number}:{row}:{column}", *where, "--format", "json")
        assert done.returncode == 0, done.stderr
        (seed,) = json.loads(done.stdout)["seeds"]
        assert seed["key"] == key and seed["value"] == cell["mean"]
        (pretrain,) = [u for u in seed["upstream"] if u.get("kind") == "pretrain"]
        assert Path(pretrain["checkpoint"]["file"]).exists() and pretrain["spec"]["recipe"]
        cost = json.loads((cwd / "runs" / pretrain["key"] / "record.json").read_text())
        assert cost["peak_memory"] > 100 * 2**20 and cost["seconds"] > 0
        assert seed["commit"] and seed["ran"].startswith("lewel-bench run")
        assert set(seed["data"]) == {"train", "select", "report"}
    done = _in(cwd, "table", "all", *where, "--format", "html")
    assert done.returncode == 0 and done.stdout.startswith("<!doctype html>"), done.stderr
    assert done.stdout.count("<table>") == 9 and record["key"] in done.stdout
    done = _in(cwd, "status", "--format", "json")
    states = {job["state"] for job in json.loads(done.stdout)["jobs"]}
    assert states == {"done"}
    done = _in(cwd, "table", "1", "--suite", "shapes", "--missing")
    assert "table1:lewel_b:200:top1: missing" in done.stdout
    assert "fill with: lewel-bench run" in done.stdout


def test_predictions_are_stored_for_every_reported_image(finished: tuple[Path, list[str]]) -> None:
    import numpy as np

    cwd, _ = finished
    files = list(cwd.glob("runs/*/predictions.npz"))
    assert files
    for path in files:
        record = json.loads((path.parent / "record.json").read_text())
        with np.load(path) as stored:
            right = stored["top5"][:, 0] == stored["label"]
            assert len(right) == record["data"]["report"]["images"]
            assert 100 * right.mean() == pytest.approx(record["metrics"]["top1"])


def test_corrupt_record_is_named_and_computed_again_only_when_asked(
    images: Path, tmp_path: Path, bench: Bench, undisturbed: dict[str, Any]
) -> None:
    words = arguments(images, "byol", ())
    assert bench(*words).returncode == 0
    (path,) = (tmp_path / "runs").glob("*/record.json")
    path.write_text(path.read_text()[:100])
    done = bench(*words)
    assert done.returncode == 2 and str(path) in done.stderr and "--replace-corrupt" in done.stderr
    assert path.read_text()
    assert "corrupt record" in bench("status").stderr
    done = bench(*words, "--replace-corrupt")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "runs") == undisturbed["byol"]


def test_corrupt_checkpoint_falls_back_and_says_so(
    images: Path, tmp_path: Path, bench: Bench, undisturbed: dict[str, Any]
) -> None:
    words = [*arguments(images, "moco_v2", ()), "--save-every", "0.001"]
    stop_at(start(tmp_path, words), tmp_path / "runs", "pretrain", 4, signal.SIGKILL)
    newest = sorted((tmp_path / "runs").glob("*/checkpoint-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    assert str(newest) in done.stderr and "using the one before" in done.stderr
    assert results(tmp_path / "runs") == undisturbed["moco_v2"]


def test_loss_that_is_not_finite_stops_and_names_step_and_rate(
    images: Path, tmp_path: Path, bench: Bench
) -> None:
    words = arguments(images, "moco_v2", (), **{"optimizer.lr": 1e30})
    done = bench(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the loss is" in done.stderr and "at step" in done.stderr and "lr" in done.stderr
    assert "Traceback" not in done.stderr and not records(tmp_path / "runs")
    (job,) = json.loads(bench("status", "--format", "json").stdout)["jobs"]
    assert job["state"] == "failed" and "the loss is" in job["reason"]


def test_bad_images_are_named_before_anything_runs(tmp_path: Path, bench: Bench) -> None:
    root = write_images(tmp_path / "bad", train=8)
    whole = (root / "train" / "class0" / "000.jpg").read_bytes()
    (root / "train" / "class0" / "000.jpg").write_bytes(whole[:200])
    (root / "train" / "class1" / "001.jpg").write_text("no image")
    Image.new("RGB", (1, 1)).save(root / "train" / "class2" / "002.jpg")
    done = bench(*arguments(root, "moco_v2", ()))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for name in ("class0/000.jpg", "class1/001.jpg", "class2/002.jpg"):
        assert name in done.stderr
    assert not list((tmp_path / "runs").glob("*/events.jsonl"))


def test_full_disk_while_saving(images: Path, tmp_path: Path, bench: Bench) -> None:
    """A small file system of its own, where one can be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        words = [*arguments(images, "moco_v2", ()), "--root", str(small / "runs")]
        done = bench(*words, "--save-every", "0.001")
        assert done.returncode == 2, done.stdout + done.stderr
        assert "No space left" in done.stderr and "Traceback" not in done.stderr
        assert not records(small / "runs")
        assert not list(small.glob("runs/*/.*.pt.*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_two_processes_under_torchrun(
    images: Path, tmp_path: Path, bench: Bench, undisturbed: dict[str, Any]
) -> None:
    words = [*arguments(images, "moco_v2", ()), "--processes", "2", "--device", "cpu"]
    process = start(tmp_path, [*words, "--save-every", "1000"])
    until = time.monotonic() + 120
    while not any(e["event"] == "start" for e in events(tmp_path / "runs", "pretrain")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # to the parent alone: it passes it on
    out, err = process.communicate(timeout=90)
    if process.returncode == 128 + signal.SIGTERM:  # else it had finished before
        assert "Run the same command again to continue" in err
        assert list((tmp_path / "runs").glob("*/checkpoint-*"))
    done = bench(*words)
    assert done.returncode == 0, out + err + done.stderr
    (record,) = records(tmp_path / "runs").values()
    assert record["environment"]["processes"] == "2"
    (alone,) = undisturbed["moco_v2"].values()
    assert record["metrics"]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-3)


def test_mistake_in_two_processes_is_told_as_in_one(
    images: Path, tmp_path: Path, bench: Bench
) -> None:
    words = arguments(images, "moco_v2", (), **{"optimizer.lr": 1e30})
    done = bench(*words, "--processes", "2", "--device", "cpu")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the loss is" in done.stderr and "Traceback" not in done.stderr


def test_refit_is_another_number_and_its_table_shows_it(
    finished: tuple[Path, list[str]],
) -> None:
    cwd, words = finished
    linear = list(words)
    linear[linear.index("--evals") + 1] = "linear_lars"
    kept = []
    for i, word in enumerate(linear):  # settings of protocols that this run does not have
        if word == "--set" and linear[i + 1].startswith("semi"):
            continue
        if word.startswith("semi"):
            continue
        kept.append(word)
    done = _in(cwd, *kept, "--refit")
    assert done.returncode == 0, done.stderr
    assert "--refit" in done.stdout
    where = [*_where(words), "--format", "json"]
    cells = []
    for more in ([], ["--refit"]):
        rows = json.loads(_in(cwd, "table", "1", *where, *more).stdout)["rows"]
        (row,) = [r for r in rows if r["id"] == "lewel_m"]
        cells.append(row["cells"]["200:top1"])
    assert cells[0]["n"] == cells[1]["n"] == 1 and cells[0]["keys"] != cells[1]["keys"]
