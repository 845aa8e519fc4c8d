"""The training loop of detection and segmentation, resumable at any step.

Randomness is drawn from (seed, step) or from torch's generators, whose states are saved, so a
killed run resumes bit for bit from its last checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lewel_bench.evals.candidate import early_outcome, named_values, pruning_reason
from lewel_bench.evals.context import Context
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.pretrain import checkpoint, distributed, pacer
from lewel_bench.pretrain.report import Stopped

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection, Segmentation

Role = Literal["select", "report"]
Factor = Callable[[int], float]  # of the learning rate, at a step (0-based)
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Metrics = dict[str, Any]  # floats in percent, and details of other types


class Learner(Protocol):
    """The model to fine-tune, with its data, loss and metrics."""

    @property
    def model(self) -> nn.Module:
        """The model whose parameters are trained."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its optimizer, at the candidate's learning rate and weight decay."""

    def batches(self, start: int) -> Iterator[Any]:
        """This rank's parts of the global batches from step `start` on."""

    def loss(self, forward: Callable[..., Any], batch: Any) -> Tensor:
        """The loss of a batch; `forward` is the model, wrapped if there is more than one rank."""

    def prepare_evaluation(self) -> None:
        """Update the model, in training mode, for an evaluation (PreciseBN)."""

    def evaluate(self, role: Role) -> Metrics:
        """The metrics of a split with the model in eval mode, equal on every rank.

        Values that are not floats are kept as details. The predictions of the report split are
        written into the folder.
        """


@dataclass
class _State:
    """The state of a run besides that of its model and optimizer."""

    step: int = 0
    loss_sum: float = 0.0
    half: Metrics | None = None
    pruned: str | None = None
    diverged: int | None = None  # a step (1-based); never saved


