"""DenseCL: MoCo v2, and the same for every position of the feature map.

Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", CVPR 2021,
arXiv 2011.09157, Sections 3.2 to 3.4.

B images of this process, G of all, D channels of f, P positions, c = dim, K = queue. Notation: f
encoder, g global and dense projection heads, q, r global and dense query vectors, k, t their keys.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import DenseCLSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import info_nce, unit
from lewel_bench.pretrain.parts.momentum import Momentum, Queue, global_rows, shuffled
from lewel_bench.pretrain.recipe import Ema


class Keys(NamedTuple):
    """Unit vectors of the second views."""

    k: Tensor  # (G, c) global
    pooled: Tensor  # (G, c) mean over positions of the dense vectors
    t: Tensor  # (G, P, c) dense
    F: Tensor  # (G, P, D) of the backbone


class DenseEncoder(nn.Module):
    """Encoder f with a global and a dense projection head."""

    def __init__(self, backbone: ResNet, hidden: int, dim: int) -> None:
        super().__init__()
        D, biases = backbone.channels, (True, True)
        self.backbone = backbone
        self.g = mlp(D, hidden, dim, None, bias=biases, init="torch")
        self.g_dense = mlp(D, hidden, dim, None, bias=biases, init="torch")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Global (B, c) and dense (B, P, c) projections, and features (B, P, D)."""
        F = self.backbone(x).flatten(2).transpose(1, 2)  # (B, P, D)
        return self.g(F.mean(1)), self.g_dense(F), F  # (B, c), (B, P, c), (B, P, D)


class DenseCL(Method):
    """DenseCL; the first view is the query, the second the key."""

    def __init__(
        self,
        settings: DenseCLSettings,
        backbone: Callable[[], ResNet],
        norm: Norm,
        *,
        ema: Ema,
        seed: int,
    ) -> None:
        super().__init__()
        self.seed, self.tau, self.lam = seed, settings.tau, settings.lam
        self.online = DenseEncoder(backbone(), settings.hidden, settings.dim)
        self.target = Momentum(self.online, ema)
        self.queue = Queue(settings.queue, settings.dim)
        self.queue_dense = Queue(settings.queue, settings.dim)

    def keys(self, views: Views, step: int) -> Keys:
        """Unit keys of the second view: global, pooled dense, dense, and features."""

        def encode(x: Tensor) -> tuple[Tensor, ...]:
            k, t, F = self.target(x)
            return unit(k), unit(t.mean(1)), unit(t), unit(F)

        return Keys(*shuffled(encode, views.x[1], self.seed, step))

    def forward(self, views: Views, keys: Keys, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE of images and of corresponding positions, weighted by lam."""
        q, r, F = self.online(views.x[0])
        at = global_rows(keys.k, rows)
        L_q = info_nce(unit(q), keys.k[at], self.queue.keys, self.tau)
        t = corresponding(F, keys.F[at], keys.t[at])  # (B, P, c)
        r, t = unit(r).flatten(0, 1), t.flatten(0, 1)  # (B·P, c)
        L_r = info_nce(r, t, self.queue_dense.keys, self.tau)
        loss = (1 - self.lam) * L_q + self.lam * L_r  # Eq. 3
        return loss, {"feature_std": feature_std(F.mean(1)), "dense_loss": L_r.detach()}

    def after_step(self, keys: Keys, step: int, steps: int) -> None:
        """Update the momentum network, then push the keys."""
        # MoCo updates ξ at the start of the next step; its first update changes nothing: ξ = θ.
        self.target.update(self.online, step, steps)
        self.queue.push(keys.k, step)
        self.queue_dense.push(keys.pooled, step)


@torch.no_grad()
def corresponding(F: Tensor, F_key: Tensor, t: Tensor) -> Tensor:
    """For each position of F (B, P, D), the t (B, P', c) of the most similar of F_key (B, P', D):
    Eq. 4, (B, P, c)."""
    with torch.autocast(F.device.type, enabled=False):
        match = (unit(F) @ unit(F_key).transpose(1, 2)).argmax(2)  # (B, P)
    return t.gather(1, match[..., None].expand(-1, -1, t.shape[2]))
