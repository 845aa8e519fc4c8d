"""How good predictions are, and the predictions themselves, image by image.

Shapes: G candidates, N images, C classes, K = min(5, C).
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewel_bench.files import write_atomically
from lewel_bench.pretrain.data import Images

CHUNK = 2048  # images whose logits are in memory at once


@torch.no_grad()
def score(
    logits: Callable[[Tensor], Tensor], features: Tensor, labels: Tensor
) -> dict[str, list[float]]:
    """top1 and top5 in percent and mean cross-entropy of G candidates on N images.

    `logits` turns features (n, D) into (G, n, C). With fewer than 5 classes top5 is the hit rate
    among all of them. A class with a logit of -inf is never predicted. Other logits that are not
    finite are ranked as `topk` orders them.
    """
    totals: Tensor | int = 0
    for x, y in zip(torch.split(features, CHUNK), torch.split(labels, CHUNK), strict=True):
        predicted = logits(x)  # (G, n, C)
        top = predicted.topk(min(5, predicted.shape[-1]))  # (G, n, K)
        hits = (top.indices == y[:, None]) & (top.values != -torch.inf)
        truth = y.expand(len(predicted), -1)[..., None]
        loss = -predicted.log_softmax(-1).gather(-1, truth)[..., 0]
        parts = (hits[..., 0].sum(1), hits.any(-1).sum(1), loss.double().sum(1))
        totals = totals + torch.stack([part.double() for part in parts])
    assert isinstance(totals, Tensor)
    top1, top5, mean_loss = (totals / len(labels)).tolist()
    return {
        "top1": [100 * v for v in top1],
        "top5": [100 * v for v in top5],
        "loss": mean_loss,
    }


def top5_note(classes: int) -> list[str]:
    """A note for a table's reader where fewer than five classes make top-5 meaningless."""
    if classes >= 5:
        return []
    return [f"top5 is always 100: there are only {classes} classes"]


@torch.no_grad()
def write_predictions(
    path: Path, images: Images, probabilities: Callable[[Tensor], Tensor], features: Tensor
) -> None:
    """Write index, files, label, top5 (N, K) classes and their probabilities, atomically.

    `probabilities` turns features (n, D) into (n, C); each row of `top5` starts with the best.
    `top5` has -1 for a class that is not predicted (a probability of -inf).
    """
    parts = [probabilities(x) for x in torch.split(features, CHUNK)]
    best = [part.topk(min(5, part.shape[-1])) for part in parts]
    top5 = torch.cat([b.indices.masked_fill(b.values == -torch.inf, -1) for b in best])
    content = io.BytesIO()
    np.savez_compressed(
        content,
        index=np.arange(len(images)),
        files=np.array(images.files),
        label=images.labels,
        top5=top5.cpu().numpy(),
        probability=torch.cat([b.values for b in best]).clamp_min(0).cpu().numpy(),
        classes=np.array(images.classes),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getbuffer())
