"""The shapes suite on a cluster whose run root has no images yet."""

import resource
import subprocess
from pathlib import Path

from command_line import command, environment
from lab import Lab, until

from lewel_bench.slurm import queue

SITE = """\
[clusters.lab]
wake = false
[clusters.lab.defaults]
timeout_min = 10
signal_delay_s = 30
"""
ASKED = ("--suite", "shapes", "--table", "1", "--method", "lewel_m,moco_v2", "--cluster", "lab")


def test_the_first_job_generates_the_images(lab: Lab, tmp_path: Path) -> None:
    """The client, on a login node, returns in seconds."""
    (tmp_path / "lewel-bench.toml").write_text(SITE)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asked = command("run", *ASKED)
    done = subprocess.run(asked, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime
    print(f"submitted with {cpu:.1f} s of CPU")
    assert done.returncode == 0, done.stderr
    assert "4 submitted now" in done.stdout and cpu < 3  # generating them takes ten
    until(lambda: any((tmp_path / "runs").glob("*/events.jsonl")), 120)
    queue.cancel([task.id for task in queue.tasks() if task.is_alive])
    assert list((tmp_path / "runs" / "data").glob("shapes-*/imagenet/train"))
