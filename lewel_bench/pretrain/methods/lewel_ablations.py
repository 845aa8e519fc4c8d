"""The ablations of LEWEL_M: other alignment maps (Tables 5 and 6), and no semantic projector.

Lang Huang et al., "Learning Where to Learn in Cross-View Self-Supervised Learning", CVPR 2022,
arXiv 2203.14898, Section 4.4. `lewel_m` with `args.maps` or `args.semantic` changed is made here.

B images, P positions, D channels of f, d maps, n aligned embeddings of dimension c.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.distributed import rank
from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.methods.lewel_m import Keys, LewelM
from lewel_bench.pretrain.methods.settings import LewelMSettings
from lewel_bench.pretrain.parts.aligned import Aligned, aggregate, alignment_maps
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.momentum import global_rows

Noise = Callable[[Tensor], Tensor]  # random heat-maps (B, P, d) of the shape of those given


class AblatedEncoder(nn.Module):
    """`AlignedEncoder` with other maps, or without its semantic projector p.

    `maps`: "uncoupled" maps come from a projector of their own; "random" ones from `noise`, which
    is set before each pass; "uniform" ones are 1/P everywhere (GAP, n times; a control that is not
    in the paper); with "none" the single aligned representation is GAP, and g sees nothing else.
    Without `semantic` g is p as well.
    """

    noise: Noise | None = None

    def __init__(self, settings: LewelMSettings, backbone: ResNet, norm: Norm) -> None:
        super().__init__()
        D, hidden, d, c = backbone.channels, settings.hidden, settings.d, settings.c or settings.d
        self.h, self.maps = settings.h, settings.maps
        self.backbone = backbone
        self.g = mlp(D, hidden, d, norm)
        self.p = mlp(D, hidden, c, norm) if settings.semantic else None
        self.g_maps = mlp(D, hidden, d, norm) if self.maps == "uncoupled" else None

    @property
    def projector(self) -> nn.Module | None:
        """What makes the maps; None where nothing learned does."""
        return self.g_maps or (self.g if self.maps == "coupled" else None)

    def forward(self, x: Tensor) -> Aligned:
        F = self.backbone(x).flatten(2).transpose(1, 2)  # (B, P, D)
        y = F.mean(1)  # (B, D)
        z, heat = self._tokens(y, F)
        W = alignment_maps(heat)
        y_k = y[:, None] if self.maps == "none" else aggregate(W, F, self.h)  # (B, n, D)
        return Aligned(z, (self.p or self.g)(y_k), y, y_k, W)

    def _tokens(self, y: Tensor, F: Tensor) -> tuple[Tensor, Tensor]:
        """The global embedding (B, d) and the heat-maps (B, P, d)."""
        if self.g_maps is not None:
            return self.g(y[:, None])[:, 0], self.g_maps(F)
        if self.maps == "none":
            z = self.g(y[:, None])[:, 0]
            return z, z.new_ones(len(z), F.shape[1], z.shape[1])
        tokens = self.g(torch.cat([y[:, None], F], 1))  # (B, 1+P, d)
        z, heat = tokens[:, 0], tokens[:, 1:]
        if self.maps == "uniform":
            heat = torch.ones_like(heat)
        elif self.maps == "random":
            assert self.noise is not None
            heat = self.noise(heat)
        return z, heat


class AblatedLewelM(LewelM):
    """LEWEL_M with an `AblatedEncoder`; random maps are new for each image, view and step."""

    step = 0

    def encoder(self, settings: LewelMSettings, f: ResNet, norm: Norm) -> nn.Module:
        return AblatedEncoder(settings, f, norm)

    def keys(self, views: Views, step: int) -> Keys:
        _, x2 = views
        self.step = step
        cast(AblatedEncoder, self.target.network).noise = self._noise(1, rank() * len(x2))
        return super().keys(views, step)

    def forward(self, views: Views, keys: Keys, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        cast(AblatedEncoder, self.online).noise = self._noise(0, global_rows(keys.z, rows).start)
        return super().forward(views, keys, rows)

    def _noise(self, view: int, first: int) -> Noise:
        return partial(gaussian, seed=self.seed, step=self.step, view=view, first=first)


def gaussian(like: Tensor, seed: int, step: int, view: int, first: int) -> Tensor:
    """Normal numbers of the shape of `like` (B, P, d), drawn for each image by its position
    `first`, `first` + 1, ... in the global batch (in their shuffled order for keys): the same
    however the batch is split."""
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, view, first + i]))
        .standard_normal(like.shape[1:], dtype=np.float32)
        for i in range(len(like))
    ]  # fmt: skip
    return torch.from_numpy(np.stack(rows)).to(like, non_blocking=True)
