"""What a cluster's job starts for one cell, where it cannot compute."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment

from lewel_bench.harness.site import MachineSettings
from lewel_bench.harness.status import FAILURE, write_spec
from lewel_bench.slurm.inside import EXIT
from tests.harness.test_cost import jobs_of


@pytest.mark.parametrize(
    ("granted", "device"), [("2", None), ("", "cuda"), ("2", "cuda:1")], ids=str
)
def test_a_node_without_a_working_gpu_is_left_to_another_try(
    tmp_path: Path, granted: str, device: str | None
) -> None:
    """It neither trains on the CPU nor is it the job's own error."""
    job = jobs_of(tmp_path, "moco_v2_200ep")[0]
    write_spec(job, tmp_path)
    settings = MachineSettings(device=device).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-m", "lewel_bench.harness.cell", str(tmp_path / job.key), settings],
        env=environment(SLURM_GPUS_ON_NODE=granted, SLURMD_NODENAME="n7", CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == EXIT["io"], done.stderr
    message = json.loads((tmp_path / job.key / FAILURE).read_text())["message"]
    assert message == f"node n7: device {device or 'cuda'}: no CUDA device works here; " + (
        "use --device cpu"
    )
    assert message in done.stderr and "Traceback" not in done.stderr