def run(
    learner: Learner,
    protocol: "Detection | Segmentation",
    candidate: tuple[float, float],
    splits: DenseSplits[Any],
    factor: Factor,
    context: Context,
    rivals: Sequence[float] = (),
) -> Outcome:
    """Fine-tune at `candidate` = (lr, weight decay) and evaluate after the last step.

    The learning rate of a step is lr * `factor(step)`. `metrics` are those of the report split;
    `extra["select"]` has those of the select split, by which a candidate is chosen, and
    `extra["half"]` the same after half of the steps if the protocol prunes (`rivals` are these
    scores of finished candidates). A run that diverges or is pruned ends with empty `metrics` and
    `select`, and with its step in `extra["diverged_at_step"]` or the reason in `extra["pruned"]`.
    Resumes from the checkpoints in the folder; raises Stopped after saving.
    """
    loop = _Loop(learner, protocol, candidate[0], factor, context)
    if protocol.prune and splits.select is not None:
        loop.train(protocol.steps // 2)
        loop.evaluate_halfway(rivals)
    loop.train(protocol.steps)
    state, micro = loop.state, context.machine.micro_batch
    extra: dict[str, Any] = {"select": {}}
    warnings = list[str]()
    if micro and micro < protocol.batch // distributed.world():
        warnings.append(f"micro-batch {micro} is not used: batch norm needs the whole batch")
    if state.half is not None:
        extra["half"] = {"step": protocol.steps // 2, **state.half}
    if state.diverged is not None or state.pruned is not None:
        outcome = early_outcome(
            protocol, candidate, extra, diverged=state.diverged, pruned=state.pruned
        )
        return replace(outcome, warnings=[*outcome.warnings, *warnings])
    measured = loop.evaluate(("report",) if splits.select is None else ("select", "report"))
    metrics, details = _split(measured["report"])
    extra |= {"train_loss": state.loss_sum / protocol.steps, **details}
    if "select" in measured:
        extra["select"] = _split(measured["select"])[0]
    return Outcome(metrics, chosen=named_values(candidate), warnings=warnings, extra=extra)


def stop_if_requested(context: Context) -> None:
    """Raise Stopped within an evaluation, before which everything is saved.

    With more than one rank the evaluation is finished first: the ranks do not evaluate in step.
    """
    if distributed.world() == 1 and context.stop():
        raise Stopped("saved before the evaluation")


class _Loop:
    """The state of one fine-tuning between two steps."""

    def __init__(
        self,
        learner: Learner,
        protocol: "Detection | Segmentation",
        lr: float,
        factor: Factor,
        context: Context,
    ) -> None:
        self.learner, self.protocol, self.context = learner, protocol, context
        self.lr, self.factor, self.device = lr, factor, context.machine.device
        self.dtype = DTYPES[protocol.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=protocol.precision == "fp16")
        # the ranks draw different samples of their own images
        torch.manual_seed(context.seed * distributed.world() + distributed.rank())
        self.state = self._resumed()
        self.saved = self.state.step if self.state.step else -1  # the step of the last checkpoint
        learner.model.train()
        self.forward = distributed.data_parallel(learner.model)
        self.pending: list[Tensor] = []  # losses of the last steps, on the device
        # on one CPU a loss costs nothing to fetch: every step is checked
        free = self.device.type == "cpu" and distributed.world() == 1
        self.check_every = 1 if free else pacer.ASK_EVERY
        self.pacer = pacer.Pacer(context.machine, context.stop, self.state.step)
        self.recent: list[float] = []  # losses since the last log

    def train(self, until: int) -> None:
        """Train up to step `until`, unless the run has ended, and save."""
        state = self.state
        if state.step >= until or self._ended():
            return
        self.pacer.restart_log(state.step)
        for batch in self.learner.batches(state.step):
            self.pending.append(self._step(batch))
            state.step += 1
            self._after_step(until)
            if state.step >= until or self._ended():
                break
        if state.diverged is None and not all(
            bool(p.isfinite().all()) for p in self.learner.model.parameters()
        ):
            state.diverged = state.step
        if state.diverged is None and self.saved != state.step:
            self._save()

    def evaluate_halfway(self, rivals: Sequence[float]) -> None:
        """Evaluate the select split half-way and prune a run far below its rivals; training
        continues from the same state."""
        state, model = self.state, self.learner.model
        if self._ended() or state.half is not None or state.step != self.protocol.steps // 2:
            return
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        random = distributed.random_states(self.device)
        state.half, _ = _split(self.evaluate(("select",))["select"])
        distributed.set_random_state(random, self.device)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        state.pruned = pruning_reason(self.protocol, state.half, rivals)
        before = checkpoint.newest(self.context.folder)
        self._save()
        if distributed.rank() == 0 and before is not None:
            before.unlink(missing_ok=True)  # of the same step, but without the half-way metrics

    def evaluate(self, roles: Sequence[Role]) -> dict[str, Metrics]:
        """The metrics of splits; `prepare_evaluation` may change the batch norms of the model."""
        self.learner.prepare_evaluation()
        self.learner.model.eval()
        measured: dict[str, Metrics] = {}
        for role in roles:
            measured[role] = self.learner.evaluate(role)
            shown, _ = _split(measured[role])
            self.context.report("evaluated", step=self.state.step, split=role, **shown)
        self.learner.model.train()
        return measured

    def _step(self, batch: Any) -> Tensor:
        lr = self.lr * self.factor(self.state.step)
        optimizer = self.learner.optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            loss = self.learner.loss(self.forward, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(optimizer)
        self.scaler.update()
        return loss.detach()

    def _after_step(self, until: int) -> None:
        """Check the losses, log, save and stop, each when it is due."""
        state, last = self.state, self.state.step == until
        if not self.pacer.asks(state.step, last=last):
            return
        logs = self.pacer.log_is_due()
        if last or logs or state.step % self.check_every == 0:
            self._check()
        if state.diverged is not None:
            return
        if (logs or state.step == self.protocol.steps) and self.recent:
            self._log()
        if self.pacer.save_is_due():
            self._check()  # no state after a non-finite loss is saved
            if state.diverged is None:
                self._save()
                self.pacer.saved(f"step {state.step} of {self.protocol.steps}")

    def _check(self) -> None:
        """Fetch the losses since the last check; the first that is not finite ends the run."""
        if not self.pending:
            return
        losses = torch.stack(self.pending).float()
        self.pending = []
        distributed.average([losses])
        first = self.state.step - len(losses) + 1  # 1-based
        for step, loss in enumerate(losses.tolist(), first):
            if not abs(loss) < float("inf"):
                self.state.diverged = step
                return
            self.state.loss_sum += loss
            self.recent.append(loss)

    def _log(self) -> None:
        step = self.state.step
        steps, seconds = self.pacer.since_log(step)
        self.context.report(
            "step",
            step=step,
            steps=self.protocol.steps,
            loss=round(sum(self.recent) / len(self.recent), 6),
            lr=self.lr * self.factor(step - 1),
            images_per_s=round(steps * self.protocol.batch / seconds, 1),
        )
        self.recent = []

    def _ended(self) -> bool:
        return self.state.diverged is not None or self.state.pruned is not None

    def _save(self) -> None:
        """Write a complete checkpoint (rank 0; every rank must call it)."""
        state, learner = self.state, self.learner
        random = distributed.random_states(self.device)
        self.saved = state.step
        self.pacer.restart_save()
        if distributed.rank() != 0:
            return
        content = {
            "step": state.step,
            "seconds": self.context.clock.seconds(),
            "loss_sum": state.loss_sum,
            "half": state.half,
            "pruned": state.pruned,
            "model": learner.model.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": random,
        }
        checkpoint.save(self.context.folder, state.step, content)

    def _resumed(self) -> _State:
        saved = checkpoint.load(self.context.folder, self.context.report, self.device)
        if saved is None:
            return _State()
        self.learner.model.load_state_dict(saved["model"])
        self.learner.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        distributed.set_random_state(saved["generators"], self.device)
        spent = self.context.clock.resume(saved)
        self.context.report("resumed", step=saved["step"], steps=self.protocol.steps, seconds=spent)
        return _State(saved["step"], saved["loss_sum"], saved["half"], saved["pruned"])


def _split(measured: Metrics) -> tuple[dict[str, float], dict[str, Any]]:
    """The numbers that a table shows, and the other values."""
    metrics = {name: float(value) for name, value in measured.items() if isinstance(value, float)}
    return metrics, {name: value for name, value in measured.items() if name not in metrics}
