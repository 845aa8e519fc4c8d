"""Data sets and the batches that training and evaluation draw from them.

Which images a batch holds is a function of (seed, step); what happens to an image is a function of
(seed, epoch, its position in the data set). So batches are the same bit for bit for any number of
workers, and after a resume at any step.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor

from lewel_bench.pretrain import augment as geometry
from lewel_bench.pretrain.colour import BOX, FLIP, PARAMS, Params, distort
from lewel_bench.pretrain.decode import Pixels, decode
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.folder import Images, Indices, read_classes, read_folder
from lewel_bench.pretrain.loader import Batch, Cut, Plan, Source, batches, stream
from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.subset import holdout, subset, subset_from_list
from lewel_bench.pretrain.views import Span, ViewSpec

__all__ = [
    "Batch", "Images", "decode", "holdout", "image_batches", "read_classes", "read_folder",
    "subset", "subset_from_list", "view_batches", "views_of",
]  # fmt: skip

_ORDER, _VIEWS, _CROPS = 0, 1, 2  # the purposes of streams of random numbers


def view_batches(
    images: Images,
    augment: tuple[ViewSpec, ...],
    size: int,
    *,
    batch: int,
    seed: int,
    start_step: int = 0,
    steps: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """The views of each image for the steps `start_step` to `steps - 1` of a whole run.

    Every epoch is a new permutation, of which an incomplete last batch is dropped. `batch` is the
    global batch; rank r gets its r-th contiguous part. Raises ValueError naming an unreadable file.
    """
    per_epoch = len(images) // batch
    if not per_epoch:
        raise ValueError(f"{len(images)} images do not fill one batch of {batch}: lower the batch")
    share = _share(batch, world)

    def plan() -> Plan:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(start_step, steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = _permutation(len(images), seed, epoch)
            first = step % per_epoch * batch + rank * share
            yield epoch, order[first : first + share]

    sides = tuple(spec.pixels(size) for spec in augment)
    cut = partial(_cut_views, augment=augment, sides=sides)
    return batches(Source(images, seed, _VIEWS, sides, cut, PARAMS), plan(), workers)


def views_of(batch: Batch, machine: Machine, epoch: int) -> Views:
    """The views of a batch on the machine's device, distorted and normalised there."""
    device = machine.device
    pixels = [*batch.pixels, *batch.small]
    x = tuple(
        distort(pixels[v], batch.params[v], device, compile=machine.compile)
        for v in range(len(pixels))
    )
    index, labels, params = (
        t.to(device, non_blocking=True) for t in (batch.index, batch.labels, batch.params)
    )
    return Views(x, index, labels, params[..., BOX], params[..., FLIP] > 0, epoch)


def image_batches(
    images: Images,
    size: int,
    *,
    crop: Literal["center", "random"],
    batch: int,
    resize: int | None = None,
    crop_scale: Span = (0.08, 1.0),
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    workers: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """One epoch of single images, from batch number `start`, for `normalise`.

    `center` resizes the shorter side to `resize` (default `size` · 256 / 224) and cuts the centre;
    `random` is RandomResizedCrop(crop_scale) and a flip. `batch` is the global batch; rank r gets
    its r-th contiguous part. An incomplete last batch is split as evenly as possible, so a rank may
    get one image fewer than another, or none.
    """
    share = _share(batch, world)
    order = _permutation(len(images), seed, epoch) if shuffle else np.arange(len(images))
    ends = len(images) // batch * batch if drop_last else len(images)

    def plan() -> Plan:
        for first in range(start * batch, ends, batch):
            mine = order[first : min(first + batch, ends)]
            whole = len(mine) == batch
            yield (
                epoch,
                (
                    mine[rank * share : (rank + 1) * share]
                    if whole
                    else np.array_split(mine, world)[rank]
                ),
            )

    cut: Cut
    if crop == "center":
        cut = partial(_cut_center, resize=resize or round(size * 256 / 224), size=size)
    else:
        cut = partial(_cut_random, scale=crop_scale, size=size)
    return batches(Source(images, seed, _CROPS, (size,), cut), plan(), workers)


def _cut_views(
    image: Pixels,
    rng: np.random.Generator,
    out: Sequence[Tensor],
    *,
    augment: tuple[ViewSpec, ...],
    sides: tuple[int, ...],
) -> Sequence[Params]:
    rows: list[Params] = []
    height, width = image.shape[:2]
    for spec, side, slot in zip(augment, sides, out, strict=True):
        box, params = geometry.draw(spec, height, width, side, rng, rows[0] if rows else None)
        geometry.crop(image, box, side, spec.interpolation, slot)
        rows.append(params)
    return rows


def _cut_random(
    image: Pixels, rng: np.random.Generator, out: Sequence[Tensor], *, scale: Span, size: int
) -> Sequence[Params]:
    geometry.train_crop(image, size, scale, rng, out[0])
    return ()


def _cut_center(
    image: Pixels, rng: np.random.Generator, out: Sequence[Tensor], *, resize: int, size: int
) -> Sequence[Params]:
    geometry.center(image, resize, size, out[0])
    return ()


def _permutation(count: int, seed: int, epoch: int) -> Indices:
    # sorted raw bits: numpy promises the same ones for ever, unlike its permutation()
    order: Indices = np.argsort(stream(seed, epoch, _ORDER, 0).random_raw(count), kind="stable")
    return order


def _share(batch: int, world: int) -> int:
    if batch % world:
        raise ValueError(
            f"batch {batch} is not divisible by {world} processes: use a number of processes "
            "that divides it"
        )
    return batch // world
