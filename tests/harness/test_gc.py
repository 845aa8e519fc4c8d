"""What gc lists and removes, and what it leaves."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from command_line import Bench

from lewel_bench import files
from lewel_bench.files import Lock
from lewel_bench.harness import garbage as gc
from lewel_bench.harness.rundir import LOCK, SPEC, RunDir
from lewel_bench.harness.status import JobState, survey
from lewel_bench.value import format_bytes

HELD = ("checkpoint-00000010-abc.pt", "backbone.safetensors", "events.jsonl", "predictions.npz")


def job(root: Path, key: str) -> Path:
    folder = root / key
    folder.mkdir(parents=True)
    (folder / SPEC).write_text(json.dumps({"kind": "pretrain", "name": key, "seed": 0}))
    for name in (*HELD, ".checkpoint-00000020-abc.pt.1234"):
        (folder / name).write_text("x" * 10)
    os.utime(folder / name, (0, 0))
    return folder


def left(root: Path, state: str) -> set[str]:
    folder = job(root, "a" * 12)
    waste = gc.waste(root, {"a" * 12: JobState("a" * 12, "pretrain", "", 0, "", state)})
    assert gc.clear(waste) == 10 * len(waste) == sum(file.size for file in waste)
    return {path.name for path in folder.iterdir()} - {SPEC}


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("done", HELD[1:]),
        ("stale", HELD[2:]),
        ("failed", HELD),
        ("missing", HELD),
        ("running", (*HELD, ".checkpoint-00000020-abc.pt.1234")),
        ("queued", (*HELD, ".checkpoint-00000020-abc.pt.1234")),
        ("stuck", (*HELD, ".checkpoint-00000020-abc.pt.1234")),
    ],
)
def test_only_what_no_cell_needs_goes(tmp_path: Path, state: str, kept: tuple[str, ...]) -> None:
    assert left(tmp_path, state) == set(kept)


def test_a_link_to_elsewhere_is_left(tmp_path: Path) -> None:
    folder = job(tmp_path / "runs", "a" * 12)
    (tmp_path / "outside.pt").write_text("mine")
    (folder / "checkpoint-00000030-abc.pt").symlink_to(tmp_path / "outside.pt")
    states = {"a" * 12: JobState("a" * 12, "pretrain", "", 0, "", "done")}
    gc.clear(gc.waste(tmp_path / "runs", states))
    assert (tmp_path / "outside.pt").read_text() == "mine"


def test_a_job_that_a_process_works_on_is_left(tmp_path: Path) -> None:
    folder = job(tmp_path, "a" * 12)
    with Lock(folder / LOCK):
        assert gc.waste(tmp_path, survey(tmp_path)) == []
    assert [file.path.name[0] for file in gc.waste(tmp_path, survey(tmp_path))] == ["."]


def test_a_write_that_may_go_on_is_left(tmp_path: Path) -> None:
    os.utime(job(tmp_path, "a" * 12) / ".checkpoint-00000020-abc.pt.1234")
    assert gc.waste(tmp_path, survey(tmp_path)) == []


@pytest.mark.parametrize(
    "name",
    [
        ".probe",
        "data/.checked.json",
        "aaaaaaaaaaaa/.predictions.npz",
        "bbbbbbbbbbbb/.spec.json",  # no job: it was killed before it had a spec
        ".queues/.vm-1-2.json",
        ".merged/0123/aaaaaaaaaaaa/.record.json",
    ],
)
def test_what_a_killed_process_left_is_found_at_once(tmp_path: Path, name: str) -> None:
    (job(tmp_path, "a" * 12) / ".checkpoint-00000020-abc.pt.1234").unlink()
    dead = subprocess.Popen(["true"])
    dead.wait()
    for process in (dead.pid, os.getpid()):
        path = tmp_path / f"{name}.{files.NODE}.{process}.0123abcd.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    waste = gc.waste(tmp_path, survey(tmp_path))
    assert [str(cost.path) for cost in waste] == [
        f"{tmp_path}/{name}.{files.NODE}.{dead.pid}.0123abcd.tmp"
    ]
    assert gc.clear(waste) == 4 and gc.waste(tmp_path, survey(tmp_path)) == []


def test_generated_images_that_were_being_made_go(tmp_path: Path) -> None:
    half = tmp_path / "data" / ".shapes.partial" / "imagenet"
    half.mkdir(parents=True)
    (half / "1.jpg").write_text("12345")
    with Lock(tmp_path / "data" / ".shapes.lock"):
        assert gc.waste(tmp_path, survey(tmp_path)) == []
    (waste,) = gc.waste(tmp_path, survey(tmp_path))
    assert waste.path == half.parent and waste.size == 5
    assert gc.clear([waste]) == 5 and not half.parent.exists()


def test_marks_of_a_killed_run_go_with_the_next_look(tmp_path: Path) -> None:
    with RunDir(tmp_path).queue(["a" * 12]):
        for left in ("vm-1-2.lock", "vm-3-4.json"):
            (tmp_path / ".queues" / left).write_text("[]")
        assert RunDir(tmp_path).queued_keys() == {"a" * 12}
        assert len(os.listdir(tmp_path / ".queues")) == 2
    assert os.listdir(tmp_path / ".queues") == []


def test_gc_is_dry_unless_told(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    torn = job(root, "a" * 12) / ".checkpoint-00000020-abc.pt.1234"
    shown = bench("gc", "--root", str(root))
    assert shown.returncode == 0 and "1 files, 10 B: remove them with --yes" in shown.stdout
    assert torn.name in shown.stdout and torn.exists()
    assert "10 B freed" in bench("gc", "--root", str(root), "--yes").stdout and not torn.exists()
    assert "nothing to remove" in bench("gc", "--root", str(root)).stdout


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 * 2**20, "3 MiB"), (2**31, "2.0 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text
