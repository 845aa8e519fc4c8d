"""What runs inside a job: read its spec, compute, write its record last.

`python -m lewel_bench.harness.jobs.job FOLDER` runs the job of a folder, alone or under torchrun.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from traceback import walk_tb
from typing import Any

import torch

from lewel_bench import terminal
from lewel_bench.evals import splits
from lewel_bench.evals.clock import Clock
from lewel_bench.evals.context import Context
from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.outcome import Inputs, Outcome
from lewel_bench.files import ATTEMPTS, FAILURE, ClaimLost, Lock, follow_group, naming
from lewel_bench.harness.jobs import monitor, signals
from lewel_bench.harness.jobs.device import machine
from lewel_bench.harness.jobs.log import Log, clear_failure, crashes, write_failure
from lewel_bench.harness.jobs.provenance import environment, provenance
from lewel_bench.harness.plan import contents, fits
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import Engines, MachineSettings
from lewel_bench.harness.rundir import WORK, JobDir, missing_weights_message
from lewel_bench.harness.wings import is_installed
from lewel_bench.pretrain import (
    checkpoint,
    collapse,
    distributed,
    memory,
    methods,
    own_method,
    train,
)
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.folder import Images
from lewel_bench.pretrain.report import Report, Stop, Stopped, silent
from lewel_bench.results import record
from lewel_bench.results.record import Checkpoint, Contents, Data, Record

LOOK_S = 10.0  # for others to end a look at whether a lock is held
GRACE_S = 5.0  # for a rank to end by itself after another has failed


def run_folder(folder: Path, settings: MachineSettings) -> Record:
    """Compute the job whose spec is in `folder`, as `run` does; its events are in the folder."""
    job = JobDir(folder).read_spec()
    return run(job, folder.parent, settings, silent, signals.asked_to_stop)


def run(
    job: Job,
    root: Path,
    settings: MachineSettings,
    report: Report,
    stop: Stop,
    check_claim: Callable[[], None] = lambda: None,
) -> Record:
    """Compute a job and commit its record; goes on from its checkpoints.

    The caller holds the lock of the job's folder. Raises Stopped after saving, and whatever the
    computation raises, after writing it to `failure.json`; `check_claim` raises ClaimLost where
    another process has taken over.
    """
    folder = root / job.key
    log = Log(folder, report)
    started = datetime.now(UTC)
    log("start", kind=job.kind, name=job.name, seed=job.seed)
    try:
        if distributed.world() == 1:
            clear_failure(folder)
        with naming(folder), crashes(folder):
            made = _compute(job, root, settings, log, stop)
    except Stopped as stopped:
        log("stopped", message=str(stopped))
        raise
    except ClaimLost:
        raise  # the folder belongs to another process now
    except Exception as error:
        _name_line(job, error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            error.add_note(fits.memory_advice(job, distributed.world(), settings.micro_batch))
        write_failure(folder, error)
        log("failed", message=str(error))
        raise
    result = Record(
        key=job.key,
        kind=job.kind,
        name=job.name,
        spec=job.identity(),
        seed=job.seed,
        upstream=tuple(dict.fromkeys(filter(None, (job.upstream, *job.needs)))),
        metrics=made.outcome.metrics,
        outcome={
            **{k: v for k, v in asdict(made.outcome).items() if k not in ("metrics", "warnings")},
            **_attempts(folder),
        },
        warnings=tuple(made.outcome.warnings),
        data=made.data,
        **provenance(),
        environment={**environment(settings), **_library(job)},
        started=started,
        finished=datetime.now(UTC),
        seconds=made.seconds,
        peak_memory=made.memory,
        checkpoint=made.checkpoint,
    )
    if distributed.rank() != 0:
        return result
    log.close()
    check_claim()
    written = record.commit(folder, result)
    if job.protocol:
        job.protocol.clear(folder)
    else:
        checkpoint.clear(folder)
    for warning in made.outcome.warnings:
        log("warning", message=warning)
    log("done", **made.outcome.metrics)
    return written


def _name_line(job: Job, error: Exception) -> None:
    """Note on an error the line of the user's own method that it came through."""
    if job.recipe and job.recipe.own:
        name = own_method.module_name(job.recipe.own)
        frames = [at for at in walk_tb(error.__traceback__) if at[0].f_globals["__name__"] == name]
        if frames:
            frame, line = frames[-1]
            error.add_note(f"{frame.f_code.co_filename}, line {line}")


def _library(job: Job) -> dict[str, str]:
    """The libraries besides torch that a pre-training depends on, with their versions."""
    return methods.settings_of(job.recipe).libraries() if job.recipe else {}


def _attempts(folder: Path) -> dict[str, Any]:
    """Every start of this job on a cluster, and its cost."""
    if not (folder / ATTEMPTS).exists() or not is_installed("slurm"):
        return {}
    from lewel_bench.slurm import attempt

    return {"attempts": attempt.summary(folder)}


class Made:
    """What a computation leaves for its record."""

    def __init__(
        self,
        outcome: Outcome,
        data: dict[str, Data],
        seconds: float,
        checkpoint: Checkpoint | None = None,
        memory: int | None = None,
    ) -> None:
        self.outcome, self.data, self.seconds = outcome, data, seconds
        self.checkpoint, self.memory = checkpoint, memory


