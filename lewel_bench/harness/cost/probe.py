"""What jobs cost, told from their first steps; nothing that a probe computes is kept.

An evaluation is probed on a backbone with random weights: what it costs does not depend on them.
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lewel_bench.harness.cost.estimate import Estimator
from lewel_bench.harness.jobs import job as jobs
from lewel_bench.harness.jobs import signals
from lewel_bench.harness.jobs.log import describe_error
from lewel_bench.harness.jobs.provenance import provenance
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.methods import build
from lewel_bench.pretrain.report import Stopped
from lewel_bench.results import record
from lewel_bench.results.record import Checkpoint, Record

MOST_S = 300.0  # of one probe


class Pace:
    """The steps of one job as it reports them, and when enough of them are seen."""

    def __init__(self, steps: int) -> None:
        self.wanted, self.seen, self.began = steps, list[tuple[float, int, int]](), time.monotonic()

    def __call__(self, event: str, /, **fields: Any) -> None:
        if "step" in fields and "steps" in fields:
            self.seen.append((time.monotonic(), fields["step"], fields["steps"]))

    def enough(self) -> bool:
        """Whether the job may stop; also when somebody asks us to."""
        late = time.monotonic() - self.began > MOST_S
        passed = self.seen[-1][1] - self.seen[0][1] if self.seen else 0
        return signals.asked_to_stop() or late or passed >= self.wanted


def probe(
    todo: Sequence[Job], plan: Sequence[Job], estimator: Estimator, settings: MachineSettings,
    steps: int,
) -> None:  # fmt: skip
    """Time `steps` steps of one job of each shape among `todo` that no record here is like, in one
    process on one device, and tell `estimator`. `plan` has the pre-trainings that they evaluate.

    What a job raises is said, and its cost stays unknown. Raises Stopped when a signal came.
    """
    by_key = {job.key: job for job in plan}
    asked: dict[Any, Job] = {}
    for job in todo:
        if not job.is_selection and (shape := estimator.lacks(job)) is not None:
            asked.setdefault(shape, job)
    for place, job in enumerate(asked.values(), 1):
        print(f"probe {place} of {len(asked)}: {job.name}", file=sys.stderr, flush=True)
        seconds = None
        with tempfile.TemporaryDirectory(prefix="lewel-bench-probe-") as folder:
            try:
                seconds = _seconds(job, by_key, Path(folder), settings, steps)
            except Exception as error:
                print(
                    f"no probe of {job.name}: {describe_error(error)}", file=sys.stderr, flush=True
                )
        if signals.asked_to_stop():
            raise Stopped("probes are not saved")
        if seconds:
            estimator.learn(job, *seconds)


def _seconds(
    job: Job, plan: dict[str, Job], root: Path, settings: MachineSettings, steps: int
) -> tuple[float, int | None] | None:
    """Of a whole job the seconds, and from how many steps they are told (None: it ended)."""
    if job.upstream:
        _random_backbone(plan[job.upstream], root)
    pace = Pace(steps)
    try:
        # a search at any rate: the one that it would have
        return jobs.run(job, root, settings, pace, pace.enough).seconds, None
    except Stopped:
        return steps_of(pace.seen)


def _random_backbone(job: Job, root: Path) -> None:
    """The record of a pre-training and the backbone that it started from."""
    assert job.recipe is not None
    path = root / job.key / "backbone.safetensors"
    path.parent.mkdir(parents=True)
    # as many images and classes as any, for methods that keep something for each
    net = build(job.recipe, job.seed, images=job.recipe.batch, classes=2).backbone
    checkpoint.write_backbone(path, net.state_dict(), checkpoint.header_of(job.recipe.backbone))
    now = datetime.now(UTC)
    made = Record(
        key=job.key, kind="pretrain", name=job.name, spec=job.identity(), seed=job.seed,
        metrics={}, **provenance(), started=now, finished=now, seconds=0.0,
        checkpoint=Checkpoint(file=path.name, sha256=checkpoint.sha256(path)),
    )  # fmt: skip
    record.commit(path.parent, made)


def steps_of(events: Iterable[tuple[float, int, int]]) -> tuple[float, int] | None:
    """The seconds of a whole job by its (time, step, steps) so far, and how many steps tell them:
    the first is left out as it holds the start. None with fewer than two."""
    seen = list(events)
    if len(seen) < 2:
        return None
    (began, first, steps), (now, last, _) = seen[0], seen[-1]
    passed = last - first
    return ((now - began) / passed * steps, passed) if passed > 0 else None
