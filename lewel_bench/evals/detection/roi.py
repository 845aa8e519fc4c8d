"""Regions of interest: which proposals train the heads, their losses, and detections from them.

K classes, background is class K; R regions of all images in turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax
from torchvision.ops import batched_nms

from lewel_bench.evals.detection.boxes import (
    Size,
    Weights,
    clip,
    decode,
    draw,
    encode,
    iou,
    l1,
    match,
)

WEIGHTS: Weights = (10.0, 5.0)
OBJECT = 0.5  # overlap from which a region is its object
OBJECTS = 0.25  # of the sampled regions, at most
SCORE, SUPPRESS, PER_IMAGE = 0.05, 0.5, 100  # of detections


@dataclass(frozen=True)
class Regions:
    """The regions that train the heads."""

    boxes: list[Tensor]  # of each image, (r, 4)
    labels: list[Tensor]  # (r,), K for background
    owners: list[Tensor]  # (r,), which object of the image
    targets: Tensor  # (R, 4), the owners' boxes; undefined for background


@torch.no_grad()
def sample(
    proposals: Sequence[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    count: int,
    classes: int,
) -> Regions:
    """`count` regions of each image, drawn from its proposals and its true `boxes`, `labels`."""
    drawn, named, owned, targets = [], [], [], []
    for proposed, truth, label in zip(proposals, boxes, labels, strict=True):
        candidates = torch.cat([proposed, truth])
        owner, hit = match(iou(truth, candidates), OBJECT, OBJECT)
        kind = torch.full_like(owner, classes)
        if len(truth):
            kind = torch.where(hit == 1, label[owner], classes)
        chosen = torch.cat(draw(kind, count, OBJECTS, background=classes))
        drawn.append(candidates[chosen])
        named.append(kind[chosen])
        owned.append(owner[chosen])
        targets.append(truth[owned[-1]] if len(truth) else drawn[-1])
    return Regions(drawn, named, owned, torch.cat(targets))


def box_losses(logits: Tensor, deltas: Tensor, regions: Regions) -> dict[str, Tensor]:
    """Cross-entropy of logits (R, K + 1), L1 of the objects' deltas (R, K, 4); means over all R."""
    labels = torch.cat(regions.labels)
    if not len(labels):
        nothing = (logits.sum() + deltas.sum()) * 0.0
        return {"loss_cls": nothing, "loss_box_reg": nothing}
    (objects,) = (labels < logits.shape[1] - 1).nonzero(as_tuple=True)
    target = encode(torch.cat(regions.boxes)[objects], regions.targets[objects], WEIGHTS)
    place = l1(deltas[objects, labels[objects]], target)
    return {
        "loss_cls": cross_entropy(logits, labels),
        "loss_box_reg": place / len(labels),
    }


def detections(
    logits: Tensor, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[Size]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes (N, 4), scores (N,) and labels (N,) of each image, best first, from its `boxes`."""
    counts = [len(b) for b in boxes]
    scores = torch.split(softmax(logits, dim=-1), counts)
    placed = torch.split(decode(deltas, torch.cat(list(boxes)), WEIGHTS), counts)
    return [_detect(b, s, size) for b, s, size in zip(placed, scores, sizes, strict=True)]


def _detect(boxes: Tensor, scores: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    finite = boxes.isfinite().flatten(1).all(dim=1) & scores.isfinite().all(dim=1)
    likely = (scores[:, :-1] > SCORE) & finite[:, None]  # (R, K)
    labels = likely.nonzero()[:, 1]
    boxes, kept = clip(boxes[likely], size), scores[:, :-1][likely]
    best = batched_nms(boxes, kept.float(), labels, SUPPRESS)[:PER_IMAGE]
    return boxes[best], kept[best], labels[best]
