"""Features of a frozen backbone: average-pooled, in eval mode, in fp32."""

import copy
import hashlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lewel_bench.evals.protocol import FORWARD
from lewel_bench.pretrain import backbone as resnet
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.augment import normalise
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.data import Images, image_batches
from lewel_bench.pretrain.distributed import Machine, gather, rank, world
from lewel_bench.pretrain.norm import BatchNorm

CHUNK = 4096  # features converted to double precision at once


def load(path: Path, machine: Machine, bn_group: int | None = None) -> ResNet:
    """The backbone of a file, in eval mode and without gradients.

    `bn_group` is the number of images that share batch-norm statistics if it is trained further.
    Raises ValueError naming the file when its header and tensors do not form a ResNet.
    """
    state, spec = checkpoint.read_network(path)
    try:
        net = resnet.build(spec, norm=partial(BatchNorm, group=bn_group))
        net.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not contain the backbone in its header: {error}") from None
    net.requires_grad_(False).eval()
    net.to(device=machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if machine.compile:
        net.compile()
    return net


def digest(net: ResNet) -> str:
    """A checksum of every parameter and buffer."""
    total = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        total.update(name.encode())
        total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@torch.no_grad()
def pooled(net: ResNet, pixels: Tensor, micro_batch: int | None = None) -> Tensor:
    """Normalised pixels (B, 3, S, S) -> features (B, D), `micro_batch` images at a time."""
    parts = torch.split(pixels, min(micro_batch or FORWARD, FORWARD))
    return torch.cat([net(part).float().mean((2, 3)) for part in parts])


@torch.no_grad()
def effective_rank(*x: Tensor) -> float:
    """RankMe of all features (N, D): the number of directions they span, from 1 to min(N, D).

    exp of the entropy of the singular values over their sum (arXiv 2210.02885, eq. 1). As there,
    the features are not centred: for nearly equal vectors it is nearly 1. 0 for features that are
    all zero or not finite.
    """
    gram = x[0].new_zeros(x[0].shape[1], x[0].shape[1], dtype=torch.float64)  # (D, D)
    for part in (part.double() for features in x for part in torch.split(features, CHUNK)):
        gram += part.mT @ part
    if not bool(gram.isfinite().all()):
        return 0.0
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = singular.sum()
    return float(torch.special.entr(singular / total).sum().exp()) if total > 0 else 0.0


def calibrated(net: ResNet, images: Images, *, size: int, resize: int, machine: Machine) -> ResNet:
    """A copy of a network with batch-norm statistics estimated on up to 256 of the images."""
    net = copy.deepcopy(net)
    some = images.take(np.linspace(0, len(images) - 1, min(256, len(images))).round().astype(int))
    batches = image_batches(
        some,
        size,
        crop="center",
        resize=resize,
        batch=min(64, len(some)),
        shuffle=True,
        drop_last=True,
        workers=machine.workers,
    )
    calibrate(net, (normalise(batch.pixels, machine.device) for batch in batches))
    return net


@torch.no_grad()
def calibrate(net: ResNet, parts: Iterable[Tensor]) -> None:
    """Set the batch-norm statistics of a network to those of normalised pixels, averaged over
    `parts`, as training at a learning rate of 0 would; leaves it in eval mode."""
    net.train()
    for i, part in enumerate(parts):
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = 1 / (i + 1)
            if isinstance(module, BatchNorm):
                module.group = len(part)  # every rank has the same images
        net(part)
    net.eval()


def passes(images: Images) -> int:
    """The number of batches in which `extract` reads the images."""
    return math.ceil(math.ceil(len(images) / world()) / FORWARD)


def extract(
    net: ResNet,
    images: Images,
    *,
    size: int,
    resize: int,
    machine: Machine,
    after: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of the images' centre crops, in order, on every rank;
    `after` is called after each batch."""
    count, ranks = len(images), world()
    # every rank needs slices of equal size: images are repeated to a multiple, then cut off
    padded = images.take(np.arange(math.ceil(count / ranks) * ranks) % count)
    features = torch.empty(0, device=machine.device)
    filled = 0
    for part in image_batches(
        padded,
        size,
        crop="center",
        resize=resize,
        batch=FORWARD * ranks,
        seed=0,
        epoch=0,
        shuffle=False,
        drop_last=False,
        workers=machine.workers,
        rank=rank(),
        world=ranks,
    ):
        pixels = normalise(part.pixels, machine.device)
        x = gather(pooled(net, pixels, machine.micro_batch))
        if not filled:
            features = x.new_empty(len(padded), x.shape[1])
        features[filled : filled + len(x)] = x
        filled += len(x)
        after()
    assert filled == len(padded)
    return features[:count], torch.from_numpy(images.labels).to(machine.device)
