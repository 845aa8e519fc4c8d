"""The losses that several methods share, in single precision whatever the autocast.

q, k are unit vectors from `unit`; c their dimension, n aligned embeddings an image, G the images of
the global batch.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**27  # 512 MiB in fp32


def full(x: Tensor) -> Tensor:
    """`x` in at least single precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """`x` L2-normalised along `dim`, in at least single precision."""
    return normalize(full(x), dim=dim)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Normalised mean square error 2 - 2 sim, mean over all but the last dimension (0 to 4).

    LEWEL Eq. 5, BYOL Eq. 2; no gradient reaches `target`.
    """
    return 2 - 2 * (unit(prediction) * unit(target.detach())).sum(-1).mean()


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, tau: float) -> Tensor:
    """Mean of -log(exp(q·k/τ) / (exp(q·k/τ) + Σ exp(q·k⁻/τ))): q, k (B, c), negatives (K, c)."""
    with torch.autocast(q.device.type, enabled=False):
        positive = (q * k).sum(-1, keepdim=True)  # (B, 1)
        logits = torch.cat([positive, q @ negatives.T], 1) / tau  # (B, 1+K)
        return cross_entropy(logits, _zeros(logits))


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


def _zeros(logits: Tensor) -> Tensor:
    return torch.zeros(len(logits), dtype=torch.long, device=logits.device)
