"""Every kind of damage is named, all at once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lewel_bench.evals.segmentation import check, masks
from tests.evals.segmentation.making import devkit, write_mask


def test_sound_data_has_no_problems(voc: Path) -> None:
    assert check.problems(voc) == ([], [])


def test_every_damage_is_named(tmp_path: Path) -> None:
    root = devkit(tmp_path, train=8, val=4)
    year = root / "VOC2012"
    folder = year / "SegmentationClass"
    write_mask(folder / "train_000.png", np.zeros((10, 12)))
    labels = masks.mask(folder / "train_001.png").copy()
    labels[2, 3] = 77
    write_mask(folder / "train_001.png", labels)
    (folder / "train_002.png").unlink()
    (year / "JPEGImages" / "train_003.jpg").unlink()
    (year / "JPEGImages" / "train_004.jpg").write_bytes(b"\xff\xd8\xff")
    Image.open(year / "JPEGImages" / "train_005.jpg").save(folder / "train_005.png")
    write_mask(folder / "train_006.png", np.full(masks.mask(folder / "train_006.png").shape, 255))
    lists = year / "ImageSets" / "Segmentation"
    names = (lists / "train.txt").read_text() + "train_007\nval_001\n"
    (lists / "train.txt").write_text(names)
    found, notes = check.problems(root)
    expected = [
        "train_000.png: the mask is 12x10 px, its image ",
        "train_001.png: label 77 at x 3, y 2: allowed are 0 to 2 and 255",
        "train_002.png: missing",
        "train_003.jpg: missing",
        "train_004.jpg: ",
        "train_005.png: a mask of mode RGB",
        "train.txt: lists 1 pictures twice, first 'train_007'",
        "1 pictures of val are in train too, first 'val_001'",
    ]
    for part in expected:
        assert sum(part in problem for problem in found) == 1, (part, found)
    assert len(found) == len(expected), found
    assert len(notes) == 1 and "1 masks of train are all void" in notes[0]
    assert "train_006.png" in notes[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_labels(tmp_path: Path, split: str) -> None:
    root = devkit(tmp_path, train=2, val=2)
    for path in (root / "VOC2012" / "SegmentationClass").glob(f"{split}*.png"):
        write_mask(path, np.full(masks.mask(path).shape, 255))
    found, _ = check.problems(root)
    assert len(found) == 1 and f"no mask of {split} has a label" in found[0]


def test_no_data_at_all(tmp_path: Path) -> None:
    found, _ = check.problems(tmp_path)
    assert len(found) == 1 and "expected VOC2012 in it" in found[0]
