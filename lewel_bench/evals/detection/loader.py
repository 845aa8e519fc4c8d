"""The images that a detector is trained and tested on, in order, prepared by worker processes.

Which images a batch holds is a function of (seed, step, rank, world); what happens to an image is
one of (seed, epoch, its place). So batches are the same bit for bit for any number of workers, and
after a resume at any step.
"""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewel_bench.evals.detection.annotated_images import Floats, Scene, Scenes
from lewel_bench.evals.detection.masks import Pixels
from lewel_bench.evals.detection.views import Example, test_view, training_view
from lewel_bench.pretrain.loader import stream
from lewel_bench.pretrain.workers import in_order

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection

_ORDER, _VIEWS = 0, 1  # what a stream of random numbers is for
Places = NDArray[np.int64]  # in the scenes
_Place = tuple[int, int]  # epoch and place
_Parts = tuple[
    Tensor, NDArray[np.float32], Places, list[list[Floats] | Pixels], int, tuple[int, int]
]  # of an Example


def training_batches(
    scenes: Scenes,
    protocol: "Detection",
    *,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[list[Example]]:
    """This rank's images of the steps from `start` on, without end.

    As detectron2 deals them: one permutation after the other, every `world`-th image to a rank,
    which puts batch / world wide or as many tall ones together. Images without an object that is
    no crowd are left out. Raises ValueError if none is left, or naming an unreadable file.
    """
    if protocol.batch % world:
        raise ValueError(
            f"batch {protocol.batch} is not divisible by {world} processes: use a number of "
            f"processes that divides it"
        )
    usable = np.array([i for i, s in enumerate(scenes.scenes) if not s.objects.crowd.all()])
    if not len(usable):
        raise ValueError(f"{scenes.root}: no image has an object to train on")
    wide = np.array([s.width > s.height for s in scenes.scenes])
    share = protocol.batch // world
    groups = islice(grouped(usable, wide, seed, share, rank, world), start, None)
    places = (place for group in groups for place in group)
    with closing(in_order(_Training(scenes, protocol, seed), places, workers, 2 * share)) as ready:
        while True:
            yield [_example(*parts) for parts in islice(ready, share)]


def test_batches(
    scenes: Scenes, protocol: "Detection", workers: int, indices: Sequence[int] | None = None
) -> Iterator[Example]:
    """The images at `indices` (default: all), in that order, at the test size."""
    plan = iter(range(len(scenes)) if indices is None else [int(i) for i in indices])
    with closing(in_order(_Test(scenes, protocol), plan, workers, 2 * workers)) as ready:
        for parts in ready:
            yield _example(*parts)


def grouped(
    usable: Places,
    wide: NDArray[np.bool_],
    seed: int,
    size: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[list[_Place]]:
    """Groups of `size` images that are all `wide` or all not, without end, for one rank.

    `usable` are the places that may be drawn.
    """
    waiting: tuple[list[_Place], list[_Place]] = ([], [])
    epoch, first = 0, rank
    while True:
        draws = stream(seed, epoch, _ORDER, 0).random_raw(len(usable))
        order = usable[np.argsort(draws, kind="stable")]
        for place in order[first::world].tolist():
            group = waiting[int(wide[place])]
            group.append((epoch, place))
            if len(group) == size:
                yield group.copy()
                group.clear()
        taken = len(order[first::world])
        first += taken * world - len(usable)  # this rank's first turn in the next permutation
        epoch += 1


class _Packed:
    """Scenes as one array of bytes, which forked workers share: reference counts of many objects
    would copy them into each worker page by page."""

    def __init__(self, scenes: Scenes) -> None:
        packed = [pickle.dumps(scene, protocol=-1) for scene in scenes.scenes]
        self.root = scenes.root
        self.ends = np.cumsum([0, *map(len, packed)])
        self.bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __getitem__(self, place: int) -> Scene:
        start, end = self.ends[place : place + 2].tolist()
        scene: Scene = pickle.loads(self.bytes[start:end].data)
        return scene


class _Training:
    def __init__(self, scenes: Scenes, protocol: "Detection", seed: int) -> None:
        self.scenes, self.protocol, self.seed = _Packed(scenes), protocol, seed

    def __call__(self, draw: _Place) -> _Parts:
        epoch, place = draw
        rng = np.random.Generator(stream(self.seed, epoch, _VIEWS, place))
        scene = self.scenes[place]
        return _parts(training_view(self.scenes.root, scene, self.protocol, rng))


class _Test:
    def __init__(self, scenes: Scenes, protocol: "Detection") -> None:
        self.scenes, self.protocol = _Packed(scenes), protocol

    def __call__(self, place: int) -> _Parts:
        return _parts(test_view(self.scenes.root, self.scenes[place], self.protocol))


def _parts(example: Example) -> _Parts:
    # each tensor from a worker holds a file open: the image is worth it
    boxes, labels = example.boxes.numpy(), example.labels.numpy()
    return example.image, boxes, labels, example.polygons, example.id, example.size


def _example(
    image: Tensor,
    boxes: NDArray[np.float32],
    labels: Places,
    polygons: list[list[Floats] | Pixels],
    number: int,
    size: tuple[int, int],
) -> Example:
    boxes_, labels_ = torch.from_numpy(boxes), torch.from_numpy(labels)
    return Example(image, boxes_, labels_, polygons, number, size)
