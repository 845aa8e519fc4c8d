"""The one pre-training loop: every method, one process or many, resumable at any step.

A run is determined by (recipe, seed, images). All randomness is drawn from (seed, step) or (seed,
epoch, image), so a killed run resumes bit for bit from its last checkpoint.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lewel_bench.pretrain import checkpoint, distributed, methods, optim
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.centre_crops import CentreCrops
from lewel_bench.pretrain.collapse import UNTRAINED, collapse_note
from lewel_bench.pretrain.data import Batch, Images, view_batches, views_of
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.method import Method, answer
from lewel_bench.pretrain.norm import RunningStatistics
from lewel_bench.pretrain.pacer import Pacer
from lewel_bench.pretrain.recipe import Recipe, shares
from lewel_bench.pretrain.report import Diverged, Report, Stop
from lewel_bench.pretrain.schedule import lr_at
from lewel_bench.pretrain.views import AUGMENTS

Monitor = Callable[[ResNet, int], dict[str, float]]  # of a backbone after so many epochs


@dataclass(frozen=True)
class Trained:
    """The result of a pre-training: the backbone's file, what was measured, and seconds spent."""

    backbone: Path
    metrics: dict[str, float]
    seconds: float


def run(
    recipe: Recipe,
    *,
    seed: int,
    images: Images,
    folder: Path,
    machine: Machine,
    report: Report,
    stop: Stop,
    monitor: Monitor | None = None,
    monitor_every: int = 10,
) -> Trained:
    """Pre-train `recipe` on `images` and write `folder/backbone.safetensors`.

    Resumes from the newest intact checkpoint in `folder`. `monitor` is called before the first step
    and every `monitor_every` epochs with the backbone and the epoch, and returns named numbers; it
    must not draw from the global random generators. Raises Stopped after saving when `stop()` turns
    true, Diverged if a loss is not finite, ValueError if the images or the number of processes do
    not fit the recipe.
    """
    loop = Loop(recipe, seed, images, folder, machine, report, stop)
    if monitor and loop.step == 0:
        loop.observe(0, monitor)
    for epoch in range(loop.step // loop.per_epoch, recipe.epochs):
        loop.train_epoch(epoch)
        if monitor and ((epoch + 1) % monitor_every == 0 or epoch + 1 == recipe.epochs):
            loop.observe(epoch + 1, monitor)
        if epoch + 1 < recipe.epochs:
            loop.save_if_due()
    return loop.finish()


class Loop:
    """The state of one pre-training between two steps."""

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        images: Images,
        folder: Path,
        machine: Machine,
        report: Report,
        stop: Stop,
    ) -> None:
        self.recipe, self.images, self.folder = recipe, images, folder
        self.machine, self.report = machine, report
        self.local, self.micro = _batches(recipe, machine, len(images))
        self.per_epoch = len(images) // recipe.batch
        self.steps = self.per_epoch * recipe.epochs
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.method: Method = methods.build(
            recipe, seed, images=len(images), classes=len(images.classes)
        )
        if methods.settings_of(recipe).whole_batch and self.micro < self.local:
            raise ValueError(
                f"--micro-batch {self.micro}: {recipe.method} compares all images of a batch, so "
                f"a process must hold its {self.local} images at once. Use more processes or a "
                "smaller batch"
            )
        self.method.to(device=machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.method.train()
        self.optimizer = optim.build(recipe.optimizer, self.method)
        self.running = RunningStatistics(self.method)
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.precision]
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=recipe.precision == "fp16")
        self.step, self.metrics = 0, dict[str, float]()
        self.seconds = 0.0  # of training, over all attempts
        self.diagnostics: dict[str, Tensor] = {}
        # losses of the current epoch, on the device until a log fetches them
        self.losses = torch.zeros(self.per_epoch, device=machine.device)
        self._resume()
        if machine.compile:
            self.method.compile()
        self.forward = distributed.data_parallel(self.method)
        self.batches = view_batches(
            images,
            AUGMENTS[recipe.augment],
            recipe.image_size,
            batch=recipe.batch,
            seed=seed,
            start_step=self.step,
            steps=self.steps,
            rank=distributed.rank(),
            world=distributed.world(),
            workers=machine.workers,
        )
        self.pacer = Pacer(machine, stop, self.step)
        self.waited = 0.0  # seconds for data since the last log

    def train_epoch(self, epoch: int) -> None:
        """All remaining steps of `epoch`; the last log of an epoch is at its end."""
        if self.step == epoch * self.per_epoch:
            with self._autocast():
                crops = CentreCrops(self.images, self.recipe, self.machine)
                self.method.before_epoch(epoch, crops)
        while self.step < (epoch + 1) * self.per_epoch:
            began = time.perf_counter()
            batch = next(self.batches)
            self.waited += time.perf_counter() - began
            self.losses[self.step % self.per_epoch] = self.train_step(batch)
            self.step += 1
            if self.step % self.per_epoch == 0:
                self._log()
            elif self.pacer.asks(self.step):
                if self.pacer.log_is_due():
                    self._log()
                self.save_if_due()

    def train_step(self, batch: Batch) -> Tensor:
        """One optimizer step on the local part of a global batch; returns its mean loss."""
        lr = self._lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.rate(group, lr, self.recipe.optimizer.lr)
        views = views_of(batch, self.machine, self.step // self.per_epoch)
        with self._autocast():
            keys = self.method.keys(views, self.step)
        total = torch.zeros((), device=self.machine.device)
        share = self.micro / self.local
        self.running.start()
        for first in range(0, self.local, self.micro):
            rows = slice(first, first + self.micro)
            last = first + self.micro >= self.local
            with distributed.sync_gradients(self.forward, last):
                with self._autocast():
                    output = self.forward(views.rows(rows), keys, rows)
                loss, diagnostics = answer(self.method, output)
                torch.autograd.backward(self.scaler.scale(loss * share))
            self.running.add(share)
            total += loss.detach() * share
        self.running.finish()
        self.method.after_backward(keys)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        distributed.average(self.running.values)
        self.method.after_step(keys, self.step, self.steps)
        self.diagnostics = diagnostics
        return total

    def observe(self, epoch: int, monitor: Monitor) -> None:
        """Report what the monitor measures of the backbone in evaluation mode; warn of collapsed
        features."""
        self.method.eval()
        measured = monitor(self.method.backbone, epoch)
        self.method.train()
        prefix = "" if epoch else UNTRAINED
        self.metrics.update({prefix + name: value for name, value in measured.items()})
        self.report("monitor", epoch=epoch, step=self.step, **measured)
        if note := collapse_note(self.metrics, self.recipe.backbone):
            self.report("warning", message=f"epoch {epoch}: {note}")
        self.pacer.restart_log(self.step)
        self.waited = 0.0

    def finish(self) -> Trained:
        """Write the backbone and the projector (rank 0), and return the result."""
        path = self.folder / "backbone.safetensors"
        if distributed.rank() == 0:
            header = checkpoint.header_of(self.recipe.backbone)
            checkpoint.write_backbone(path, self.method.backbone.state_dict(), header)
            if self.method.projector is not None:
                header = {"method": self.recipe.method, "backbone": checkpoint.sha256(path)}
                projector = self.folder / checkpoint.PROJECTOR
                checkpoint.write_backbone(projector, self.method.projector.state_dict(), header)
        return Trained(path, dict(self.metrics), self.seconds)

    def _log(self) -> None:
        if self.step % self.per_epoch == 0:
            distributed.average([self.losses])  # at the end of an epoch every rank logs
        all_losses = self.losses[: (self.step - 1) % self.per_epoch + 1].tolist()
        steps, spent = self.pacer.since_log(self.step)
        losses = all_losses[-steps:]
        waited, self.waited = self.waited, 0.0
        self.seconds += spent
        for step, loss in enumerate(losses, self.step - steps):
            if not math.isfinite(loss):
                raise Diverged(self._diverged(step, loss))
        named = {name: float(value) for name, value in self.diagnostics.items()}
        if self.step % self.per_epoch == 0:
            self.metrics.update({"loss": sum(all_losses) / len(all_losses), **named})
        self.report(
            "step",
            step=self.step,
            steps=self.steps,
            epoch=round(self.step / self.per_epoch, 3),
            loss=round(sum(losses) / len(losses), 6),
            lr=float(self.optimizer.param_groups[0]["lr"]),
            images_per_s=round(len(losses) * self.recipe.batch / spent, 1),
            data_wait=round(waited / spent, 4),
            **{name: round(value, 6) for name, value in named.items()},
        )

    def _diverged(self, step: int, loss: float) -> str:
        recipe, lr = self.recipe, self._lr(step)
        last = checkpoint.newest(self.folder)
        return (
            f"the loss is {loss} at step {step} of {self.steps} (lr {lr:.6g}). "
            f"Last good checkpoint: {last or 'none'}. "
            f"Try a lower learning rate, such as --set optimizer.lr={recipe.optimizer.lr / 2:g}"
        )

    def save_if_due(self) -> None:
        """Save when it is time to, or when a stop was requested (then raise Stopped)."""
        if not self.pacer.save_is_due():
            return
        if self.pacer.logged < self.step:
            self._log()  # checks the losses: no state after a non-finite loss is saved
        self.save()
        self.pacer.saved(f"step {self.step} of {self.steps}")

    def save(self) -> None:
        """Write a complete checkpoint (rank 0; every rank must call it)."""
        states = distributed.random_states(self.machine.device)
        if distributed.rank() != 0:
            return
        path = checkpoint.save(
            self.folder,
            self.step,
            {
                "step": self.step,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rng": states,
                "losses": self.losses,
                "metrics": self.metrics,
                "seconds": self.seconds,
            },
        )
        self.report("checkpoint", step=self.step, file=path.name)

    def _resume(self) -> None:
        state = checkpoint.load(self.folder, self.report, self.machine.device)
        if state is None:
            return
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.metrics, self.seconds = state["step"], state["metrics"], state["seconds"]
        self.losses.copy_(state["losses"])
        distributed.set_random_state(state["rng"], self.machine.device)
        self.report("resumed", step=self.step, steps=self.steps)

    def _lr(self, step: int) -> float:
        recipe = self.recipe
        return lr_at(recipe.optimizer.lr, recipe.schedule, step, self.per_epoch, recipe.epochs)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.machine.device.type, dtype=self.dtype, enabled=self.dtype is not None
        )


def _batches(recipe: Recipe, machine: Machine, count: int) -> tuple[int, int]:
    """Images per step and per forward pass on this rank, checked against the recipe."""
    if count < recipe.batch:
        raise ValueError(
            f"{count} training images are fewer than one batch of {recipe.batch}: "
            f"set a smaller batch, such as --set batch={max(1, count // 4)}"
        )
    return shares(recipe, distributed.world(), machine.micro_batch)
