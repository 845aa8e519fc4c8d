"""Worker processes that decode and crop images into batches of bytes.

A batch is cut into pieces that all workers share, so the first batch is ready soon and memory stays
small. A piece is written directly into shared memory; floats exist on the device only.
Shapes: V views, of which U have the full size and W the smaller size of multi-crop, B images of
this rank, n images of a piece, S and s pixels a side, P parameters.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from lewel_bench.pretrain.colour import Params
from lewel_bench.pretrain.decode import Pixels, decode
from lewel_bench.pretrain.folder import Images, Indices
from lewel_bench.pretrain.workers import in_order

_PIECE = 32  # images; 10 MB for two views of 224 px
Plan = Iterator[tuple[int, Indices]]  # of each batch: the epoch, and the images of this rank
# pixels (U, n, S, S, 3), smaller ones (W, n, s, s, 3), parameters (V, n, P)
Piece = tuple[Tensor, Tensor, Params]


@dataclass(frozen=True)
class Batch:
    """Images of one step on this rank, on the host (page-locked where there is a GPU)."""

    pixels: Tensor  # uint8 (U, B, S, S, 3) of views, or (B, S, S, 3) of single images
    params: Tensor  # float32 (V, B, P) for `distort`, or (B, 0)
    labels: Tensor  # int64 (B,)
    index: Tensor  # int64 (B,), positions in the given Images
    small: Tensor  # uint8 (W, B, s, s, 3), the smaller views of multi-crop; W is 0 elsewhere


class Cut(Protocol):
    """Writes the V views of an image into `out`, (S, S, 3) or (s, s, 3) each; returns the
    parameters of each, or nothing where there are none."""

    def __call__(
        self, image: Pixels, rng: np.random.Generator, out: Sequence[Tensor]
    ) -> Sequence[Params]: ...


def stream(seed: int, epoch: int, purpose: int, index: int) -> np.random.Philox:
    """Random bits that depend on these four numbers, each in 0..2^64 - 1, and nothing else."""
    key = np.array([seed, epoch], dtype=np.uint64)  # a list of large numbers would become floats
    return np.random.Philox(key=key, counter=np.array([0, index, purpose, 0], dtype=np.uint64))


class Source:
    """The work of a worker: decode the images of a piece once each and cut their views.

    `sides` are the widths of the views in pixels, the largest first, with at most two values;
    `params` is the number of parameters of a view, 0 for single images, which have none.
    """

    def __init__(
        self,
        images: Images,
        seed: int,
        purpose: int,
        sides: tuple[int, ...],
        cut: Cut,
        params: int = 0,
    ) -> None:
        # An array of bytes is shared with forked workers; a tuple of str would be copied into each
        # of them page by page, as its reference counts change.
        self.files = np.array([file.encode() for file in images.files])
        self.labels = torch.from_numpy(images.labels)
        self.root, self.seed, self.purpose = images.root, seed, purpose
        self.cut, self.params = cut, params
        whole, small = max(sides), min(sides)
        self.whole = (sides.count(whole), whole)
        self.small = (sides.count(small), small) if small < whole else (0, 0)
        assert sides == (whole,) * self.whole[0] + (small,) * self.small[0], sides

    def cut_all(self, piece: tuple[int, Indices]) -> Piece:
        """The views of the images of a piece of an epoch."""
        epoch, index = piece
        pixels, small = (
            _shared(views, len(index), side, side, 3) for views, side in (self.whole, self.small)
        )
        params = np.empty((self.whole[0] + self.small[0], len(index), self.params), np.float32)
        for position, i in enumerate(index.tolist()):
            image = decode(self.root / self.files[i].decode())
            rng = np.random.Generator(stream(self.seed, epoch, self.purpose, i))
            out = [*pixels[:, position], *small[:, position]]
            for view, row in enumerate(self.cut(image, rng, out)):
                params[view, position] = row
        return pixels, small, params


def batches(source: Source, plan: Plan, workers: int) -> Iterator[Batch]:
    """The batches of `plan`, in order, prepared about one batch ahead by `workers` processes."""
    ahead: deque[Indices] = deque()  # images of the batches that workers have begun
    first = next(plan, None)
    if first is None:
        return
    per_batch = math.ceil(len(first[1]) / _PIECE)

    def pieces() -> Plan:
        for epoch, index in _chain(first, plan):
            ahead.append(index)
            for start in range(0, max(1, len(index)), _PIECE):
                yield epoch, index[start : start + _PIECE]

    ready = in_order(source.cut_all, pieces(), workers, per_batch + 2 * workers)
    with closing(ready):
        for piece in ready:
            yield _assemble(source, piece, ready, ahead.popleft())


def _assemble(source: Source, piece: Piece, ready: Iterator[Piece], index: Indices) -> Batch:
    """One batch from its first `piece` and those that follow it."""
    pixels, small = (
        torch.empty(
            (views, len(index), side, side, 3),
            dtype=torch.uint8,
            pin_memory=torch.cuda.is_available(),
        )
        for views, side in (source.whole, source.small)
    )
    params = []
    start = 0
    while True:
        stop = start + piece[0].shape[1]
        pixels[:, start:stop] = piece[0]
        small[:, start:stop] = piece[1]
        params.append(piece[2])
        if stop >= len(index):
            break
        start, piece = stop, next(ready)
    rows = torch.from_numpy(np.concatenate(params, axis=1))
    at = torch.from_numpy(np.array(index))
    labels = source.labels[at]
    if not source.params:
        return Batch(pixels[0], rows[0], labels, at, small)
    return Batch(pixels, rows, labels, at, small)


def _shared(*shape: int) -> Tensor:
    """An uninitialised uint8 tensor that a worker can hand over without a copy."""
    if get_worker_info() is None or 0 in shape:
        return torch.empty(shape, dtype=torch.uint8)
    # as torch's default_collate does; share_memory_() would copy
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _chain(first: tuple[int, Indices], rest: Plan) -> Plan:
    yield first
    yield from rest
