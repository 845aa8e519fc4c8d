"""Batches are functions of seed and step: for any workers, ranks and start."""

from itertools import islice

import torch

from lewel_bench.evals.segmentation import labelled_images, loader, views
from tests.evals.segmentation.making import TINY


def taken(splits, count: int, **more):
    batches = loader.training_batches(splits.train, TINY, **{"seed": 0, **more})
    result = list(islice(batches, count))
    batches.close()
    return result


def same(a, b) -> bool:
    return all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_any_start_and_workers(splits) -> None:
    whole = taken(splits, 5)
    assert whole[0][0].shape == (4, 48, 48, 3) and whole[0][1].dtype == torch.uint8
    assert same(whole[3:], taken(splits, 2, start=3))
    assert same(whole, taken(splits, 5, workers=2))
    assert not same(whole, taken(splits, 5, seed=1))


def test_ranks_share_the_batch(splits) -> None:
    whole = taken(splits, 3)
    parts = [taken(splits, 3, rank=r, world=2) for r in (0, 1)]
    for step, (images, labels) in enumerate(whole):
        for r in (0, 1):
            assert torch.equal(images[r::2], parts[r][step][0])
            assert torch.equal(labels[r::2], parts[r][step][1])


def test_each_picture_once_a_permutation() -> None:
    places = [place for _, place in islice(loader._order(7, 0, 0), 21)]
    for epoch in range(3):
        assert sorted(places[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert places[:7] != places[7:14]
    assert list(islice(loader._order(7, 0, 10), 5)) == list(islice(loader._order(7, 0, 0), 10, 15))


def test_test_images_in_order(splits) -> None:
    for workers in (0, 2):
        batches = list(loader.test_images(splits.report, TINY, workers, [2, 0]))
        for (image, labels), place in zip(batches, (2, 0), strict=True):
            pixels, truth = labelled_images.pair(splits.report, place)
            assert torch.equal(image, torch.from_numpy(views.test_view(pixels, TINY)))
            assert (labels == truth).all()
