"""MoCo v2: tell the other view of an image from a queue of other images.

He et al., "Momentum Contrast", CVPR 2020, arXiv 1911.05722; Chen et al., "Improved Baselines with
Momentum Contrastive Learning", arXiv 2003.04297.

B images of this process, G of all, D channels of f, c = dim, K = queue. Notation: f encoder, g
projector, q query, k key.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import MoCoV2Settings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import info_nce, unit
from lewel_bench.pretrain.parts.momentum import Momentum, Queue, global_rows, shuffled
from lewel_bench.pretrain.recipe import Ema

Keys = tuple[Tensor, ...]


class MoCoV2(Method):
    """MoCo v2; the first view is the query, the second the key; each is both when symmetric."""

    def __init__(
        self,
        settings: MoCoV2Settings,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        ema: Ema,
        seed: int,
    ) -> None:
        super().__init__()
        self.seed, self.tau, self.symmetric = seed, settings.tau, settings.symmetric
        f = backbone()
        D, hidden, dim = f.channels, settings.hidden, settings.dim
        if settings.head_norm:
            g = mlp(D, hidden, dim, norm)
        else:
            g = mlp(D, hidden, dim, None, bias=(True, True), init="torch")
        self.online = Encoder(f, g)
        self.target = Momentum(self.online, ema)
        self.queue = Queue(settings.queue, dim)

    @property
    def projector(self) -> nn.Module:
        """g, which also makes the maps of Figure 5."""
        return self.online.g

    def keys(self, views: Views, step: int) -> Keys:
        """Unit keys of the second view, and of the first if symmetric, with shuffled batch norm."""
        x1, x2 = views
        keys = []
        for x in (x2, x1) if self.symmetric else (x2,):
            keys += shuffled(lambda x: (unit(self.target(x).z),), x, self.seed, step)
        return tuple(keys)  # (G, c) each

    def forward(self, views: Views, keys: Keys, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE of the first view against the keys and the queue; of both if symmetric."""
        x1, x2 = views
        z, y = self.online(x1)  # (B, c), (B, D)
        loss = self._loss(z, keys[0], rows)
        if self.symmetric:
            loss = loss + self._loss(self.online(x2).z, keys[1], rows)
        return loss, {"feature_std": feature_std(y)}

    def _loss(self, z: Tensor, keys: Tensor, rows: slice) -> Tensor:
        return info_nce(unit(z), keys[global_rows(keys, rows)], self.queue.keys, self.tau)

    def after_step(self, keys: Keys, step: int, steps: int) -> None:
        """Update the momentum network, then push the keys."""
        # MoCo updates ξ at the start of the next step; its first update changes nothing: ξ = θ.
        self.target.update(self.online, step, steps)
        self.queue.push(torch.cat(keys), step)
