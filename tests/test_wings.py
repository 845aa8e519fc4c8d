"""The core without its wings: a copy of the package, from which they are deleted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment

import lewel_bench
from tests.harness.test_end_to_end import arguments
from tests.test_architecture import is_wing

PACKAGE = Path(lewel_bench.__file__).parent


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A folder with the package, but for the files of all wings."""
    copy = tmp_path / "code" / "lewel_bench"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted(copy.rglob("*.py")):
        parts = path.relative_to(copy.parent).with_suffix("").parts
        if is_wing(".".join(parts).removesuffix(".__init__")):
            path.unlink()
    assert not (copy / "slurm" / "queue.py").exists()
    return copy.parent


def test_the_core_runs_each_kind_of_job_and_fills_its_table(
    core: Path, images: Path, tmp_path: Path
) -> None:
    def bench(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "lewel_bench.harness.cli", *words],
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(core)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "lewel_m" in bench("ls", "methods")
    words = arguments(images, "moco_v2", ("linear_lars", "semi_1pct"), epochs=12)
    words[words.index("linear_lars,semi_1pct")] += ",knn"
    words += ["--set", "knn.image_size=32", "--set", "knn.resize=36"]
    bench(*words, "--workers", "0")
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/record.json")]
    assert {record["kind"] for record in records} == {"pretrain", "search", "final"}
    runners = {record["spec"].get("protocol", {}).get("runner") for record in records}
    assert runners == {None, "linear", "semi", "knn"}
    assert f"{len(records)} done" in bench("status")
    where = words[words.index("--suite") :]
    table = json.loads(bench("table", "1", "--format", "json", *where))
    (row,) = (row for row in table["rows"] if row["id"] == "moco_v2")
    assert row["cells"]["200:top1"]["mean"] is not None and row["cells"]["200:top1"]["n"] == 1
