"""Learning where to learn: alignment maps and aligned representations (LEWEL, Section 3.2).

Lang Huang et al., "Learning Where to Learn in Cross-View Self-Supervised Learning", CVPR 2022,
arXiv 2203.14898.

B images, P = H·W positions, D channels of f, d maps, h channel groups, n = d/h aligned
representations an image, c the dimension of an aligned embedding.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax
from torch.utils.checkpoint import checkpoint

from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.parts.heads import mlp
from lewel_bench.pretrain.parts.losses import unit

LOGITS_AT_ONCE = 2**27  # 512 MiB in fp32
Maps = Literal["coupled", "uncoupled", "random", "uniform", "none"]
Noise = Callable[[Tensor], Tensor]  # heat-maps (B, P, d) of the shape of those given


class Aligned(NamedTuple):
    """What the encoder finds in a batch of images."""

    z: Tensor  # (B, d) global embedding
    z_k: Tensor  # (B, n, c) aligned embeddings
    y: Tensor  # (B, D) GAP(F)
    y_k: Tensor  # (B, n, D) aligned representations
    W: Tensor  # (B, P, d) alignment maps


class AlignedEncoder(nn.Module):
    """Encoder f, coupled projector g (global embedding and maps), semantic projector p.

    `maps` other than "coupled" are the paper's ablations and ours: "uncoupled" maps come from a
    projector of their own, "random" ones from the noise that `forward` is given, "uniform" ones are
    1/P everywhere (GAP, n times); with "none" the one aligned representation is GAP, and g sees
    nothing else. Without `semantic` g is p as well. Raises ValueError when h does not divide d and
    the channels of f, or c is not d where g is p.
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
        maps: Maps = "coupled",
        semantic: bool = True,
    ) -> None:
        super().__init__()
        D = backbone.channels
        if d % h or D % h:
            raise ValueError(f"h {h} must divide d {d} and the backbone's {D} channels")
        if not semantic and c != d:
            raise ValueError(f"without a semantic projector c {c} must be d {d}")
        self.h, self.scale, self.maps = h, scale, maps
        self.backbone = backbone
        self.g = mlp(D, hidden, d, norm)
        self.p = mlp(D, hidden, c, norm) if semantic else None
        self.g_maps = mlp(D, hidden, d, norm) if maps == "uncoupled" else None

    @property
    def projector(self) -> nn.Module | None:
        """What makes the maps; None where nothing learned does."""
        return self.g_maps or (self.g if self.maps == "coupled" else None)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Aligned:
        F = self.backbone(x).flatten(2).transpose(1, 2)  # (B, P, D)
        y = F.mean(1)  # (B, D)
        z, heat = self._tokens(y, F, noise)
        W = alignment_maps(heat, self.scale)
        y_k = y[:, None] if self.maps == "none" else aggregate(W, F, self.h)  # (B, n, D)
        return Aligned(z, (self.p or self.g)(y_k), y, y_k, W)

    def _tokens(self, y: Tensor, F: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """The global embedding (B, d) and the heat-maps (B, P, d)."""
        if self.g_maps is not None:
            return self.g(y[:, None])[:, 0], self.g_maps(F)
        if self.maps == "none":
            z = self.g(y[:, None])[:, 0]
            return z, z.new_ones(len(z), F.shape[1], z.shape[1])
        # One pass of g, as the released code does: its batch norm sees positions and GAP together.
        tokens = self.g(torch.cat([y[:, None], F], 1))  # (B, 1+P, d)
        z, heat = tokens[:, 0], tokens[:, 1:]
        if self.maps == "uniform":
            heat = torch.ones_like(heat)
        elif self.maps == "random":
            assert noise is not None
            heat = noise(heat)
        return z, heat


def gaussian(like: Tensor, seed: int, step: int, view: int, first: int) -> Tensor:
    """Normal numbers of the shape of `like` (B, P, d), drawn for each image by its place `first`,
    `first` + 1, ... in the global batch (in their shuffled order for keys): the same however the
    batch is split."""
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, view, first + i]))
        .standard_normal(like.shape[1:], dtype=np.float32)
        for i in range(len(like))
    ]  # fmt: skip
    return torch.from_numpy(np.stack(rows)).to(like, non_blocking=True)


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


def info_nce_same_index(q: Tensor, k: Tensor, own: slice, tau: float) -> Tensor:
    """InfoNCE of q (B, n, c), negatives: the same of the n embeddings in other images.

    k (G, n, c); the images of q are k[own].
    """
    with torch.autocast(q.device.type, enabled=False):
        logits = torch.einsum("bnc,gnc->nbg", q, k) / tau  # (n, B, G)
        target = torch.arange(own.start, own.stop, device=q.device).expand(len(logits), -1)
        return cross_entropy(logits.flatten(0, 1), target.flatten())


def info_nce_other_images(q: Tensor, k: Tensor, own: slice, tau: float) -> Tensor:
    """InfoNCE of q (B, n, c), negatives: all (G-1)·n embeddings of other images.

    k (G, n, c); the images of q are k[own]. Never holds more than LOGITS_AT_ONCE of the B·n·G·n
    logits, however large the batch: several chunks are computed anew in the backward pass.
    """
    images, n, _ = q.shape
    step = max(1, LOGITS_AT_ONCE // (n * len(k) * n))
    total = q.new_zeros(())
    with torch.autocast(q.device.type, enabled=False):
        for first in range(0, images, step):
            part = q[first : first + step]
            args = (part, k, own.start + first, tau)
            if step >= images:
                return _other_images(*args) / (images * n)
            total = total + checkpoint(
                _other_images, *args, use_reentrant=False, preserve_rng_state=False
            )
    return total / (images * n)


def _other_images(q: Tensor, k: Tensor, first: int, tau: float) -> Tensor:
    images, n, _ = q.shape
    q = q / tau
    owner = torch.arange(first, first + images, device=q.device)
    positive = (q * k[first : first + images]).sum(-1)  # (b, n)
    logits = (q.flatten(0, 1) @ k.flatten(0, 1).T).view(images, n, len(k), n)
    same_image = torch.arange(len(k), device=q.device) == owner[:, None]  # (b, G)
    logits = logits.masked_fill(same_image[:, None, :, None], -torch.inf)
    negative = logits.flatten(2).logsumexp(-1)  # (b, n)
    return (torch.logaddexp(positive, negative) - positive).sum()
