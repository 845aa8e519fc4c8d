"""The process that computes a job on a cluster, where it cannot compute."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import planning
import pytest
import torch
from command_line import environment

from lewel_bench.evals.dataset import Dataset
from lewel_bench.files import FAILURE
from lewel_bench.harness.jobs import cluster_entry
from lewel_bench.harness.plan import plan, suites
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.harness.rundir import RunDir
from lewel_bench.slurm.in_job import EXIT, HALVINGS, Channel
from tests.harness.test_cost import jobs_of


@pytest.mark.parametrize(
    ("granted", "device"), [("2", None), ("", "cuda"), ("2", "cuda:1")], ids=str
)
def test_a_node_without_a_working_gpu_is_no_error_of_the_job(
    tmp_path: Path, granted: str, device: str | None
) -> None:
    """The job neither trains on the CPU nor counts as failed."""
    job = jobs_of(tmp_path, "moco_v2_200ep")[0]
    RunDir(tmp_path).job(job.key).write_spec(job)
    settings = MachineSettings(device=device).model_dump_json()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            cluster_entry.__name__,
            str(tmp_path / job.key),
            settings,
        ],
        env=environment(SLURM_GPUS_ON_NODE=granted, SLURMD_NODENAME="n7", CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == EXIT["io"], done.stderr
    message = json.loads((tmp_path / job.key / FAILURE).read_text())["message"]
    assert (
        message
        == f"node n7: device {device or 'cuda'}: CUDA does not work on this machine; "
        + ("use --device cpu")
    )
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("method", "given", "times", "micro"),
    [
        ("moco_v2_200ep", None, "0", None),
        ("moco_v2_200ep", None, "1", 128),  # of its batch of 256
        ("moco_v2_200ep", 64, "1", 32),
        ("moco_v2_200ep", 512, "1", 128),
        ("linear_lars", None, "1", 128),  # of a frozen forward of 256, its batch is 4096
        ("linear_lars", 1024, "1", 128),
        ("linear_lars", 100, "1", 50),
    ],
)
def test_the_micro_batch_in_use_is_halved(
    monkeypatch: pytest.MonkeyPatch, method: str, given: int | None, times: str, micro: int | None
) -> None:
    monkeypatch.setenv(HALVINGS, times)
    data = Dataset(name="imagenet", id="imagenet", root="/data")
    jobs = planning.jobs(
        suites.SUITES["paper"],
        lambda name, task: data,
        method=("moco_v2_200ep",),
        evals=("linear_lars",),
    )
    job = jobs[0] if method == jobs[0].name else jobs[1]
    assert cluster_entry._halved(MachineSettings(micro_batch=given), job).micro_batch == micro


@pytest.mark.parametrize(
    ("processes", "code", "expected"),
    [(1, EXIT["oom"], "--micro-batch 32 takes less"), (8, 1, "statistics over 32 images")],
)
def test_out_of_memory_is_reported_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, code: int, expected: str
) -> None:
    """With 8 processes half the micro-batch was refused at the retry, which hid the cause."""
    job = jobs_of(tmp_path, "moco_v2_200ep")[0]
    RunDir(tmp_path).job(job.key).write_spec(job)

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(cluster_entry.jobs, "_compute", full)
    monkeypatch.setattr(cluster_entry.material, "generated", lambda job: None)
    monkeypatch.setattr(cluster_entry.fits, "half_micro_batch", partial(_on, processes))
    monkeypatch.setattr(cluster_entry.distributed, "start", lambda device: None)
    settings = MachineSettings(device="cpu")
    assert cluster_entry._compute(tmp_path / job.key, settings, Channel()) == code
    message = json.loads((tmp_path / job.key / FAILURE).read_text())["message"]
    assert message.startswith("OutOfMemoryError: CUDA out of memory.") and expected in message


def _on(processes: int, job: plan.Job, world: int, *more: object) -> int:
    return HALF(job, processes, *more)


HALF = cluster_entry.fits.half_micro_batch
