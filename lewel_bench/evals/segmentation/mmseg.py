"""The `mmseg` engine: a segmentation protocol as a configuration of mmseg, and its run.

mmengine's Runner trains and mmseg's metric measures. What imports them is in `mmseg_parts.py`, the
configuration in `mmseg_config.py`; here is what can be known without them.
"""

import contextlib
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lewel_bench.evals import engines, other_interpreter, weights
from lewel_bench.evals.candidate import early_outcome, named_values, pruning_reason
from lewel_bench.evals.clock import Clock
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.evals.segmentation import mmseg_config
from lewel_bench.evals.segmentation.labelled_images import LabelledImages
from lewel_bench.files import write_atomically
from lewel_bench.pretrain import checkpoint, distributed
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.pacer import Pacer
from lewel_bench.pretrain.report import Report, Stop, Stopped

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Segmentation


def run(
    protocol: "Segmentation",
    *,
    candidate: tuple[float, float],
    backbone: Path,
    splits: DenseSplits[LabelledImages],
    seed: int,
    folder: Path,
    machine: Machine,
    report: Report,
    stop: Stop,
    rivals: Sequence[float] = (),
    python: str | None = None,
) -> Outcome:
    """Fine-tune at `candidate` = (lr, weight decay) with mmseg; as `finetune.run`.

    `python` is the interpreter that has mmseg, where that is not this one. Raises ValueError where
    the engine does not work or the machine is not one for it, Stopped after saving.
    """
    _check(protocol, machine)
    if python is not None and Path(python) != Path(sys.executable):
        arguments: dict[str, Any] = {
            "candidate": candidate,
            "backbone": backbone,
            "splits": splits,
            "seed": seed,
            "folder": folder,
            "machine": machine,
            "rivals": tuple(rivals),
        }
        return other_interpreter.run(python, __name__, protocol, arguments, report, stop)
    engine = engines.require("mmseg", {})
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):  # mmengine greets on it
        from lewel_bench.evals.segmentation import mmseg_parts as parts
    training = _Training(protocol, candidate, backbone, splits, seed, folder, machine)
    extra: dict[str, Any] = {"select": {}, "versions": engine.text}
    try:
        training.train(report, stop, rivals)
    except parts.Diverged as error:
        return early_outcome(protocol, candidate, extra | training.half(), diverged=error.step)
    except parts.Pruned as error:
        return early_outcome(protocol, candidate, extra | training.half(), pruned=str(error))
    if splits.select is not None:
        extra["select"] = training.measure("select")
        del extra["select"]["per_class"]
    metrics = training.measure("report")
    extra |= {"per_class": metrics.pop("per_class"), **training.half()}
    return Outcome(metrics, chosen=named_values(candidate), extra=extra)


def _check(protocol: "Segmentation", machine: Machine) -> None:
    if machine.device.type == "cpu":
        if distributed.world() > 1:
            raise ValueError(
                f"{distributed.world()} processes on a CPU: mmseg's synchronised batch norm needs "
                "CUDA devices; use one process"
            )
        if protocol.precision != "fp32":
            raise ValueError(
                f"precision {protocol.precision}: mmseg has mixed precision on CUDA only; use fp32"
            )
        if torch.cuda.is_available():
            raise ValueError(
                "--device cpu: mmseg uses any visible CUDA device; use --device cuda, or hide it "
                "with CUDA_VISIBLE_DEVICES="
            )


