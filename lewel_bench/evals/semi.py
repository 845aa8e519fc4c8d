"""Semi-supervised evaluation: fine-tuning the whole network on 1 % or 10 % of the labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lewel_bench.evals import features, loop, scores
from lewel_bench.evals.context import Context
from lewel_bench.evals.outcome import Outcome, Splits, gap
from lewel_bench.evals.protocol import bn_group_of
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.data import Images
from lewel_bench.pretrain.distributed import average, data_parallel, rank, world
from lewel_bench.pretrain.norm import RunningStatistics

if TYPE_CHECKING:
    from lewel_bench.evals.classification import Semi


def run(
    protocol: "Semi",
    *,
    lr: tuple[float, float],
    backbone: Path,
    splits: Splits,
    context: Context,
) -> Outcome:
    """Fine-tune at `lr` = (backbone lr, head lr); the train split is the labelled subset.

    `extra["select"]` has what the choice among candidates reads (top1, top5 and loss on the select
    split after the last epoch); `metrics` and `paper_rule` are the report split's. A run whose loss
    is not finite ends with empty `metrics` and `select`, and its epoch in
    `extra["diverged_at_epoch"]`. Resumes from the checkpoints in the folder; raises Stopped after
    saving.
    """
    splits.check()
    count = len(splits.train)
    batch = loop.batch_size(protocol, count)
    group, warnings = bn_group_of(protocol.bn_group, batch, world(), context.machine.micro_batch)
    learner = _FineTuned(protocol, lr, backbone, group, splits, context)
    history = loop.train(learner, splits.train, protocol, context)
    chosen = {"backbone_lr": lr[0], "head_lr": lr[1]}
    warnings += [*loop.batch_warning(protocol, count), *scores.top5_note(learner.classes)]
    last, seen = history[-1], loop.best_evaluated(history)
    seen.pop("candidate", None)
    if last["train_loss"][0] is None:
        warning = f"diverged in epoch {last['epoch']} at backbone lr {lr[0]:g}, head lr {lr[1]:g}"
        extra = {"select": {}, "history": history, "diverged_at_epoch": last["epoch"]}
        return Outcome(
            metrics={}, paper_rule=seen, chosen=chosen, warnings=[*warnings, warning], extra=extra
        )
    shown, _ = learner.extract(splits.report)
    if rank() == 0:
        scores.write_predictions(
            context.folder / "predictions.npz",
            splits.report,
            lambda x: learner.model.fc(x).softmax(-1),
            shown,
        )
    metrics = {name: last[name][0] for name in ("top1", "top5")}
    select = {name: last[f"select_{name}"][0] for name in ("top1", "top5", "loss")}
    return Outcome(
        metrics=metrics,
        paper_rule=seen,
        selection_gap=gap(seen, metrics),
        chosen=chosen,
        grid=[{**chosen, **metrics, **{f"select_{k}": v for k, v in select.items()}}],
        warnings=warnings,
        extra={"select": select, "history": history},
    )


class Classifier(nn.Module):
    """A backbone, average pooling and a linear layer with torchvision's default initialisation
    (LEWEL's main_semi.py; its linear probe draws from N(0, .01))."""

    def __init__(self, backbone: ResNet, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C)"""
        logits: Tensor = self.fc(self.backbone(x).mean((2, 3)))
        return logits


class _FineTuned:
    """The network as what `loop.train` trains."""

    def __init__(
        self,
        protocol: "Semi",
        lr: tuple[float, float],
        backbone: Path,
        bn_group: int | None,
        splits: Splits,
        context: Context,
    ) -> None:
        machine = context.machine
        self.protocol, self.machine, self.splits, self.lr = protocol, machine, splits, lr
        self.classes = len(splits.train.classes)
        net = features.load(backbone, machine, bn_group).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            self.model = Classifier(net, self.classes).to(machine.device)
        self.model.train()
        self.buffers = [b for b in self.model.buffers() if b.is_floating_point()]
        self.statistics = RunningStatistics(self.model)
        groups = (net.parameters(), self.model.fc.parameters())
        self.optimizer = torch.optim.SGD(
            [{"params": list(p), "lr": of_group} for p, of_group in zip(groups, lr, strict=True)],
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
        )
        self.forward = data_parallel(self.model)  # statistics are averaged when they are read
        self.loss_sum = torch.zeros((), device=machine.device)

    def step(self, pixels: Tensor, labels: Tensor, factor: float) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.lr, strict=True):
            group["lr"] = lr * factor
        self.statistics.start()
        micro = min(self.machine.micro_batch or len(pixels), len(pixels))
        for x, y in zip(torch.split(pixels, micro), torch.split(labels, micro), strict=True):
            share = len(x) / len(pixels)
            loss = cross_entropy(self.forward(x), y) * share
            loss.backward()  # type: ignore[no-untyped-call]
            self.statistics.add(share)
            self.loss_sum += loss.detach()
        self.statistics.finish()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def mean_loss(self, steps: int) -> list[float | None]:
        average([self.loss_sum])
        mean = float(self.loss_sum) / steps
        self.loss_sum.zero_()
        finite = all(bool(p.isfinite().all()) for p in self.model.parameters())
        return [mean if finite and abs(mean) < float("inf") else None]

    def evaluate(self) -> dict[str, Any]:
        splits = {"select_": self.splits.select, "": self.splits.report}
        return {
            prefix + name: values
            for prefix, images in splits.items()
            for name, values in scores.score(
                lambda x: self.model.fc(x)[None], *self.extract(images)
            ).items()
        }

    def extract(self, images: Images) -> tuple[Tensor, Tensor]:
        """Features and labels of a split with the current backbone, in eval mode."""
        average(self.buffers)
        self.model.eval()
        extracted = features.extract(
            self.model.backbone,
            images,
            size=self.protocol.image_size,
            resize=self.protocol.resize,
            machine=self.machine,
        )
        self.model.train()
        return extracted

    def state_dict(self) -> dict[str, Any]:
        average(self.buffers)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_sum = state["loss_sum"]
