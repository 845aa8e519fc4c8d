"""A real SLURM on this machine for the tests that need one."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Bench, Lab, until

from lewel_bench.slurm import queue


@pytest.fixture(scope="session")
def running() -> Iterator[Lab]:
    if not os.environ.get("LEWEL_BENCH_SLURM"):
        pytest.skip("make test-slurm starts a private SLURM")
    if shutil.which("sbatch") is None:
        pytest.skip("needs SLURM: apt-get install slurmctld slurmd slurm-client munge")
    # not in pytest's folder, which other users cannot enter
    folder = Path(tempfile.mkdtemp(prefix="slurm-lab-"))
    folder.chmod(0o755)
    lab = Lab(folder)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = lab.environment["SLURM_CONF"]
    try:
        lab.up()
        yield lab
    finally:
        lab.call("slurm-down", "--wipe")
        os.environ.pop("SLURM_CONF")
        if before:
            os.environ["SLURM_CONF"] = before


@pytest.fixture
def lab(running: Lab) -> Iterator[Lab]:
    """The cluster; repaired and emptied after the test."""
    running.up()
    yield running
    running.up()  # starts again whatever a test stopped
    ids = [task.id.partition("_")[0] for task in queue.tasks() if task.is_alive]
    if ids:
        subprocess.run(["scancel", "-b", "--signal=KILL", *ids], capture_output=True)
        queue.cancel(sorted(set(ids)))
        until(lambda: not any(task.is_alive for task in queue.tasks()), 60)
    for node in ("127.0.0.1", "127.0.0.2"):
        running.node("start", node)


@pytest.fixture
def bench(lab: Lab, tmp_path: Path) -> Bench:
    """A run root with jobs for the cluster."""
    return Bench(tmp_path / "runs")