class _Training:
    """One run of mmengine's Runner, and the measurements of its checkpoints."""

    def __init__(
        self,
        protocol: "Segmentation",
        candidate: tuple[float, float],
        backbone: Path,
        splits: DenseSplits[LabelledImages],
        seed: int,
        folder: Path,
        machine: Machine,
    ) -> None:
        state, spec = checkpoint.read_network(backbone)
        self.protocol, self.splits, self.folder, self.machine = protocol, splits, folder, machine
        self.lists: dict[str, Path] = {}
        self.clock = Clock()
        if distributed.rank() == 0:
            torch.save(weights.to_mmseg(state, spec), folder / "backbone.pth")
        for role in ("train", "select", "report"):
            pictures: LabelledImages | None = getattr(splits, role)
            if pictures is not None:
                self.lists[role] = folder / f"{role}.json"
                listed = [
                    [*(str((pictures.root / f).absolute()) for f in pair), name]
                    for pair, name in zip(pictures.pairs, pictures.names(), strict=True)
                ]
                write_atomically(self.lists[role], json.dumps(listed))
        distributed.wait()
        self.config = mmseg_config.training(
            protocol,
            candidate,
            spec,
            splits.train.classes,
            lists=self.lists,
            weights=folder / "backbone.pth",
            folder=folder,
            seed=seed,
            workers=machine.workers,
            world=distributed.world(),
            cuda=machine.device.type == "cuda",
        )

    def train(self, report: Report, stop: Stop, rivals: Sequence[float]) -> None:
        """The steps that are left. Raises Stopped, Diverged or Pruned."""
        from lewel_bench.evals.segmentation import mmseg_parts as parts

        self.report, self.stop = report, stop
        saved = parts.last(self.folder)
        if saved is not None:
            spent = self.clock.resume(torch.load(saved[1], "cpu", weights_only=False)["meta"])
            report("resumed", step=saved[0], steps=self.protocol.steps, seconds=spent)
        prunes = self.protocol.prune and self.splits.select is not None
        half = self.protocol.steps // 2 if prunes else None

        def halfway(path: Path) -> None:
            metrics = self.measure("select", path)
            metrics.pop("per_class")
            write_atomically(self.folder / "half.json", json.dumps({"step": half, **metrics}))
            self._prune(rivals)

        if saved is not None and saved[0] == half:
            halfway(saved[1])  # it ended before it was measured, or pruned
        if saved is not None and saved[0] == self.protocol.steps:
            return
        goes_on = {} if saved is None else {"resume": True, "load_from": str(saved[1])}
        runner = _runner({**self.config, **goes_on})
        pacer = Pacer(self.machine, stop)
        runner.register_hook(parts.Watch(self.folder, report, pacer, self.clock, half, halfway))
        runner.train()

    def measure(self, role: str, path: Path | None = None) -> dict[str, Any]:
        """mmseg's metrics of a split with the last checkpoint, or the one at `path`; masks of the
        report split stay in the folder."""
        from lewel_bench.evals.segmentation import mmseg_parts as parts

        if path is None:
            saved = parts.last(self.folder)
            assert saved is not None and saved[0] == self.protocol.steps
            path = saved[1]
            if distributed.world() == 1 and self.stop():
                raise Stopped("saved before the evaluation")
        config = mmseg_config.testing(
            self.config,
            self.protocol,
            self.splits.train.classes,
            pictures=self.lists[role],
            checkpoint=path,
            masks=self.folder / "predictions" if role == "report" else None,
            workers=self.machine.workers,
        )
        states = np.random.get_state(), random.getstate()
        with torch.random.fork_rng():
            metrics: dict[str, Any] = _runner(config).test()  # which sets the seeds anew
        np.random.set_state(states[0])
        random.setstate(states[1])
        shown = {k: v for k, v in metrics.items() if isinstance(v, float)}
        self.report("evaluated", split=role, **shown)
        return {**shown, "per_class": metrics["per_class"]}

    def half(self) -> dict[str, Any]:
        """What was measured half-way, for an outcome's `extra`."""
        path = self.folder / "half.json"
        return {"half": json.loads(path.read_text())} if path.is_file() else {}

    def _prune(self, rivals: Sequence[float]) -> None:
        from lewel_bench.evals.segmentation import mmseg_parts as parts

        reason = pruning_reason(self.protocol, self.half()["half"], rivals)
        if reason is not None:
            raise parts.Pruned(reason)


def _runner(config: dict[str, Any]) -> Any:
    from mmengine.config import Config
    from mmengine.runner import Runner

    name = f"{Path(config['work_dir']).name}-{time.time_ns()}"  # mmengine shares state by name
    with contextlib.redirect_stdout(sys.stderr):
        # it writes the configuration out again and again, and formatting it takes seconds
        named = Config({**config, "experiment_name": name}, format_python_code=False)
        return Runner.from_cfg(named)


if __name__ == "__main__":
    sys.exit(other_interpreter.serve(run))
