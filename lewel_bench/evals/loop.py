"""The training loop of linear and semi-supervised evaluation, resumable at any step.

All randomness is drawn from (seed, epoch), so a killed run resumes bit for bit.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lewel_bench.evals.context import Context
from lewel_bench.evals.protocol import batch_of
from lewel_bench.pretrain import checkpoint, distributed
from lewel_bench.pretrain.augment import normalise
from lewel_bench.pretrain.data import Images, image_batches
from lewel_bench.pretrain.pacer import Pacer
from lewel_bench.pretrain.recipe import Schedule
from lewel_bench.pretrain.schedule import lr_at, step_decay

if TYPE_CHECKING:
    from lewel_bench.evals.classification import Linear, Semi

History = list[dict[str, Any]]


class Learner(Protocol):
    """The model to train, with its metrics."""

    def step(self, pixels: Tensor, labels: Tensor, factor: float) -> None:
        """One optimizer step on this rank's (B, 3, S, S), (B,), at `factor` times its
        learning rates."""

    def mean_loss(self, steps: int) -> list[float | None]:
        """Mean loss of each candidate since the last call; None for one that diverged."""

    def evaluate(self) -> dict[str, Any]:
        """Plain numbers for the history, on the select and report splits."""

    def state_dict(self) -> dict[str, Any]:
        """The complete state of the training; every rank must call it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


def train(learner: Learner, images: Images, protocol: "Linear | Semi", context: Context) -> History:
    """Train for the protocol's epochs, from the newest checkpoint if there is one.

    Returns the results of `evaluate` every `eval_every` epochs and after the last, each with
    "epoch" and "train_loss". Ends early, without evaluating, if all candidates have diverged. An
    incomplete last batch is dropped; a set smaller than one batch is one batch. Raises Stopped
    after saving.
    """
    batch = batch_size(protocol, len(images))
    steps = len(images) // batch  # an epoch
    first, start, history = _resume(learner, context)
    saver = _Saver(learner, context, batch, steps, protocol.epochs, first * steps + start)
    for epoch in range(first, protocol.epochs):
        factor = lr_factor(protocol, epoch)
        batches = image_batches(
            images,
            protocol.image_size,
            crop="random",
            resize=protocol.resize,
            crop_scale=protocol.crop_scale,
            batch=batch,
            seed=context.seed,
            epoch=epoch,
            shuffle=True,
            drop_last=True,
            workers=context.machine.workers,
            start=start,
            rank=distributed.rank(),
            world=distributed.world(),
        )
        for step, part in enumerate(batches, start):
            pixels = normalise(part.pixels, context.machine.device)
            learner.step(pixels, part.labels.to(context.machine.device, non_blocking=True), factor)
            saver.after_step(epoch, step + 1, history)
        start = 0
        losses = learner.mean_loss(steps)
        context.report(
            "epoch", epoch=epoch + 1, epochs=protocol.epochs, factor=factor, train_loss=losses
        )
        entry = {"epoch": epoch + 1, "train_loss": losses}
        if all(loss is None for loss in losses):
            history.append(entry)
            break
        if (epoch + 1) % protocol.eval_every == 0 or epoch + 1 == protocol.epochs:
            history.append(entry | learner.evaluate())
    if first < protocol.epochs:
        saver.save(protocol.epochs, 0, history)
    return history


def steps_of(protocol: "Linear | Semi", count: int) -> int:
    """The steps of a training on `count` images."""
    return protocol.epochs * (count // batch_size(protocol, count))


def batch_size(protocol: "Linear | Semi", count: int) -> int:
    """Images of one global step. Raises ValueError if the processes cannot share them equally."""
    return batch_of(protocol.batch, count, distributed.world())


def batch_warning(protocol: "Linear | Semi", count: int) -> list[str]:
    """A warning if the images are fewer than the protocol's batch."""
    batch = batch_size(protocol, count)
    if batch == protocol.batch:
        return []
    return [f"{count} training images are fewer than the batch of {protocol.batch}: used {batch}"]


def lr_factor(protocol: "Linear | Semi", epoch: int) -> float:
    """The factor of the learning rates in `epoch` (0-based)."""
    if protocol.milestones:
        return step_decay(1.0, epoch, protocol.milestones)
    return lr_at(1.0, Schedule(), epoch, 1, protocol.epochs)


def best_evaluated(history: History, metrics: Sequence[str] = ("top1", "top5")) -> dict[str, Any]:
    """The paper's rule: the evaluated epoch and candidate best on the report split's top-1.

    Returns "epoch", "candidate" (its index in the grid) and its metrics, of equals the first; {}
    if no value is finite.
    """
    best: dict[str, Any] = {}
    for entry in history:
        for g, value in enumerate(entry.get("top1", ())):
            if value is not None and (not best or value > best["top1"]):
                scores = {name: entry[name][g] for name in metrics}
                best = {"epoch": entry["epoch"], "candidate": g, **scores}
    return best


def _resume(learner: Learner, context: Context) -> tuple[int, int, History]:
    state = checkpoint.load(context.folder, context.report, context.machine.device)
    if state is None:
        return 0, 0, []
    learner.load_state_dict(state["learner"])
    spent = context.clock.resume(state)
    context.report("resumed", epoch=state["epoch"], step=state["step"], seconds=spent)
    return state["epoch"], state["step"], state["history"]


class _Saver:
    """Logs and saves between steps, when due."""

    def __init__(
        self, learner: Learner, context: Context, batch: int, steps: int, epochs: int, done: int
    ) -> None:
        self.learner, self.context, self.batch = learner, context, batch
        self.steps, self.total = steps, context.before + steps * epochs + context.after
        self.pacer = Pacer(context.machine, context.stop, context.before + done)

    def after_step(self, epoch: int, step: int, history: History) -> None:
        """Log, save and stop, each if due after `step` steps of `epoch`."""
        context = self.context
        done = context.before + epoch * self.steps + step
        if not self.pacer.asks(step, last=step == self.steps):
            return
        if self.pacer.log_is_due():
            steps, seconds = self.pacer.since_log(done)
            context.report(
                "step",
                step=done,
                steps=self.total,
                epoch=round(epoch + step / self.steps, 3),
                images_per_s=round(steps * self.batch / seconds, 1),
            )
        if self.pacer.save_is_due():
            self.save(epoch, step, history)
            self.pacer.saved(f"step {done} of {self.total}")

    def save(self, epoch: int, step: int, history: History) -> None:
        """Write a checkpoint (rank 0; every rank must call it)."""
        state = self.learner.state_dict()
        if distributed.rank() == 0:
            done = epoch * self.steps + step
            content = {"epoch": epoch, "step": step, "history": history, "learner": state}
            content["seconds"] = self.context.clock.seconds()
            checkpoint.save(self.context.folder, done, content)


def none_if_diverged(values: Sequence[float], divergence: Sequence[object]) -> list[float | None]:
    """`values` with None for each candidate that diverged (JSON has no NaN)."""
    return [None if d is not None else v for v, d in zip(values, divergence, strict=True)]
