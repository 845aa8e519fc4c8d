"""Learning where to learn: alignment maps and aligned representations (LEWEL, Section 3.2).

Lang Huang et al., "Learning Where to Learn in Cross-View Self-Supervised Learning", CVPR 2022,
arXiv 2203.14898.

B images, P = H·W positions, D channels of f, d maps, h channel groups, n = d/h aligned
representations an image, c the dimension of an aligned embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import unit


class Aligned(NamedTuple):
    """What the encoder finds in a batch of images."""

    z: Tensor  # (B, d) global embedding
    z_k: Tensor  # (B, n, c) aligned embeddings
    y: Tensor  # (B, D) GAP(F)
    y_k: Tensor  # (B, n, D) aligned representations
    W: Tensor  # (B, P, d) alignment maps


class AlignedEncoder(nn.Module):
    """Encoder f, coupled projector g (global embedding and maps), semantic projector p.

    Raises ValueError when h does not divide d and the channels of f.
    """

    def __init__(
        self,
        backbone: ResNet,
        norm: Norm,
        *,
        h: int,
        d: int,
        c: int,
        hidden: int,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        D = backbone.channels
        if d % h or D % h:
            raise ValueError(f"h {h} must divide d {d} and the backbone's {D} channels")
        self.h, self.scale = h, scale
        self.backbone = backbone
        self.g = mlp(D, hidden, d, norm)
        self.p = mlp(D, hidden, c, norm)

    def forward(self, x: Tensor) -> Aligned:
        F = self.backbone(x).flatten(2).transpose(1, 2)  # (B, P, D)
        y = F.mean(1)  # (B, D)
        # One pass of g, as the released code does: its batch norm sees positions and GAP together.
        tokens = self.g(torch.cat([y[:, None], F], 1))  # (B, 1+P, d)
        z, W = tokens[:, 0], alignment_maps(tokens[:, 1:], self.scale)
        y_k = aggregate(W, F, self.h)  # (B, n, D)
        return Aligned(z, self.p(y_k), y, y_k, W)


def alignment_maps(heat: Tensor, scale: float = 1.0) -> Tensor:
    """W from heat-maps (B, P, d): unit length over maps, then softmax over positions.

    At scale 1 the maps are nearly uniform: no weight exceeds e / (e + (P-1)/e).
    """
    return softmax(unit(heat) / scale, dim=1)


def aggregate(W: Tensor, F: Tensor, h: int) -> Tensor:
    """Aligned representations y_k (B, n, D) of maps W (B, P, d) and features F (B, P, D): Eq. 2.

    Channel group m uses the maps m·n to (m+1)·n, as the released code lays them out; Eq. 2 numbers
    them (k-1)·h + m. The two differ by a fixed permutation of g's outputs.
    """
    B, P, _ = F.shape
    W, F = W.view(B, P, h, -1), F.reshape(B, P, h, -1)
    return torch.einsum("bphn,bphc->bnhc", W, F).flatten(2)
