"""Batches for detectors: dealt as detectron2 deals them, the same after a resume."""

import multiprocessing
import signal
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated import make_coco, make_voc

from lewel_bench.evals.detection import loader
from lewel_bench.evals.detection.annotated_images import read_coco, read_voc
from lewel_bench.evals.detection.loader import grouped, training_batches
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.pretrain.workers import in_order

SMALL = {"batch": 4, "min_sizes": (40, 48, 56), "test_size": 48, "max_size": 90}
BOXES = PROTOCOLS["voc07_det_c4"].model_copy(update=SMALL)
MASKS = PROTOCOLS["coco_fpn_1x"].model_copy(update=SMALL)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = make_coco(tmp_path_factory.mktemp("coco") / "c", {"train2017": 30})
    return read_coco(root, "train2017")


def first(scenes, count, start=0, **how):
    how = {"seed": 3, **how}
    batches = training_batches(scenes, MASKS, start=start, **how)
    result = list(islice(batches, count))
    batches.close()
    return result


def assert_same(a, b):
    assert len(a) == len(b)
    for entry, two in zip(a, b, strict=True):
        assert [e.id for e in entry] == [e.id for e in two]
        for x, y in zip(entry, two, strict=True):
            assert torch.equal(x.image, y.image) and x.image.dtype == torch.uint8
            assert torch.equal(x.boxes, y.boxes) and torch.equal(x.labels, y.labels)
            assert x.size == y.size
            for p, q in zip(x.polygons, y.polygons, strict=True):
                assert all(np.array_equal(s, t) for s, t in zip(p, q, strict=True))


@pytest.mark.parametrize("start", [1, 7, 20])
def test_a_resume_gives_the_same_batches(coco, start):
    assert_same(first(coco, 3, start), first(coco, start + 3)[start:])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches(coco, workers):
    state = torch.get_rng_state()
    assert_same(first(coco, 9, workers=workers), first(coco, 9))
    assert torch.equal(torch.get_rng_state(), state)  # it belongs to the run


def test_batches_depend_on_the_seed_and_on_the_epoch(coco):
    ids = [[e.id for e in batch] for batch in first(coco, 30)]
    assert ids != [[e.id for e in batch] for batch in first(coco, 30, seed=4)]
    views = [e for batch in first(coco, 30) for e in batch]
    image = next(i for i, n in Counter(e.id for e in views).items() if n > 3)
    same = [e.image for e in views if e.id == image]
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairwise(same))


def test_examples_of_a_batch_are_all_wide_or_all_not(coco):
    sizes = [{e.size[1] > e.size[0] for e in batch} for batch in first(coco, 12)]
    assert all(len(kinds) == 1 for kinds in sizes) and len(set(map(tuple, sizes))) == 2


def test_images_without_objects_are_left_out(coco):
    scene = next(s for s in coco.scenes if len(s.objects) > 1)
    crowd = replace(scene.objects, crowd=np.ones(len(scene.objects), dtype=bool))
    others = [s for s in coco.scenes if s is not scene]
    coco = replace(coco, scenes=(replace(scene, objects=crowd), *others))
    empty = {s.id for s in others if not len(s.objects)}
    assert empty
    batches = first(coco, 40)
    seen = {e.id for batch in batches for e in batch}
    assert seen == {s.id for s in others} - empty
    assert all(len(e.labels) for batch in batches for e in batch)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [5, 24])
def test_ranks_share_every_permutation(world, count):
    usable, wide = np.arange(100, 100 + count), np.zeros(200, dtype=bool)
    ranks = [islice(grouped(usable, wide, 0, 1, r, world), 6 * count) for r in range(world)]
    stream = [place[0] for turn in zip(*ranks, strict=True) for place in turn]
    for epoch in range(6):
        part = stream[epoch * count : (epoch + 1) * count]
        assert {e for e, _ in part} == {epoch} and {p for _, p in part} == set(usable.tolist())


@pytest.mark.parametrize("world", [1, 3])
def test_groups_are_detectron2s(world):
    common = pytest.importorskip("detectron2.data.common")
    rng = np.random.default_rng(0)
    wide, usable = rng.random(60) < 0.7, np.sort(rng.permutation(60)[:50])
    for rank in range(world):
        places = (group[0] for group in grouped(usable, wide, 5, 1, rank, world))
        # groups of one come in the order of the stream
        dicts = ({"width": 1 + wide[p], "height": 1, "place": (e, p)} for e, p in places)
        theirs = iter(common.AspectRatioGroupedDataset(dicts, 4))
        for actual in islice(grouped(usable, wide, 5, 4, rank, world), 60):
            assert actual == [d["place"] for d in next(theirs)]


def test_ranks_get_their_share(coco):
    assert [len(b) for b in first(coco, 2, rank=1, world=2)] == [2, 2]
    with pytest.raises(ValueError, match="batch 4 is not divisible by 3 processes"):
        first(coco, 1, world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_tests_come_in_order(coco, workers):
    batches = list(loader.test_batches(coco, MASKS, workers))
    assert [e.id for e in batches] == [s.id for s in coco.scenes]
    some = list(loader.test_batches(coco, MASKS, workers, np.array([7, 2, 11])))
    assert [e.id for e in some] == [coco.scenes[i].id for i in (7, 2, 11)]
    assert torch.equal(some[0].image, batches[7].image)
    assert list(loader.test_batches(coco, MASKS, workers, [])) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_without_a_workers_traceback(tmp_path: Path, workers):
    scenes = read_voc(make_voc(tmp_path, {(2012, "train"): 8}), [(2012, "train")])
    path = tmp_path / scenes.scenes[3].file
    path.write_bytes(path.read_bytes()[:300])
    before = multiprocessing.active_children()
    with pytest.raises(ValueError) as error:
        list(loader.test_batches(scenes, BOXES, workers))
    assert str(error.value).startswith(f"{path}: ")
    assert multiprocessing.active_children() == before


def test_nothing_to_learn_from_is_refused(coco):
    empty = coco.take([i for i, s in enumerate(coco.scenes) if not len(s.objects)])
    with pytest.raises(ValueError, match="no image has an object to train on"):
        first(empty, 1)


def _handlers(_: int) -> list[bool]:
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    return [signal.getsignal(name) == signal.SIG_IGN for name in names]


def test_workers_leave_signals_to_the_main_process_and_end_with_it():
    before, handler = len(multiprocessing.active_children()), signal.getsignal(signal.SIGINT)
    results = in_order(_handlers, iter(range(100)), 2, 4)
    assert next(results) == [True] * 3
    assert len(multiprocessing.active_children()) == before + 2
    results.close()
    assert len(multiprocessing.active_children()) == before
    assert signal.getsignal(signal.SIGINT) == handler
