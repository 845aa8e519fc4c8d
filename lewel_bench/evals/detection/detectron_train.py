"""detectron2's trainer and evaluators on a rendered configuration: resumed, stopped, read back."""

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detectron2
import torch
import torchvision
from detectron2.engine import DefaultTrainer, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import JSONWriter

from lewel_bench.evals import weights
from lewel_bench.evals.candidate import early_outcome, named_values
from lewel_bench.evals.context import Context
from lewel_bench.evals.detection import detectron_data as data
from lewel_bench.evals.detection.annotated_images import Scenes
from lewel_bench.evals.detection.detectron_eval import evaluate
from lewel_bench.evals.detection.detectron_model import config
from lewel_bench.evals.detection.detectron_watch import Pruned, Watch
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.files import write_atomically
from lewel_bench.pretrain import checkpoint, distributed
from lewel_bench.pretrain.distributed import Machine, any_rank, rank, wait, world
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.pretrain.report import Report, Stop

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection

LOG = "detectron2.log"
VERSIONS = ", ".join(f"{m.__name__} {m.__version__}" for m in (detectron2, torch, torchvision))
AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}


class _Diverged(Exception):
    """A loss that is not finite."""


def run(
    protocol: "Detection",
    values: dict[str, Any],
    spec: Backbone,
    *,
    candidate: tuple[float, float],
    backbone: Path,
    splits: DenseSplits[Scenes],
    seed: int,
    folder: Path,
    machine: Machine,
    report: Report,
    stop: Stop,
    rivals: Sequence[float],
) -> Outcome:
    """The outcome of `detectron.run`, in this process, with the configuration `values`."""
    at = Context(seed, folder, machine, report, stop)
    names = {role: f"{folder.resolve()}:{role}" for role in ("train", "select", "report")}
    roles = [r for r in ("select", "report") if getattr(splits, r) is not None]
    cfg = config(
        values,
        DATASETS__TRAIN=(names["train"],),
        DATASETS__TEST=tuple(names[r] for r in roles),
        DATALOADER__NUM_WORKERS=machine.workers,
        OUTPUT_DIR=str(folder),
    )
    cfg.freeze()
    folder.mkdir(parents=True, exist_ok=True)
    if world() > 1:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", world())))
    with _quiet(folder / LOG):
        try:
            for role in ("train", *roles):
                scenes, truth = getattr(splits, role), folder / "truth" / role
                data.register(names[role], scenes, protocol.metric, truth)
                if rank() == 0 and role != "train":
                    data.write_truth(scenes, protocol.metric, truth)
            wait()
            if rank() == 0:
                write_atomically(folder / "config.yaml", cfg.dump())
            trainer = _Trainer(cfg, protocol, names, at, rivals)
            trainer.begin(backbone, spec)
            outcome = _outcome(trainer, protocol, candidate, roles)
            if rank() == 0:
                shutil.rmtree(folder / "truth")
            return outcome
        finally:
            for name in names.values():
                data.forget(name)


def _outcome(
    trainer: "_Trainer",
    protocol: "Detection",
    candidate: tuple[float, float],
    roles: Sequence[str],
) -> Outcome:
    extra: dict[str, Any] = {"select": {}, "versions": VERSIONS}
    try:
        trainer.train()
    except _Diverged:
        return early_outcome(protocol, candidate, extra, diverged=trainer.iter + 1)
    except Pruned as pruned:
        extra["half"] = trainer.watch.seen
        return early_outcome(protocol, candidate, extra, pruned=str(pruned))
    if trainer.watch.seen:
        extra["half"] = trainer.watch.seen
    measured = {role: trainer.measure(role) for role in roles}
    metrics, details = measured["report"]
    if "select" in measured:
        extra["select"] = measured["select"][0]
    chosen = named_values(candidate)
    return Outcome(metrics=metrics, chosen=chosen, extra=extra | details)


class _Trainer(DefaultTrainer):  # type: ignore[misc]  # of a package without types
    """detectron2's trainer with batches that can be gone on with, and our checkpoints."""

    def __init__(
        self,
        cfg: Any,
        protocol: "Detection",
        names: dict[str, str],
        at: Context,
        rivals: Sequence[float],
    ) -> None:
        self.protocol, self.names, self.at = protocol, names, at
        self.watch = Watch(protocol, at, rivals)
        seed_all_rng(cfg.SEED + rank())
        super().__init__(cfg)
        if protocol.precision in AMP:
            self._trainer.precision = AMP[protocol.precision]

    def build_train_loader(self, cfg: Any) -> data.Batches:
        """Overrides a class method: the batches belong to this run."""
        return data.Batches(cfg, self.names["train"])

    def build_writers(self) -> list[Any]:
        return [JSONWriter(str(self.at.folder / "metrics.json"))]

    def build_hooks(self) -> list[Any]:
        """detectron2's, without its checkpoints (neither atomic nor complete) and evaluation."""
        replaced = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        kept = [h for h in super().build_hooks() if h is not None and not isinstance(h, replaced)]
        writers = [h for h in kept if isinstance(h, hooks.PeriodicWriter)]
        return [*(h for h in kept if h not in writers), self.watch, *writers]

    def begin(self, backbone: Path, spec: Backbone) -> None:
        """Go on from the newest checkpoint of the folder, or begin with the backbone's weights."""
        saved = checkpoint.load(self.at.folder, self.at.report)
        if saved is not None:
            _bare(self.model).load_state_dict(saved["model"])
            self.load_state_dict(saved["trainer"])
            distributed.set_random_state(saved["generators"], self.at.machine.device)
            self.start_iter = saved["step"]
            self.data_loader.start = saved["step"]
            spent = self.at.clock.resume(saved)
            self.at.report("resumed", step=saved["step"], steps=self.max_iter, seconds=spent)
            return
        state, _ = checkpoint.read_backbone(backbone)
        given = weights.to_detectron2(state, spec, self.protocol.model)
        lost = _bare(self.model).load_state_dict(given, strict=False).unexpected_keys
        assert not lost, f"detectron2 has no place for {lost}"

    def run_step(self) -> None:
        bad = False
        try:
            super().run_step()
        except FloatingPointError:  # of the loss, or of boxes
            bad = True
        if any_rank(bad, self.at.machine.device):
            raise _Diverged

    def train(self) -> None:
        try:
            super().train()
        finally:
            self._trainer._data_loader_iter_obj = None  # ends its workers
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            self.iter = self.max_iter - 1
            raise _Diverged

    def measure(self, role: str) -> tuple[dict[str, float], dict[str, Any]]:
        """The metrics of a split, and what goes with them; the same on every rank."""
        file = self.at.folder / "predictions.json" if role == "report" else None
        metrics, details = evaluate(
            self.cfg, self.model, self.names[role], self.protocol, self.at, file
        )
        self.at.report("evaluated", step=self.max_iter, split=role, **metrics)
        return metrics, details

    def save(self, step: int) -> None:
        """Write a complete checkpoint (rank 0; every rank must call it)."""
        random = distributed.random_states(self.at.machine.device)
        if rank() != 0:
            return
        content = {
            "step": step,
            "seconds": self.at.clock.seconds(),
            "model": _bare(self.model).state_dict(),
            "trainer": self.state_dict(),
            "generators": random,
        }
        checkpoint.save(self.at.folder, step, content)


def _bare(model: Any) -> Any:
    return model.module if hasattr(model, "module") else model


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """detectron2's own account of the run goes to a file."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()
