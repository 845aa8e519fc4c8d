"""Weighted k-nearest-neighbour accuracy of frozen features (InstDisc, arXiv 1805.01978).

Each of the k nearest images of the bank by cosine votes for its class with weight exp(cosine / T).
A class without a vote is not predicted: top-5 counts the classes that have votes, five at most.
Shapes: Q queries, N images in the bank, D features, C classes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lewel_bench.evals import features, scores
from lewel_bench.evals.context import Context
from lewel_bench.evals.outcome import Outcome, Splits
from lewel_bench.pretrain.distributed import rank
from lewel_bench.pretrain.pacer import Pacer
from lewel_bench.pretrain.report import Stopped

if TYPE_CHECKING:
    from lewel_bench.evals.classification import Knn

SIMILARITIES = 2**27  # kept in memory at once: 512 MiB in fp32


def run(
    protocol: "Knn",
    *,
    backbone: Path,
    splits: Splits,
    context: Context,
) -> Outcome:
    """kNN accuracy of the report split with the train split as bank; nothing is chosen.

    `metrics` has top1 and top5 of the first k, and top1_k20 and so on of the others. Deterministic,
    whatever the seed, and not resumable. Raises Stopped.
    """
    splits.check()
    machine = context.machine
    net = features.load(backbone, machine)
    batches = features.passes(splits.train) + features.passes(splits.report)
    after = _watch(batches, context)
    bank, queries = (
        features.extract(
            net,
            images,
            size=protocol.image_size,
            resize=protocol.resize,
            machine=machine,
            after=after,
        )
        for images in (splits.train, splits.report)
    )
    classes = len(splits.train.classes)
    metrics, warnings = measure(bank, queries, protocol.ks, protocol.temperature, classes)
    if rank() == 0:
        k = min(protocol.ks[0], len(bank[0]))
        votes = vote(bank, queries[0], k, protocol.temperature, classes)
        scores.write_predictions(
            context.folder / "predictions.npz",
            splits.report,
            lambda v: v / v.clamp_min(0).sum(1, keepdim=True),
            votes,
        )
    return Outcome(
        metrics=metrics,
        chosen={"k": protocol.ks[0], "temperature": protocol.temperature},
        warnings=[*warnings, *_top5_note(min(classes, *protocol.ks[:1]))],
        extra={"bank": len(splits.train), "note": f"bank: all {len(bank[0])} training images"},
    )


def _top5_note(most: int) -> list[str]:
    if most >= 5:
        return []
    return [f"top5 counts the classes that neighbours vote for: at most {most}"]


def _watch(steps: int, context: Context) -> Callable[[], None]:
    """A function to call after each batch, which reports progress and raises Stopped if asked."""
    step, pacer = 0, Pacer(context.machine, context.stop)

    def after() -> None:
        nonlocal step
        step += 1
        if step == steps or pacer.log_is_due():
            pacer.restart_log(step)
            context.report("step", step=step, steps=steps)
        if pacer.asks(step) and pacer.stop_requested():
            raise Stopped("kNN does not checkpoint; it will restart from the beginning")

    return after


def measure(
    bank: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    ks: Sequence[int],
    temperature: float,
    classes: int,
) -> tuple[dict[str, float], list[str]]:
    """Accuracies in percent for each k, with a warning for each k larger than the bank."""
    metrics, warnings = dict[str, float](), list[str]()
    for i, k in enumerate(ks):
        if k > len(bank[0]):
            warnings.append(f"kNN: k {k} exceeds the bank of {len(bank[0])} images: all are used")
        votes = vote(bank, queries[0], min(k, len(bank[0])), temperature, classes)
        accuracy = scores.score(lambda chosen: chosen[None], votes, queries[1])
        if i == 0:
            metrics.update(top1=accuracy["top1"][0], top5=accuracy["top5"][0])
        else:
            metrics[f"top1_k{k}"] = accuracy["top1"][0]
    return metrics, warnings


@torch.no_grad()
def vote(
    bank: tuple[Tensor, Tensor], queries: Tensor, k: int, temperature: float, classes: int
) -> Tensor:
    """Sum of the weights of each class (Q, C) among the k nearest images of the bank (N, D), (N,),
    relative to the weight of the nearest; -inf for a class without votes."""
    keys = normalize(bank[0], dim=1)  # (N, D)
    votes = queries.new_full((len(queries), classes), -torch.inf)
    chunk = max(1, SIMILARITIES // len(keys))
    for query, out in zip(torch.split(queries, chunk), torch.split(votes, chunk), strict=True):
        near = (normalize(query, dim=1) @ keys.mT).topk(k, dim=1)  # (q, k)
        voted = bank[1][near.indices]  # (q, k)
        # relative to the largest, so that a low temperature does not overflow
        weights = ((near.values - near.values[:, :1]) / temperature).exp()
        out.scatter_(1, voted, 0.0).scatter_add_(1, voted, weights)
    return votes
