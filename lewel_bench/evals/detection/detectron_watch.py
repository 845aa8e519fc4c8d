"""What happens between two steps of detectron2's trainer: looks, logs, saves and stops."""

import math
import time
from collections.abc import Sequence
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats

from lewel_bench.evals import finetune
from lewel_bench.evals.dense import Detection
from lewel_bench.evals.detection.detectron_eval import evaluate
from lewel_bench.evals.loop import ASK_EVERY, LOG_EVERY_S, Place
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.distributed import any_rank, world
from lewel_bench.pretrain.report import Stopped


class Pruned(Exception):
    """A candidate far below its rivals half-way; the message says how far."""


class Watch(HookBase):  # type: ignore[misc]  # of a package without types
    """Between two steps: looks at the select split half-way, logs, saves and stops."""

    def __init__(self, protocol: Detection, at: Place, rivals: Sequence[float]) -> None:
        self.protocol, self.at, self.rivals = protocol, at, rivals
        self.seen: dict[str, float] = {}
        self.saved_at = self.logged_at = time.perf_counter()
        self.logged = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def before_train(self) -> None:
        if self._looks(self.trainer.start_iter):
            self._look(self.trainer.start_iter)  # it was stopped before, or within
        self.logged, self.logged_at = self.trainer.start_iter, time.perf_counter()

    def after_step(self) -> None:
        step, now = self.trainer.iter + 1, time.perf_counter()
        last = step == self.trainer.max_iter
        half = self._looks(step)
        if now - self.logged_at > LOG_EVERY_S or last:
            self._log(step, now)
        if world() > 1 and step % ASK_EVERY and not last and not half:
            return
        device = self.at.machine.device
        stopping = any_rank(self.at.stop(), device)
        due = now - self.saved_at >= self.at.machine.save_every_s
        if stopping or last or half or any_rank(due, device):
            self.trainer.save(step)
            self.saved_at = time.perf_counter()
        if stopping and not last:
            distributed.wait()
            raise Stopped(f"saved at step {step} of {self.trainer.max_iter}")
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
        states = finetune.generators(device)
        if self.protocol.precise_bn:
            batches = trainer.build_train_loader(trainer.cfg)
            with EventStorage():
                update_bn_stats(trainer.model, batches, self.protocol.precise_bn)
        metrics, _ = evaluate(
            trainer.cfg, trainer.model, trainer.names["select"], self.protocol, self.at
        )
        finetune.set_generators(states, device)
        for name, buffer in trainer.model.named_buffers():
            buffer.copy_(buffers[name])
        self.seen = {"step": step, **metrics}
        reason = finetune.verdict(self.protocol, metrics, self.rivals)
        if reason is not None:
            raise Pruned(reason)

    def _log(self, step: int, now: float) -> None:
        latest = self.trainer.storage.latest()
        images = (step - self.logged) * self.protocol.batch
        loss = latest.get("total_loss", (math.nan, step))[0]  # rank 0 has it
        self.at.report(
            "step",
            step=step,
            steps=self.trainer.max_iter,
            loss=round(float(loss), 6),
            lr=latest["lr"][0],
            images_per_s=round(images / max(now - self.logged_at, 1e-9), 1),
        )
        self.logged, self.logged_at = step, now