def _compute(job: Job, root: Path, settings: MachineSettings, log: Report, stop: Stop) -> Made:
    on = machine(settings)
    if job.kind == "pretrain":
        return _pretrain(job, root / job.key, on, log, stop)
    if job.is_selection:
        assert job.protocol is not None
        records = _records(root, job.needs)
        return Made(job.protocol.choose(records), dict(records[0].data), 0.0)
    return _evaluate(job, root, on, settings.engines, log, stop)


def _pretrain(job: Job, folder: Path, on: Machine, log: Report, stop: Stop) -> Made:
    assert job.recipe is not None
    images = splits.read(job.data, "train")
    peak = memory.watch(on.device)
    trained = train.run(
        job.recipe,
        seed=job.seed,
        images=images,
        folder=folder,
        machine=on,
        report=log,
        stop=stop,
        monitor=monitor.monitor(job.recipe, images, splits.read(job.data, "val"), on),
        monitor_every=max(1, job.recipe.epochs // monitor.TIMES),
    )
    digest = checkpoint.sha256(trained.backbone) if distributed.rank() == 0 else "0" * 64
    note = collapse.collapse_note(trained.metrics, job.recipe.backbone)
    return Made(
        Outcome(metrics=trained.metrics, warnings=[note] if note else []),
        {"train": _described(job.data, images, contents.contents(images))},
        trained.seconds,
        Checkpoint(file=trained.backbone.name, sha256=digest),
        peak(),
    )


def _evaluate(job: Job, root: Path, on: Machine, engines: Engines, log: Report, stop: Stop) -> Made:
    assert job.protocol is not None and job.upstream is not None
    upstream = record.read(root / job.upstream / record.NAME)
    assert upstream.checkpoint is not None
    backbone = root / job.upstream / upstream.checkpoint.file
    if not backbone.exists():
        raise ValueError(missing_weights_message(backbone))
    if checkpoint.sha256(backbone) != upstream.checkpoint.sha256:
        raise ValueError(
            f"{backbone} does not match its record (hash mismatch): remove "
            f"{backbone.parent} to compute it again"
        )
    parts = job.protocol.splits(job.data, final=job.kind == "final")
    inputs = Inputs(
        backbone,
        parts,
        candidate=job.lr,
        trial=job.trial,
        results=_records(root, [key for key in job.needs if key != job.upstream]),
        finished=lambda: _finished_candidates(job, root),
        pythons=engines.model_dump(exclude_none=True),
    )
    clock = Clock()
    context = Context(job.seed, root / job.key, on, clock.follow(log), stop, clock)
    outcome = job.protocol.run(inputs, context)
    note = collapse.note_among(upstream.warnings)
    if note and note not in outcome.warnings:
        outcome.warnings.append(note)
    whole = contents.wholes(job.data, parts)
    data = {
        role: _described(job.data, part, whole[role])
        for role in ("train", "select", "report")
        if (part := getattr(parts, role)) is not None
    }
    return Made(
        outcome,
        data,
        clock.seconds(),
        Checkpoint(file=f"../{job.upstream}/{backbone.name}", sha256=upstream.checkpoint.sha256),
    )


def _records(root: Path, keys: Sequence[str]) -> list[Record]:
    return [record.read(root / key / record.NAME) for key in keys]


def _finished_candidates(job: Job, root: Path) -> list[Record]:
    """The records of the other candidates of a search that have finished."""
    assert job.protocol is not None
    siblings = (job.model_copy(update={"lr": lr}) for lr in job.protocol.candidates())
    keys = [record.key(sibling.identity()) for sibling in siblings]
    return _records(root, [key for key in keys if (root / key / record.NAME).exists()])


def _described(data: Dataset, part: Any, whole: Contents) -> Data:
    # only rank 0 writes a record, and a fingerprint asks for the size of every file
    digest = contents.fingerprint(part) if distributed.rank() == 0 else ""
    left_out = dict(part.left_out) if isinstance(part, Images) else {}
    return Data(
        name=data.name, fingerprint=digest, images=len(part), left_out=left_out, whole=whole
    )


def main() -> int:
    """Run the job of a folder under torchrun; the parent holds the lock."""
    terminal.prepare()
    folder = Path(sys.argv[1])
    follow_group(folder.parent)
    settings = MachineSettings.model_validate_json(sys.argv[2])
    signals.listen()
    distributed.start(machine(settings).device)
    alone = Lock(folder / WORK, LOOK_S) if distributed.rank() == 0 else nullcontext()
    Thread(target=_end_with_others, args=(folder,), daemon=True).start()
    with alone, suppress(Stopped):
        try:
            run_folder(folder, settings)
        except (ValueError, OSError):
            return 1  # the parent reads why in the folder; torchrun ends the other ranks
    return 0


def _end_with_others(folder: Path) -> None:
    """End this process soon after a rank has said why the job failed: in a collective, which waits
    for that rank, Python sees no signal."""
    while not (folder / FAILURE).exists():
        time.sleep(1)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
