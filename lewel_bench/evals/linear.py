"""Linear evaluation: the whole grid of heads on a frozen backbone, in one pass over the data."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lewel_bench.evals import features, knn, loop, scores
from lewel_bench.evals.context import Context
from lewel_bench.evals.grid import edge_warning
from lewel_bench.evals.heads import Heads
from lewel_bench.evals.outcome import Outcome, Splits, gap, join
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.data import Images
from lewel_bench.pretrain.distributed import Machine, gather, rank

if TYPE_CHECKING:
    from lewel_bench.evals.classification import Linear

Cached = tuple[Tensor, Tensor]  # features (N, D) and labels (N,) of a split


def run(
    protocol: "Linear",
    *,
    backbone: Path,
    splits: Splits,
    context: Context,
) -> Outcome:
    """Train every head of the grid, choose on the select split, measure on the report split.

    The chosen head has the best select top-1 after the last epoch (then the lower select loss); no
    epoch is chosen. With `refit` its settings are trained once more on train and select together:
    `metrics` are then the refit's, while `selection_gap` and `extra["held_out"]` still compare
    within the first run. Resumes from the checkpoints in the folder; raises Stopped after saving,
    ValueError when every head diverged or the splits do not match.
    """
    splits.check()
    net = features.load(backbone, context.machine)
    before = features.digest(net)
    steps = loop.steps_of(protocol, len(splits.train))
    more = loop.steps_of(protocol, len(splits.train) + len(splits.select)) if protocol.refit else 0
    at, machine = replace(context, after=more), context.machine
    select, shown = (_cache(net, i, protocol, machine) for i in (splits.select, splits.report))
    probe = _Probe(net, protocol, protocol.grid(), splits, at, {"select_": select, "": shown})
    history = loop.train(probe, splits.train, protocol, at)
    rows = _rows(protocol, probe.heads, history)
    best = choose(rows)
    outcome = _outcome(protocol, rows, best, history, splits)
    head, images = best, splits.train
    if protocol.refit:
        at = replace(context, folder=context.folder / "refit", before=steps)
        images = join(splits.train, splits.select)
        probe = _Probe(net, protocol, [protocol.grid()[best]], splits, at, {"": shown})
        head, again = 0, loop.train(probe, images, protocol, at)
        outcome = _refitted(outcome, again[-1])
    if protocol.knn_k:
        bank = _cache(net, images, protocol, machine)
        accuracy, notes = knn.measure(
            bank, shown, [protocol.knn_k], protocol.knn_temperature, len(images.classes)
        )
        name, excluded = (
            ("train", "") if protocol.refit else ("train_less_held_out", " not held out")
        )
        outcome.metrics[f"knn_top1_bank_{name}"] = accuracy["top1"]
        outcome.extra["note"] += f". kNN bank: the {len(images)} training images{excluded}"
        outcome.warnings.extend(notes)
    if rank() == 0:
        scores.write_predictions(
            context.folder / "predictions.npz",
            splits.report,
            lambda x: probe.heads.logits(x)[head].softmax(-1),
            shown[0],
        )
    assert features.digest(net) == before, "the frozen backbone has changed"
    return outcome


def choose(rows: Sequence[dict[str, Any]]) -> int:
    """The index of the row with the best select_top1, then the lowest select_loss, then the first.

    Reads only these two fields. Raises ValueError when every row diverged.
    """
    alive = [g for g, row in enumerate(rows) if row["select_top1"] is not None]
    if not alive:
        lrs = ", ".join(f"{row['lr']:g} (step {row['diverged_at']})" for row in rows)
        raise ValueError(
            f"every head of the grid diverged: lr {lrs}. Set lower learning rates (lrs)"
        )
    return max(alive, key=lambda g: (rows[g]["select_top1"], -rows[g]["select_loss"]))


class _Probe:
    """The heads as what `loop.train` trains; evaluated on cached features."""

    def __init__(
        self,
        net: ResNet,
        protocol: "Linear",
        grid: Sequence[tuple[float, float]],
        splits: Splits,
        at: Context,
        cached: dict[str, Cached],
    ) -> None:
        self.net, self.micro_batch, self.cached = net, at.machine.micro_batch, cached
        self.heads = Heads(
            grid,
            net.channels,
            len(splits.train.classes),
            optimizer=protocol.optimizer,
            momentum=protocol.momentum,
            trust=protocol.trust,
            init_std=protocol.init_std,
            seed=at.seed,
            device=at.machine.device,
        )
        self.state_dict = self.heads.state_dict
        self.load_state_dict = self.heads.load_state_dict

    def step(self, pixels: Tensor, labels: Tensor, factor: float) -> None:
        # every rank updates the same heads with the whole batch, so they stay equal
        x = gather(features.pooled(self.net, pixels, self.micro_batch))
        self.heads.step(x, gather(labels), factor)

    def mean_loss(self, steps: int) -> list[float | None]:
        return loop.none_if_diverged(self.heads.mean_loss(steps), self.heads.divergence())

    def evaluate(self) -> dict[str, Any]:
        diverged = self.heads.divergence()
        return {
            prefix + name: loop.none_if_diverged(values, diverged)
            for prefix, split in self.cached.items()
            for name, values in scores.score(self.heads.logits, *split).items()
        }


def _cache(net: ResNet, images: Images, protocol: "Linear", machine: Machine) -> Cached:
    size, resize = protocol.image_size, protocol.resize
    return features.extract(net, images, size=size, resize=resize, machine=machine)


def _rows(protocol: "Linear", heads: Heads, history: loop.History) -> list[dict[str, Any]]:
    last, diverged = history[-1], heads.divergence()
    names = ("train_loss", "select_top1", "select_top5", "select_loss", "top1", "top5")
    nothing = [None] * len(diverged)
    return [
        {"lr": lr, "weight_decay": decay, "diverged_at": diverged[g]}
        | {name: last.get(name, nothing)[g] for name in names}
        for g, (lr, decay) in enumerate(protocol.grid())
    ]


def _outcome(
    protocol: "Linear",
    rows: list[dict[str, Any]],
    best: int,
    history: loop.History,
    splits: Splits,
) -> Outcome:
    row = rows[best]
    metrics = {name: row[name] for name in ("top1", "top5")}
    seen = loop.best_evaluated(history)
    at = rows[seen.pop("candidate")]
    train, held_out = len(splits.train), len(splits.select)
    count = train + held_out
    warnings = [
        *loop.batch_warning(protocol, train),
        *scores.top5_note(len(splits.train.classes)),
        *(f"lr {r['lr']:g} diverged at step {r['diverged_at']}" for r in rows if _has_diverged(r)),
        *filter(None, (_edge(name, row, rows) for name in ("lr", "weight_decay"))),
    ]
    return Outcome(
        metrics=dict(metrics),
        paper_rule={**seen, "lr": at["lr"], "weight_decay": at["weight_decay"]},
        selection_gap=gap(seen, metrics),
        chosen={name: row[name] for name in ("lr", "weight_decay")},
        grid=rows,
        warnings=warnings,
        extra={
            "select": {name: row[f"select_{name}"] for name in ("top1", "top5", "loss")},
            "note": f"{held_out} of {count} training images ({held_out / count:.1%}) were held out "
            "to choose the learning rate",
            "history": history,
        },
    )


def _refitted(outcome: Outcome, last: dict[str, Any]) -> Outcome:
    if last["train_loss"][0] is None:
        raise ValueError(
            f"the refit with {outcome.chosen} diverged: set lower learning rates (lrs)"
        )
    metrics = {name: last[name][0] for name in ("top1", "top5")}
    extra = {**outcome.extra, "held_out": outcome.metrics}
    extra["note"] += "; the metrics are those of a second training on all of them"
    return replace(outcome, metrics=metrics, extra=extra)


def _has_diverged(row: dict[str, Any]) -> bool:
    return row["diverged_at"] is not None


def _edge(name: str, best: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    # a diverged neighbour bounds the grid as well as a worse one
    return edge_warning(name, best[name], [row[name] for row in rows])
