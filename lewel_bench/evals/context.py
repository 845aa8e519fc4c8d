"""What an evaluation computes with, whatever its protocol."""

from dataclasses import dataclass, field
from pathlib import Path

from lewel_bench.evals.clock import Clock
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.report import Report, Stop


@dataclass(frozen=True)
class Context:
    """The seed, folder and machine of a job, whom it reports to and who may stop it.

    `clock` counts its seconds over all attempts. `before` and `after` are the steps of the same
    job's trainings before and after this one.
    """

    seed: int
    folder: Path
    machine: Machine
    report: Report
    stop: Stop
    clock: Clock = field(default_factory=Clock)
    before: int = 0
    after: int = 0
