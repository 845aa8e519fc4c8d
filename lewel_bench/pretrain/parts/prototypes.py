"""Prototypes: the centres of the clusters of a whole data set (PCL, arXiv 2005.04966, Section 3.2).

B images, N of the data set, k clusters, c dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lewel_bench.pretrain.distributed import rank, total, wait
from lewel_bench.pretrain.parts.kmeans import concentration, kmeans
from lewel_bench.pretrain.parts.losses import unit


class Prototypes(nn.Module):
    """One clustering of the data set; buffers, as a run may be resumed within an epoch."""

    C: Tensor
    phi: Tensor
    owner: Tensor

    def __init__(self, k: int, dim: int, images: int) -> None:
        super().__init__()
        self.register_buffer("C", torch.zeros(k, dim))  # unit vectors
        self.register_buffer("phi", torch.ones(k))
        self.register_buffer("owner", torch.zeros(images, dtype=torch.long))  # (N,)

    @torch.no_grad()
    def fit(self, features: Tensor, tau: float, seed: int) -> None:
        """Cluster `features` (N, c) anew, on rank 0 for all ranks."""
        for buffer in (self.C, self.phi, self.owner):
            buffer.zero_()
        if rank() == 0:
            result = kmeans(features.float().cpu().numpy(), len(self.C), seed)
            self.C.copy_(unit(torch.from_numpy(result.centroids)))
            self.phi.copy_(torch.from_numpy(concentration(result, tau)))
            self.owner.copy_(torch.from_numpy(result.owner))
        wait(patient=True)
        for buffer in (self.C, self.phi, self.owner):
            total(buffer)


def proto_nce(v: Tensor, C: Tensor, phi: Tensor, owner: Tensor, negatives: Tensor) -> Tensor:
    """Mean of -log(exp(v·c_s/φ_s) / (exp(v·c_s/φ_s) + Σ_j exp(v·c_j/φ_j))), c_s = C[owner].

    v (B, c), C (k, c), phi (k,), owner (B,); the sum is over the prototypes `negatives` (r,), but
    never over an image's own.
    """
    with torch.autocast(v.device.type, enabled=False):
        C, phi = C.to(v), phi.to(v)
        positive = (v * C[owner]).sum(-1) / phi[owner]  # (B,)
        logits = v @ C[negatives].T / phi[negatives]  # (B, r)
        logits = logits.masked_fill(negatives == owner[:, None], -torch.inf)
        logits = torch.cat([positive[:, None], logits], 1)
        return cross_entropy(logits, torch.zeros_like(owner))
