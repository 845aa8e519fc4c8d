"""Scalars that show how a training goes; all detached."""

from math import log, sqrt

import torch
from torch import Tensor

from lewel_bench.pretrain.parts.aligned import Aligned
from lewel_bench.pretrain.parts.losses import full, unit


@torch.no_grad()
def feature_std(y: Tensor) -> Tensor:
    """Mean over channels of the std over images of y/|y| (B, D), times √D.

    About 1 for features spread over the sphere, 0 when all are the same (SimSiam, arXiv 2011.10566,
    Section 4.1).
    """
    std = unit(y).std(0, correction=0)  # (D,)
    return std.mean() * sqrt(y.shape[1])


@torch.no_grad()
def alignment(encoding: Aligned) -> dict[str, Tensor]:
    """How uniform the alignment maps are: both are 1 when alignment is global average pooling.

    `map_entropy`: mean entropy over log P. `aligned_gap_cosine`: mean cosine of y_k and GAP(F).
    """
    W = full(encoding.W)
    entropy = torch.special.entr(W).sum(1).mean() / log(max(2, W.shape[1]))
    cosine = (unit(encoding.y_k) * unit(encoding.y)[:, None]).sum(-1).mean()
    return {"map_entropy": entropy, "aligned_gap_cosine": cosine}
