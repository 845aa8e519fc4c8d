"""Learning where to learn: alignment maps, aligned representations and the contrastive loss on them
(LEWEL, Sections 3.2 and 3.3).

Lang Huang et al., "Learning Where to Learn in Cross-View Self-Supervised Learning", CVPR 2022,
arXiv 2203.14898.

B images, P = H·W positions, D channels of f, d maps, h channel groups, n = d/h aligned
representations an image, c the dimension of an aligned embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax
from torch.utils.checkpoint import checkpoint

from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.parts.losses import unit

LOGITS_AT_ONCE = 2**27  # 512 MiB in fp32


class Aligned(NamedTuple):
    """What the encoder computes for a batch of images."""

    z: Tensor  # (B, d) global embedding
    z_k: Tensor  # (B, n, c) aligned embeddings; k indexes them, as in the paper
    y: Tensor  # (B, D) GAP(F)
    y_k: Tensor  # (B, n, D) aligned representations
    W: Tensor  # (B, P, d) alignment maps


class AlignedEncoder(nn.Module):
    """Encoder f, coupled projector g (global embedding and maps), semantic projector p.

    `h` must divide d and the channels of f; `scale` is that of `alignment_maps`.
    """

    def __init__(
        self, backbone: ResNet, g: nn.Module, p: nn.Module, h: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.backbone, self.g, self.p = backbone, g, p
        self.h, self.scale = h, scale

    @property
    def projector(self) -> nn.Module:
        """What makes the maps."""
        return self.g

    def forward(self, x: Tensor) -> Aligned:
        """The global and aligned embeddings of images (B, 3, H, W): Fig. 2, shapes in `Aligned`."""
        F = self.backbone(x).flatten(2).transpose(1, 2)  # (B, P, D)
        y = F.mean(1)  # (B, D)
        # One pass of g, as the released code does: its batch norm sees positions and GAP together.
        tokens = self.g(torch.cat([y[:, None], F], 1))  # (B, 1+P, d)
        z, heat = tokens[:, 0], tokens[:, 1:]
        W = alignment_maps(heat, self.scale)
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
