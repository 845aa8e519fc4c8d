"""The region proposal network (arXiv 1506.01497) as detectron2 computes it.

B images, L levels of A anchors a cell; R = the sum of h * w * A over the levels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu
from torchvision.ops import batched_nms

from lewel_bench.evals.detection.anchors import RATIOS, Anchors
from lewel_bench.evals.detection.boxes import (
    Size,
    Weights,
    clip,
    decode,
    draw,
    encode,
    filled,
    iou,
    l1,
    match,
)

WEIGHTS: Weights = (1.0, 1.0)
OBJECT, BACKGROUND = 0.7, 0.3  # overlaps from which, and below which, an anchor is one
OBJECTS = 0.5  # of the sampled anchors, at most
SUPPRESS = 0.7  # overlap with a better proposal


class RPN(nn.Module):
    """Scores and regresses the anchors of every level; one set of weights for all levels.

    `samples` anchors of an image are trained; of its proposals `before` (train, test) a level
    enter the suppression and `after` leave it.
    """

    def __init__(
        self,
        channels: int,
        sizes: Sequence[Sequence[float]],
        strides: Sequence[int],
        samples: int,
        before: tuple[int, ...],
        after: tuple[int, ...],
    ) -> None:
        super().__init__()
        a = len(sizes[0]) * len(RATIOS)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, a, 1)
        self.deltas = nn.Conv2d(channels, 4 * a, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.anchors = Anchors(sizes, strides)
        self.samples, self.before, self.after = samples, before, after

    def forward(
        self, levels: Sequence[Tensor], sizes: Sequence[Size], objects: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals (P, 4) of each image, best first, and the losses where `objects` are given.

        `objects` holds the true boxes (N, 4) of each image. Predictions that are not finite are
        left out: the losses then say that training has diverged.
        """
        anchors = self.anchors(levels)
        logits, deltas = self._predict(levels)
        losses = {} if objects is None else self._losses(anchors, logits, deltas, objects)
        return self._propose(anchors, logits, deltas, sizes), losses

    def _predict(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Each level's logits (B, h * w * A) and deltas (B, h * w * A, 4)."""
        logits, deltas = [], []
        for x in levels:
            b, _, h, w = x.shape
            hidden = relu(self.conv(x))
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            d = self.deltas(hidden).view(b, -1, 4, h, w)
            deltas.append(d.permute(0, 3, 4, 1, 2).flatten(1, 3))
        return logits, deltas

    def _losses(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        objects: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Both sums over the sampled anchors, divided by how many should have been sampled."""
        flat = torch.cat(list(anchors))  # (R, 4)
        with torch.no_grad():
            labelled = [self._label(flat, of_image) for of_image in objects]
            labels = torch.stack([label for label, _ in labelled])  # (B, R)
            positive = labels == 1
            at = positive.nonzero()
            owner = torch.stack([own for _, own in labelled])[at[:, 0], at[:, 1]]
            first = torch.tensor([0, *(len(o) for o in objects[:-1])]).cumsum(0)
            target = torch.cat(list(objects))[owner + first.to(at.device)[at[:, 0]]]
            regress = encode(flat[at[:, 1]], target, WEIGHTS)
        sampled = labels >= 0
        count = self.samples * len(objects)
        flat_logits = torch.cat(list(logits), 1)
        score = binary_cross_entropy_with_logits(
            flat_logits[sampled], labels[sampled].to(flat_logits.dtype), reduction="sum"
        )
        place = l1(torch.cat(list(deltas), 1)[positive], regress)
        return {"loss_rpn_cls": score / count, "loss_rpn_loc": place / count}

    def _label(self, anchors: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        """1, 0 or -1 (not sampled) for each anchor, and its object: (R,), (R,)."""
        owner, hit = match(iou(objects, anchors), BACKGROUND, OBJECT, keep_best=True)
        some, others = draw(hit, self.samples, OBJECTS, background=0)
        labels = hit.fill_(-1)
        labels[some], labels[others] = 1, 0
        return labels, owner

    @torch.no_grad()
    def _propose(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        sizes: Sequence[Size],
    ) -> list[Tensor]:
        before = self.before[0] if self.training else self.before[1]
        after = self.after[0] if self.training else self.after[1]
        scores, boxes, level = [], [], []
        for i, (a, s, d) in enumerate(zip(anchors, logits, deltas, strict=True)):
            best, at = s.topk(min(s.shape[1], before), dim=1)  # (B, k), (B, k)
            chosen = d.gather(1, at[..., None].expand(-1, -1, 4)).view(-1, 1, 4)
            boxes.append(decode(chosen, a[at.flatten()], WEIGHTS).view(*at.shape, 4))
            scores.append(best)
            level.append(at.new_full((at.shape[1],), i))
        scored, placed, of_level = torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(level)
        return [
            _suppress(b, s, of_level, size)[:after]
            for b, s, size in zip(placed, scored, sizes, strict=True)
        ]


def _suppress(boxes: Tensor, scores: Tensor, level: Tensor, size: Size) -> Tensor:
    finite = boxes.isfinite().all(dim=1) & scores.isfinite()
    boxes = clip(boxes, size)
    good = finite & filled(boxes)
    boxes, scores, level = boxes[good], scores[good], level[good]
    return boxes[batched_nms(boxes, scores.float(), level, SUPPRESS)]
