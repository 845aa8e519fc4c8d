"""Sanity check of an imported backbone: does it behave like a trained network?

A checkpoint whose keys all match may still be untrained or lack its batch-norm statistics. On
generated scenes its features must vary from image to image, and nearest neighbours must share a
class significantly more often than with random weights. The check cannot tell the query network
from the key network, nor RGB from BGR.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lewel_bench.evals import features, knn
from lewel_bench.evals.normalisation import MEAN, STD
from lewel_bench.pretrain import backbone
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.pretrain.shapes import single
from lewel_bench.pretrain.shapes_scene import CLASSES

SEED = 5150  # scenes that are in no data set
BANK, QUERIES = 20, 20  # scenes a class
LOOK = 16  # images whose features are looked at
K, TEMPERATURE = 10, 0.07
# At these sizes the features of a trained ResNet separate the classes of the scenes; a ResNet-50
# takes about 20 s on two cores.
SIZES = {"imagenet": 96, "small": 64, "cifar": 32}
CLEAR = 2.33  # standard errors: one untrained checkpoint in a hundred passes by chance
LARGE = 1e6  # of a statistic: activations are of the order of 1 to 100
DEAD = 1e-12  # variance below which a channel counts as constant
ALIKE = 1e-3  # spread of the features over images, as a share of their length


@dataclass(frozen=True)
class SanityCheck:
    """The measurements, as plain numbers, and a warning for each that fails."""

    measurements: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())


def check_backbone(state: Mapping[str, Tensor], spec: Backbone) -> SanityCheck:
    """Check the batch-norm statistics, the features of generated images and their neighbours.

    Deterministic. Raises ValueError for weights that do not fit `spec` or whose features are not
    finite.
    """
    net = backbone.build(spec).eval()
    net.load_state_dict(dict(state))
    statistics, warnings = _statistics(net)
    bank, queries = scenes(SIZES[spec.stem], 0, BANK), scenes(SIZES[spec.stem], 1, QUERIES)
    try:
        correct, x = _right(net, bank, queries)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *warnings])) from None
    seen, more = _look(x[:: len(x) // LOOK])
    neighbours, doubt = _compare(correct, _right(_random(spec, bank[0]), bank, queries)[0])
    measured = {"batch_norm": statistics, "features": seen, "knn": neighbours}
    return SanityCheck(measured, (*warnings, *more, *doubt))


def scenes(size: int, split: int, count: int) -> tuple[Tensor, Tensor]:
    """Normalised pixels (N, 3, size, size) and classes (N,) of `count` generated scenes a class."""
    pixels, labels = [], []
    for kind in range(len(CLASSES)):
        for index in range(count):
            seeds = np.random.SeedSequence([SEED, split, kind, index])
            scene = single(kind, np.random.Generator(np.random.Philox(seeds)))
            image = torch.from_numpy(scene.pixels).permute(2, 0, 1)[None].float()
            pixels.append(interpolate(image, (size, size), mode="bilinear", antialias=True))
            labels.append(kind)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (torch.cat(pixels) - mean) / std, torch.tensor(labels)


def _statistics(net: ResNet) -> tuple[dict[str, float], list[str]]:
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    mean = torch.cat([m.running_mean for m in norms if m.running_mean is not None])
    var = torch.cat([m.running_var for m in norms if m.running_var is not None])
    measured = {
        "largest_mean": float(mean.abs().max()),
        "smallest_variance": float(var.min()),
        "largest_variance": float(var.max()),
        "dead_channels": float((var < DEAD).float().mean()),
    }
    warnings = []
    if bool((mean == 0).all()) and bool((var == 1).all()):
        warnings.append(
            "batch norm: all statistics have their initial values (mean 0, variance 1): these "
            "weights were never trained, or their statistics were not saved"
        )
    if bool((var < 0).any()):
        warnings.append("batch norm: some variances are negative")
    if (largest := max(measured["largest_mean"], measured["largest_variance"])) > LARGE:
        warnings.append(f"batch norm: statistics up to {largest:.3g}")
    if measured["dead_channels"] > 0.1:
        warnings.append(f"batch norm: {measured['dead_channels']:.0%} of the channels are constant")
    return measured, warnings


def _look(x: Tensor) -> tuple[dict[str, float], list[str]]:
    """The length of features (N, D) and how much they vary from image to image."""
    length = x.norm(dim=1)
    spread = (x - x.mean(0)).norm(dim=1).mean() / length.mean().clamp_min(1e-30)
    measured = {
        "images": float(len(x)),
        "norm": float(length.mean()),
        "spread": float(spread),
        "constant_dimensions": float((x.std(0) == 0).float().mean()),
    }
    warnings = []
    if not measured["spread"] > ALIKE:
        warnings.append(
            f"features of {len(x)} different images are nearly identical: spread "
            f"{measured['spread']:.2g} of their norm"
        )
    return measured, warnings


def _compare(correct: Tensor, random: Tensor) -> tuple[dict[str, float], list[str]]:
    """kNN accuracy beside that of random weights; McNemar's test on the queries of both."""
    better, worse = int((correct & ~random).sum()), int((random & ~correct).sum())
    errors = (better - worse) / math.sqrt(max(1, better + worse))
    top1, chance = (100 * float(part.float().mean()) for part in (correct, random))
    measured = {
        "queries": float(len(correct)),
        "top1": top1,
        "random_top1": chance,
        "errors": errors,
    }
    if errors >= CLEAR:
        return measured, []
    return measured, [
        f"kNN on {len(correct)} generated scenes: top-1 {top1:.1f}, and {chance:.1f} with random "
        f"weights of the same architecture ({errors:+.1f} standard errors; a trained network has "
        f"at least {CLEAR})"
    ]


def _random(spec: Backbone, pixels: Tensor) -> ResNet:
    """Random weights whose statistics are those of the images, as if trained at rate 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = backbone.build(spec)
    features.calibrate(net, torch.split(pixels, 60))
    return net


@torch.no_grad()
def _right(
    net: ResNet, bank: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Which queries (Q,) kNN has right, and their features (Q, D)."""
    keys, x = (features.pooled(net, pixels, 60) for pixels in (bank[0], queries[0]))
    if not bool(keys.isfinite().all() and x.isfinite().all()):
        raise ValueError("its features of generated images are not finite")
    votes = knn.vote((keys, bank[1]), x, K, TEMPERATURE, len(CLASSES))
    return votes.argmax(1) == queries[1], x
