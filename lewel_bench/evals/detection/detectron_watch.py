"""What happens between two steps of detectron2's trainer: looks, logs, saves and stops."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats

from lewel_bench.evals.candidate import pruning_reason
from lewel_bench.evals.context import Context
from lewel_bench.evals.detection.detectron_eval import evaluate
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.pacer import Pacer

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection


class Pruned(Exception):
    """A candidate far below its rivals half-way; the message says how far."""


class Watch(HookBase):  # type: ignore[misc]  # of a package without types
    """Between two steps: looks at the select split half-way, logs, saves and stops."""

    def __init__(self, protocol: "Detection", at: Context, rivals: Sequence[float]) -> None:
        self.protocol, self.at, self.rivals = protocol, at, rivals
        self.seen: dict[str, float] = {}
        self.pacer = Pacer(at.machine, at.stop)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the looks at the select split."""
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.seen = state["seen"]

    def before_train(self) -> None:
        """Repeat the look that a stop may have cut off."""
        if self._looks(self.trainer.start_iter):
            self._look(self.trainer.start_iter)  # it was stopped before, or within
        self.pacer.restart_log(self.trainer.start_iter)

    def after_step(self) -> None:
        """Log, ask the ranks, save and look, each when due."""
        step, steps = self.trainer.iter + 1, self.trainer.max_iter
        last, half = step == steps, self._looks(step)
        if last or self.pacer.log_is_due():
            self._log(step)
        if not self.pacer.asks(step, last=last or half):
            return
        if self.pacer.save_is_due(now=last or half):
            self.trainer.save(step)
            if not last:
                self.pacer.saved(f"step {step} of {steps}")
        if half:
            self._look(step)

    def _looks(self, step: int) -> bool:
        prunes = self.protocol.prune is not None and len(self.trainer.cfg.DATASETS.TEST) > 1
        return prunes and step == self.protocol.steps // 2 > 0

    def _look(self, step: int) -> None:
        """Measure the select split with statistics as after the last step; leaves no trace.

        Raises Stopped within, after which a run begins with the look, and Pruned.
        """
        trainer = self.trainer
        buffers = {name: b.clone() for name, b in trainer.model.named_buffers()}
        device = self.at.machine.device
        random = distributed.random_states(device)
        if self.protocol.precise_bn:
            batches = trainer.build_train_loader(trainer.cfg)
            with EventStorage():
                update_bn_stats(trainer.model, batches, self.protocol.precise_bn)
        metrics, _ = evaluate(
            trainer.cfg, trainer.model, trainer.names["select"], self.protocol, self.at
        )
        distributed.set_random_state(random, device)
        for name, buffer in trainer.model.named_buffers():
            buffer.copy_(buffers[name])
        self.seen = {"step": step, **metrics}
        reason = pruning_reason(self.protocol, metrics, self.rivals)
        if reason is not None:
            raise Pruned(reason)

    def _log(self, step: int) -> None:
        latest = self.trainer.storage.latest()
        steps, seconds = self.pacer.since_log(step)
        loss = latest.get("total_loss", (math.nan, step))[0]  # rank 0 has it
        self.at.report(
            "step",
            step=step,
            steps=self.trainer.max_iter,
            loss=round(float(loss), 6),
            lr=latest["lr"][0],
            images_per_s=round(steps * self.protocol.batch / seconds, 1),
        )
