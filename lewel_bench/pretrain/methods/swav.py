"""SwAV: predict the code of one view, its soft assignment to prototypes, from another view.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
NeurIPS 2020, arXiv 2006.09882.

B images of this process, G of all, V views (the first two assign), D channels of f, d = dim,
K prototypes, L = queue. Notation: f encoder, g projector, C prototypes, q codes, ε = epsilon.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.distributed import gather
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import SwAVSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.heads import deep
from lewel_bench.pretrain.parts.losses import unit
from lewel_bench.pretrain.parts.momentum import Queue, global_rows

ASSIGN = 2  # views of full side, whose codes the others predict


@dataclass
class Keys:
    """What the steps of an epoch share, and what `forward` leaves for the queues."""

    epoch: int
    z: tuple[Tensor, ...] = ()  # (G, d) of each assigning view


class SwAV(Method):
    """SwAV with two views or with multi-crop, as the recipe's augmentation has it."""

    def __init__(self, settings: SwAVSettings, backbone: Callable[[], ResNet], norm: Norm) -> None:
        super().__init__()
        self.tau, self.epsilon = settings.tau, settings.epsilon
        self.iterations, dim = settings.sinkhorn, settings.dim
        self.frozen, self.queue_from = settings.frozen, settings.queue_from
        self.f = backbone()
        widths = (self.f.channels, *(settings.hidden,) * (settings.layers - 1), dim)
        self.g = deep(widths, norm, init="torch")
        self.C = nn.Linear(dim, settings.prototypes, bias=False)
        self.C.weight.data = normalize(self.C.weight.data, dim=1)
        self.queue = Queue(settings.queue, ASSIGN * dim) if settings.queue else None

    @property
    def backbone(self) -> ResNet:
        return self.f

    def keys(self, views: Views, step: int) -> Keys:
        return Keys(views.epoch)

    def forward(self, views: Views, keys: Keys, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Swapped prediction: the codes of a view from the scores of every other view."""
        # one pass of f for each size of views, then one pass of g for all: so batch norm sees them
        by_size = [torch.cat([*x]) for _, x in groupby(views, key=lambda x: x.shape[-1])]
        y = torch.cat([self.f(x).mean((2, 3)) for x in by_size])  # (V·B, D)
        z = unit(self.g(y))  # (V·B, d)
        with torch.autocast(z.device.type, enabled=False):
            scores = self.C(z).chunk(len(views.x))  # (B, K) of each view
        keys.z = tuple(gather(part) for part in z.chunk(len(views.x))[:ASSIGN])
        loss = z.new_zeros(())
        for assigning in range(ASSIGN):
            q = self._codes(keys, assigning)[global_rows(keys.z[0], rows)]  # (B, K)
            others = [s for view, s in enumerate(scores) if view != assigning]
            loss = loss + sum(swapped(q, s, self.tau) for s in others) / len(others)
        return loss / ASSIGN, {"feature_std": feature_std(y[: len(views.index)])}

    @torch.no_grad()
    def _codes(self, keys: Keys, view: int) -> Tensor:
        """q (G, K) of the batch's embeddings, assigned together with those in the queue."""
        z = keys.z[view]
        if self.queue is not None and keys.epoch >= self.queue_from:
            z = torch.cat([z, self.queue.keys.chunk(ASSIGN, 1)[view]])  # (G + L, d)
        with torch.autocast(z.device.type, enabled=False):
            q = sinkhorn(self.C(z), self.epsilon, self.iterations)
        return q[: len(keys.z[view])]

    def after_backward(self, keys: Keys) -> None:
        """Keep the prototypes fixed during the first `frozen` epochs."""
        if keys.epoch < self.frozen:
            self.C.weight.grad = None

    @torch.no_grad()
    def after_step(self, keys: Keys, step: int, steps: int) -> None:
        # The code normalises before a step and fills the queue from the epoch of its first use on.
        self.C.weight.copy_(normalize(self.C.weight, dim=1))
        if self.queue is not None:
            self.queue.push(torch.cat(keys.z, 1), step)


def swapped(q: Tensor, scores: Tensor, tau: float) -> Tensor:
    """Eq. 2: the cross-entropy of codes q and predictions softmax(scores / τ), both (B, K)."""
    return -(q * log_softmax(scores / tau, dim=1)).sum(1).mean()


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (G, K) of scores (G, K): Section 3.1, Eq. 5, by Sinkhorn-Knopp.

    Each row sums to 1, and each prototype gets about G / K of all.
    """
    # in double precision and from the largest score, so that ε may be small
    Q = ((scores.double() - scores.max()) / epsilon).exp()
    for _ in range(iterations):
        Q = Q / Q.sum(0, keepdim=True)  # of each prototype
        Q = Q / Q.sum(1, keepdim=True)  # of each image
    return Q.to(scores.dtype)
