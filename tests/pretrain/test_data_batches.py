"""Batches: which images, the same pixels for any number of workers, ranks and resumes."""

import os
import signal
import subprocess
import sys
from dataclasses import astuple
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import drawn
from PIL import Image

from lewel_bench.pretrain import colour
from lewel_bench.pretrain.augment import draw, normalise, reference
from lewel_bench.pretrain.colour import distort
from lewel_bench.pretrain.data import Batch, Images, image_batches, read_folder, view_batches
from lewel_bench.pretrain.loader import stream
from lewel_bench.pretrain.views import AUGMENTS

AUGMENT = AUGMENTS["byol_eman"]
COUNT, BATCH, SIZE = 50, 12, 16  # 4 batches an epoch; two images are left out of each


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    root = tmp_path_factory.mktemp("set")
    for i in range(COUNT):
        path = root / "train" / "abcde"[i % 5] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(30 + i % 7, 40, i)).save(path, quality=90)
    return read_folder(root, "train")


def views(images: Images, **changes: int) -> list[Batch]:
    given = {"batch": BATCH, "seed": 3, "steps": 10, **changes}
    return list(view_batches(images, AUGMENT, SIZE, **given))


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(astuple(a), astuple(b), strict=True))


def test_every_epoch_is_a_new_permutation(images: Images) -> None:
    batches = views(images)
    assert len(batches) == 10
    epochs = [torch.cat([b.index for b in batches[i : i + 4]]).tolist() for i in (0, 4)]
    for epoch in epochs:
        assert len(set(epoch)) == 48
    assert epochs[0] != epochs[1]
    left_out = [set(range(COUNT)) - set(epoch) for epoch in epochs]
    assert left_out[0] != left_out[1]
    for b in batches:
        assert b.labels.tolist() == images.labels[b.index.numpy()].tolist()
    assert not torch.equal(views(images, seed=4)[0].index, batches[0].index)


