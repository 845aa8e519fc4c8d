"""The losses that several methods share, in single precision whatever the autocast.

q, k are unit vectors from `unit`, c their dimension.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


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
        return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
