"""A planner in its own process: python planner.py ROOT PROFILE JOBS [ROUNDS]"""

import json
import os
import sys
import time
from pathlib import Path

from lewel_bench.slurm import in_job, sweep
from lewel_bench.slurm.plan import PlannedJob
from lewel_bench.slurm.profile import parse_profile
from lewel_bench.slurm.sweep import Sweep


def main() -> None:
    root = Path(sys.argv[1])
    profile = parse_profile("lab", json.loads(sys.argv[2]), "the test")
    jobs = [PlannedJob(key, kind, tuple(needs)) for key, kind, needs in json.loads(sys.argv[3])]
    worker = str(Path(__file__).parent / "worker.py")
    wake = (__file__, *sys.argv[1:4])
    work = Sweep(root, profile, (worker, "{folder}"), wake)
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    for i in range(rounds):
        barrier(root, i)
        sweep.advance(work, jobs[i : i + 1])
    if not rounds:
        sweep.advance(work, jobs, attended=in_job.WAKE not in os.environ)


def barrier(root: Path, i: int) -> None:
    """Return when three planners are here."""
    (root / f"barrier-{i}-{os.getpid()}").touch()
    while len(list(root.glob(f"barrier-{i}-*"))) < 3:
        time.sleep(0.001)


main()
