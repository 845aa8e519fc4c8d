"""Barlow Twins: make the cross-correlation of the embeddings of two views the identity.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021,
arXiv 2103.03230.

B images of this process, G of all, D channels of f, d = dim. Notation: f encoder, g projector, C
cross-correlation matrix, λ = lam.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.distributed import join
from lewel_bench.pretrain.method import Method, Views
from lewel_bench.pretrain.methods.settings import BarlowTwinsSettings
from lewel_bench.pretrain.parts.diagnostics import feature_std
from lewel_bench.pretrain.parts.encoder import Encoder, zero_last_gains
from lewel_bench.pretrain.parts.heads import deep
from lewel_bench.pretrain.parts.losses import full


class BarlowTwins(Method):
    """Barlow Twins; a batch norm without gain and offset at the projector's end standardises z."""

    def __init__(
        self, settings: BarlowTwinsSettings, backbone: Callable[[], ResNet], norm: Norm
    ) -> None:
        super().__init__()
        self.lam = settings.lam
        f = zero_last_gains(backbone())
        g = deep(
            (f.channels, settings.hidden, settings.hidden, settings.dim),
            norm,
            last="plain",
            init="torch",
        )
        self.online = Encoder(f, g)

    def forward(self, views: Views, keys: None, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Redundancy reduction between the views of the images of all ranks."""
        x1, x2 = views
        z1, y1 = self.online(x1)  # (B, d), (B, D)
        z2, _ = self.online(x2)
        loss = redundancy(join(full(z1)), join(full(z2)), self.lam)
        return loss, {"feature_std": feature_std(y1)}


def redundancy(z1: Tensor, z2: Tensor, lam: float) -> Tensor:
    """Σ(1 - C_ii)² + λ Σ C_ij² (Eq. 1) of standardised embeddings (G, d)."""
    with torch.autocast(z1.device.type, enabled=False):
        C = z1.T @ z2 / len(z1)  # (d, d)
    diagonal = C.diagonal()
    return (1 - diagonal).square().sum() + lam * (C.square().sum() - diagonal.square().sum())
