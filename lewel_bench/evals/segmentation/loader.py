"""The images that a segmenter is trained and tested on, in order, prepared by worker processes.

Which images a batch holds is a function of (seed, step); what happens to one is a function of
(seed, epoch, its place). So batches are the same bit for bit for any number of workers or ranks,
and after a resume at any step. Shapes: B images of this rank, S the side of a crop, h, w of a
resized image, H, W of its file.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lewel_bench.evals.segmentation import labelled_images
from lewel_bench.evals.segmentation.labelled_images import LabelledImages
from lewel_bench.evals.segmentation.masks import Pixels
from lewel_bench.evals.segmentation.views import test_view, training_view
from lewel_bench.pretrain.loader import stream
from lewel_bench.pretrain.workers import in_order

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Segmentation

Batch = tuple[Tensor, Tensor]  # uint8 (B, S, S, 3), (B, S, S)
_ORDER, _VIEWS = 0, 1  # what a stream of random numbers is for


def training_batches(
    pictures: LabelledImages,
    protocol: "Segmentation",
    *,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """This rank's parts of the batches from step `start` on, without end.

    One permutation of the images follows the other, as mmengine's InfiniteSampler has it. Raises
    ValueError naming an unreadable file, or where the batch cannot be shared.
    """
    if protocol.batch % world:
        raise ValueError(
            f"batch {protocol.batch} is not divisible by {world} processes: use a number of "
            f"processes that divides it"
        )
    share = protocol.batch // world
    places = islice(_order(len(pictures), seed, start * protocol.batch), rank, None, world)
    cut = _Training(pictures, protocol, seed)
    with closing(in_order(cut, places, workers, 2 * share)) as ready:
        while True:
            images, labels = zip(*islice(ready, share), strict=True)
            yield torch.stack(images), torch.stack(labels)


def test_images(
    pictures: LabelledImages, protocol: "Segmentation", workers: int, indices: Sequence[int]
) -> Iterator[tuple[Tensor, Pixels]]:
    """Image uint8 (h, w, 3) at the test scale and labels (H, W) of the images at `indices`."""
    with closing(in_order(_Test(pictures, protocol), iter(indices), workers, 2 * workers)) as ready:
        yield from ready


def _order(count: int, seed: int, start: int) -> Iterator[tuple[int, int]]:
    """(epoch, place) of the images from number `start` of the endless sequence on."""
    epoch, first = divmod(start, count)
    while True:
        draws = stream(seed, epoch, _ORDER, 0).random_raw(count)
        for place in np.argsort(draws, kind="stable")[first:].tolist():
            yield epoch, place
        epoch, first = epoch + 1, 0


class _Files:
    """Images whose names are arrays of bytes, which forked workers share: reference counts of
    many strings would copy them into each worker page by page."""

    def __init__(self, pictures: LabelledImages) -> None:
        self.root, self.classes = pictures.root, pictures.classes
        self.files = np.array([[file.encode() for file in pair] for pair in pictures.pairs])

    def read(self, place: int) -> tuple[Pixels, Pixels]:
        files = tuple(file.decode() for file in self.files[place].tolist())
        return labelled_images.pair(
            LabelledImages(self.root, self.classes, ((files[0], files[1]),)), 0
        )


class _Training:
    def __init__(self, pictures: LabelledImages, protocol: "Segmentation", seed: int) -> None:
        self.files, self.protocol, self.seed = _Files(pictures), protocol, seed

    def __call__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, place = draw
        rng = np.random.Generator(stream(self.seed, epoch, _VIEWS, place))
        image, labels = training_view(*self.files.read(place), self.protocol, rng)
        return torch.from_numpy(image), torch.from_numpy(labels)


class _Test:
    def __init__(self, pictures: LabelledImages, protocol: "Segmentation") -> None:
        self.files, self.protocol = _Files(pictures), protocol

    def __call__(self, place: int) -> tuple[Tensor, Pixels]:
        image, labels = self.files.read(place)
        return torch.from_numpy(test_view(image, self.protocol)), labels