def test_batches_do_not_depend_on_the_number_of_workers(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = views(images)
    monkeypatch.setattr("lewel_bench.pretrain.loader._PIECE", 5)
    for workers in (1, 2):
        expected = views(images, workers=workers)
        assert len(expected) == 10
        assert all(equal(a, b) for a, b in zip(here, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_at_any_step_goes_on_with_the_same_batches(images: Images, workers: int) -> None:
    whole = views(images)
    for start in (1, 4, 7, 9):
        rest = views(images, start_step=start, workers=workers)
        assert len(rest) == 10 - start
        assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))
    assert views(images, start_step=10) == []


def test_ranks_share_out_each_global_batch_in_order(images: Images) -> None:
    whole = views(images, steps=5)
    parts = [views(images, steps=5, rank=rank, world=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert [len(part[step].index) for part in parts] == [4, 4, 4]
        for name, dim in (("pixels", 1), ("params", 1), ("labels", 0), ("index", 0)):
            joined = torch.cat([getattr(part[step], name) for part in parts], dim)
            assert torch.equal(joined, getattr(batch, name))


def test_an_image_gets_other_views_in_another_epoch_seed_and_view(images: Images) -> None:
    batches = views(images, steps=8)
    rows: dict[int, list[np.ndarray]] = {}
    for b in batches:
        for place, i in enumerate(b.index.tolist()):
            rows.setdefault(i, []).append(b.params[:, place].numpy())
    everything = np.concatenate([np.concatenate(r) for r in rows.values()])
    # the sigma of the first views, always drawn, never twice the same
    sigma = np.concatenate([[r[0, 7] for r in row] for row in rows.values()])
    assert len(np.unique(sigma)) == len(sigma)
    assert len(np.unique(everything, axis=0)) > 0.9 * len(everything)


def test_a_batch_is_what_the_reference_makes_of_the_same_random_numbers(images: Images) -> None:
    batch = views(images, steps=5)[4]  # the first of the second epoch
    for place, i in enumerate(batch.index.tolist()):
        image = Image.open(images.root / images.files[i]).convert("RGB")
        rng = np.random.Generator(stream(3, 1, 1, i))
        for view, spec in enumerate(AUGMENT):
            box, params = draw(spec, image.height, image.width, SIZE, rng)
            row = batch.params[view, place]
            assert row.tolist() == params.tolist()
            got = distort(batch.pixels[view, place][None], row[None], torch.device("cpu"))[0]
            want = reference(image, box, row, spec, SIZE)
            assert (got - want).abs().mean() * 255 * 0.225 < 0.5


def test_the_global_random_state_is_left_alone(images: Images) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    views(images, steps=2, workers=1)
    list(image_batches(images, SIZE, crop="random", batch=20, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_consumer_may_stop_early_and_workers_end(images: Images) -> None:
    children = _children()
    batches = view_batches(images, AUGMENT, SIZE, batch=BATCH, seed=0, steps=10**6, workers=2)
    assert len(list(islice(batches, 3))) == 3
    assert _children() - children
    batches.close()  # type: ignore[attr-defined]
    assert not _children() - children


def _children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_workers_leave_a_schedulers_signals_to_the_main_process(images: Images) -> None:
    others = _children()
    batches = view_batches(images, AUGMENT, SIZE, batch=BATCH, seed=3, steps=10, workers=2)
    first = next(batches)
    for child in _children() - others:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(int(child), name)
    rest = list(batches)
    whole = views(images)
    assert all(equal(a, b) for a, b in zip([first, *rest], whole, strict=True))


def test_a_program_that_ends_with_batches_open_ends(images: Images) -> None:
    program = f"""
from pathlib import Path
from lewel_bench.pretrain.data import read_folder, view_batches
from lewel_bench.pretrain.views import AUGMENTS
images = read_folder(Path({str(images.root.parent)!r}), "train")
batches = view_batches(
    images, AUGMENTS["moco_v2"], 16, batch=12, seed=0, steps=10**6, workers=2
)
next(batches)
raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_without_a_workers_traceback(
    images: Images, tmp_path: Path, workers: int
) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/bad.jpg"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes((images.root / images.files[0]).read_bytes())
    (tmp_path / "train" / "b" / "bad.jpg").write_text("no image")
    broken = read_folder(tmp_path, "train")
    others = _children()
    with pytest.raises(ValueError, match=r"b/bad\.jpg: is not a readable image") as error:
        list(view_batches(broken, AUGMENT, SIZE, batch=4, seed=0, steps=1, workers=workers))
    assert not _children() - others
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)


def test_a_batch_that_cannot_be_is_refused(images: Images) -> None:
    with pytest.raises(ValueError, match="50 images do not fill one batch of 64"):
        views(images, batch=64)
    with pytest.raises(ValueError, match="batch 12 is not divisible by 5 processes"):
        views(images, world=5)


# --- single images


def test_centre_crops_come_in_order_and_to_the_end(images: Images) -> None:
    batches = list(image_batches(images, SIZE, crop="center", batch=16))
    assert [len(b.index) for b in batches] == [16, 16, 16, 2]
    assert torch.cat([b.index for b in batches]).tolist() == list(range(COUNT))
    assert batches[0].pixels.shape == (16, SIZE, SIZE, 3) and batches[0].params.shape == (16, 0)
    assert torch.cat([b.labels for b in batches]).tolist() == images.labels.tolist()
    from torchvision import transforms as T

    whole = T.Compose([T.Resize(18), T.CenterCrop(SIZE)])  # 16 · 256 / 224
    want = whole(Image.open(images.root / images.files[20]).convert("RGB"))
    assert np.abs(batches[1].pixels[4].numpy().astype(int) - np.array(want)).max() <= 1
    x = normalise(batches[1].pixels, torch.device("cpu"))
    assert torch.allclose(x[4, 0], (batches[1].pixels[4, :, :, 0] / 255 - 0.485) / 0.229, atol=1e-6)


def test_shuffled_random_crops_resume_and_follow_the_epoch(images: Images) -> None:
    def run(**changes: int) -> list[Batch]:
        given = {"crop": "random", "batch": 16, "shuffle": True, "drop_last": True, "seed": 1}
        return list(image_batches(images, SIZE, **{**given, **changes}))

    whole = run()
    assert len(whole) == 3
    assert all(equal(a, b) for a, b in zip(whole[1:], run(start=1, workers=2), strict=True))
    assert not torch.equal(run(epoch=1)[0].index, whole[0].index)
    assert not torch.equal(run(seed=2)[0].index, whole[0].index)
    for rank in (0, 1):
        for part, batch in zip(run(rank=rank, world=2), whole, strict=True):
            assert torch.equal(part.index, batch.index[8 * rank : 8 * rank + 8])
            assert torch.equal(part.pixels, batch.pixels[8 * rank : 8 * rank + 8])


def test_ranks_split_an_incomplete_last_batch(images: Images) -> None:
    for world in (2, 4):
        parts = [
            list(image_batches(images, SIZE, crop="center", batch=16, rank=r, world=world))
            for r in range(world)
        ]
        assert {len(part) for part in parts} == {4}
        everything = [i for part in parts for b in part for i in b.index.tolist()]
        assert sorted(everything) == list(range(COUNT))
    assert [len(part[3].index) for part in parts] == [1, 1, 0, 0]
    assert parts[3][3].pixels.shape == (0, SIZE, SIZE, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_multi_crop_has_views_of_two_sizes(images: Images, workers: int) -> None:
    specs = AUGMENTS["swav"]
    given = {"batch": BATCH, "seed": 3, "steps": 1, "workers": workers}
    (batch,) = view_batches(images, specs, 28, **given)
    assert batch.pixels.shape == (2, BATCH, 28, 28, 3)
    assert batch.small.shape == (6, BATCH, 12, 12, 3)  # 96/224 of the side
    assert batch.params.shape[:2] == (8, BATCH)
    for place, i in enumerate(batch.index.tolist()):
        image = Image.open(images.root / images.files[i]).convert("RGB")
        rng = np.random.Generator(stream(3, 0, 1, i))
        for view, (spec, pixels) in enumerate(
            zip(specs, [*batch.pixels, *batch.small], strict=True)
        ):
            side = pixels.shape[1]
            box, params = draw(spec, image.height, image.width, side, rng)
            row = batch.params[view, place]
            assert row.tolist() == params.tolist()
            got = distort(pixels[place][None], row[None], torch.device("cpu"))[0]
            assert (got - reference(image, box, row, spec, side)).abs().mean() * 255 * 0.225 < 0.5


def test_a_single_view_is_a_stack_of_one(images: Images) -> None:
    (batch,) = view_batches(images, AUGMENTS["supervised"], SIZE, batch=BATCH, seed=3, steps=1)
    assert batch.pixels.shape == (1, BATCH, SIZE, SIZE, 3) and batch.params.shape[0] == 1
    assert batch.small.numel() == 0


def test_a_row_holds_the_crop_as_shares_of_the_image(images: Images) -> None:
    (batch,) = views(images, steps=1)
    top, left, height, width = batch.params[..., colour.BOX].unbind(-1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 1 + 1e-6).all() and (left + width <= 1 + 1e-6).all()
    area = height * width
    assert (area > 0.15).all() and (area <= 1).all() and area.std() > 0.05  # scale (.2, 1)


def test_a_view_can_be_flipped_as_the_first(images: Images) -> None:
    entry = AUGMENT[0]
    same = (entry, entry.model_copy(update={"flip": "first"}))
    for specs, equal_flips in ((same, True), ((entry, entry), False)):
        batches = view_batches(images, specs, SIZE, batch=48, seed=3, steps=1)
        flips = next(batches).params[..., colour.FLIP]
        assert 0 < flips[0].mean() < 1
        assert torch.equal(*flips) is equal_flips
