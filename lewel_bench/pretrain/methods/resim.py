"""ReSim: MoCo v2, and the same for regions that overlapping views share.

Xiao et al., "Region Similarity Representation Learning", ICCV 2021, arXiv 2103.12902, Section 3;
the variant with a feature pyramid (ReSim-FPN).

B images of this process, G of all, D channels of f, E of the pyramid, n windows of a level, c =
dim, K = queue. Notation: f encoder, g projector, C3 and C4 pyramid levels of stride 8 and 16.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.distributed import gather
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import ReSimSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.losses import full, info_nce, unit
from lewel_bench.pretrain.parts.momentum import Momentum, Queue, global_rows, shuffled
from lewel_bench.pretrain.parts.pyramid import Pyramid
from lewel_bench.pretrain.parts.regions import contained, corners, moved, pool, windows
from lewel_bench.pretrain.recipe import Ema

# cells and stride of the windows: 48 px every 32 on C4, 32 px every 24 on C3
WINDOWS = ((3, 2), (4, 3))


class Level(NamedTuple):
    """What the keys of one level of the pyramid are."""

    window: Tensor  # (n, 4) in the first view
    valid: Tensor  # (B, n) whether the second view shows it
    k: Tensor  # (B, n, E) unit vectors of the second view there
    negatives: Tensor  # (G, m, E) unit vectors of 3x3 cells
    shown: Tensor  # () number of valid windows in the global batch


class Keys(NamedTuple):
    k: Tensor  # (G, c) global unit vectors
    levels: tuple[Level, Level]  # C4, C3


class ReSim(Method):
    """ReSim-FPN; the first view is the query, the second the key."""

    def __init__(
        self,
        settings: ReSimSettings,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        ema: Ema,
        seed: int,
    ) -> None:
        super().__init__()
        self.seed, self.tau, self.near = seed, settings.tau, settings.near
        self.online = Pyramid(backbone(), settings.hidden, settings.dim, settings.fpn)
        self.target = Momentum(self.online, ema)
        self.queue = Queue(settings.queue, settings.dim)

    def keys(self, views: Views, step: int) -> Keys:
        def encode(x: Tensor) -> tuple[Tensor, ...]:
            z, _, maps = self.target(x)
            return unit(z), *maps

        k, *maps = shuffled(encode, views.x[1], self.seed, step)
        C4, C3 = (self._level(F, w, views) for F, w in zip(maps, WINDOWS, strict=True))
        return Keys(k, (C4, C3))

    def _level(self, F: Tensor, cells: tuple[int, int], views: Views) -> Level:
        window = windows(*cells, F.shape[2]).to(F.device)
        box1, box2 = corners(views)
        target = moved(window, box1, box2)  # (B, n, 4)
        valid = contained(target)
        mine = F[global_rows(F, slice(0, len(box1)))]
        negatives = unit(avg_pool2d(full(F), 3, stride=1).flatten(2).transpose(1, 2))
        return Level(window, valid, unit(pool(mine, target)), negatives, gather(valid).sum())

    def forward(self, views: Views, keys: Keys, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        z, y, maps = self.online(views.x[0])
        at, G = global_rows(keys.k, rows), len(keys.k)
        L = info_nce(unit(z), keys.k[at], self.queue.keys, self.tau)
        L_C4, L_C3 = (
            self._loss(F, level, rows, at, images)
            for F, level, images in zip(maps, keys.levels, (G, self.near), strict=True)
        )
        shared = full(keys.levels[0].valid).mean()  # of the windows of C4
        return L + L_C4 + L_C3, {"feature_std": feature_std(y), "shared_windows": shared}

    def _loss(self, F: Tensor, level: Level, rows: slice, at: slice, images: int) -> Tensor:
        """InfoNCE of the windows that both views show, mean over those of the global batch."""
        q = unit(pool(F, level.window.expand(len(F), -1, -1)))  # (B, n, E)
        k, valid = level.k[rows], level.valid[rows]
        total = q.new_zeros(())
        for first in range(at.start // images * images, at.stop, images):
            part = slice(max(0, first - at.start), first + images - at.start)
            negatives = level.negatives[first : first + images].flatten(0, 1)
            total = total + region_loss(q[part], k[part], negatives, valid[part], self.tau)
        share = len(q) / len(level.negatives)  # of the global batch
        return total / level.shown.clamp_min(1) / share

    def after_step(self, keys: Keys, step: int, steps: int) -> None:
        # MoCo updates ξ at the start of the next step; its first update changes nothing: ξ = θ.
        self.target.update(self.online, step, steps)
        self.queue.push(keys.k, step)


def region_loss(q: Tensor, k: Tensor, negatives: Tensor, valid: Tensor, tau: float) -> Tensor:
    """InfoNCE of q, k (B, n, E) against negatives (M, E), summed over the valid of (B, n)."""
    with torch.autocast(q.device.type, enabled=False):
        positive = (q * k).sum(-1, keepdim=True)  # (B, n, 1)
        logits = torch.cat([positive, q @ negatives.T], -1).flatten(0, 1) / tau
        target = torch.where(valid.flatten(), 0, -1)
        return cross_entropy(logits, target, ignore_index=-1, reduction="sum")
