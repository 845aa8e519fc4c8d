"""Every kind of damage is named, all at once."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lewel_bench.evals.segmentation import labelled_images, mask_check, masks
from tests.evals.segmentation.making import devkit, write_mask


def test_sound_data_has_no_problems(voc: Path) -> None:
    assert mask_check.problems(voc) == ([], [])


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
    problems, notes = mask_check.problems(root)
    expected = [
        "train_000.png: the mask is 12x10 px, its image ",
        "train_001.png: label 77 at x 3, y 2: labels are 0 to 2 and 255",
        "train_002.png: missing",
        "train_003.jpg: missing",
        "train_004.jpg: ",
        "train_005.png: a mask of mode RGB",
        "train.txt: lists 1 images twice, first 'train_007'",
        "1 images of val are in train too, first 'val_001'",
    ]
    for part in expected:
        assert sum(part in problem for problem in problems) == 1, (part, problems)
    assert len(problems) == len(expected), problems
    assert len(notes) == 1 and "1 masks of train are all void" in notes[0]
    assert "train_006.png" in notes[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_labels(tmp_path: Path, split: str) -> None:
    root = devkit(tmp_path, train=2, val=2)
    for path in (root / "VOC2012" / "SegmentationClass").glob(f"{split}*.png"):
        write_mask(path, np.full(masks.mask(path).shape, 255))
    problems, _ = mask_check.problems(root)
    assert len(problems) == 1 and f"no mask of {split} has a label" in problems[0]


def test_no_data_at_all(tmp_path: Path) -> None:
    problems, _ = mask_check.problems(tmp_path)
    assert len(problems) == 1 and "expected VOC2012 in it" in problems[0]


def split(root: Path, name: str) -> list[Path]:
    folder = root / "VOC2012" / "SegmentationClass"
    return sorted(folder.glob(f"{name}_*.png"))


def test_a_class_without_pixels(tmp_path: Path) -> None:
    """An error in training, mostly by 255 in place of 1; a note in validation."""
    root = devkit(tmp_path, train=3, val=2)
    for path in split(root, "val"):
        labels = masks.mask(path).copy()
        labels[labels == 2] = 0
        write_mask(path, labels)
    problems, notes = mask_check.problems(root)
    assert problems == [] and len(notes) == 1
    assert "1 of 3 classes have no pixel in the masks of val: square (2); mIoU is" in notes[0]
    for path in split(root, "train"):
        labels = masks.mask(path).copy()
        labels[labels == 1] = 255
        write_mask(path, labels)
    problems, _ = mask_check.problems(root)
    assert len(problems) == 1 and "no pixel in the masks of train: disc (1)" in problems[0]
    assert "label 255 is void, not a class: in binary masks write 1, not 255" in problems[0]
    (root / "VOC2012" / "labels.txt").unlink()
    for path in (root / "VOC2012" / "SegmentationClass").iterdir():
        write_mask(path, np.where(masks.mask(path) == 0, 0, 255), "L")
    problems, _ = mask_check.problems(root)
    assert len(problems) == 1 and "got 1: background" in problems[0] and "not 255" in problems[0]


def palette_mask(path: Path, labels: np.ndarray, colours: list[tuple[int, int, int]]) -> None:
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)


RED, GREEN, BLUE, BLACK, WHITE = (9, 0, 0), (0, 9, 0), (0, 0, 9), (0, 0, 0), (224, 224, 192)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([BLUE, RED, GREEN], None),  # colours of one's own
        ([BLUE, RED, RED], None),  # that do not tell labels apart
        ([BLUE, GREEN, RED], "train_001.png: the palette gives label 1 the colour that label 2"),
        ([WHITE, RED, GREEN], "train_001.png: the palette gives label 0 the colour of void"),
    ],
)
def test_palettes_that_were_reordered(tmp_path: Path, others: list, message: str | None) -> None:
    root = devkit(tmp_path, train=3, val=2)
    for path in (root / "VOC2012" / "SegmentationClass").iterdir():
        labels = masks.mask(path)
        labels = np.where(labels == 255, 0, labels)
        palette_mask(path, labels, others if "train_001" in path.name else [BLUE, RED, GREEN])
    problems, notes = mask_check.problems(root)
    assert notes == []
    assert problems == [] if message is None else len(problems) == 1 and message in problems[0]


def test_pascals_colours_of_other_labels_in_every_mask(tmp_path: Path) -> None:
    root = devkit(tmp_path, train=3, val=2)
    for path in (root / "VOC2012" / "SegmentationClass").iterdir():
        labels = masks.mask(path)
        labels = np.where(labels == 255, 0, labels)
        palette_mask(path, labels, [BLACK, (0, 128, 0), (128, 0, 0)])
    problems, notes = mask_check.problems(root)
    assert problems == [] and len(notes) == 1
    assert "labels have the PASCAL colours of other labels (1 that of 2, 2 that of 1)" in notes[0]


def test_a_mask_of_the_stored_pixels(tmp_path: Path) -> None:
    root = devkit(tmp_path, train=2, val=2)
    path = root / "VOC2012" / "JPEGImages" / "train_001.jpg"
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(path) as image:
        assert image.width != image.height
        image.save(path, exif=exif)
    problems, _ = mask_check.problems(root)
    assert len(problems) == 1 and problems[0].startswith(f"{path}: is turned by its EXIF tag, but")


@pytest.mark.parametrize("place", ["JPEGImages/train_001.jpg", "SegmentationClass/train_001.png"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "cannot be read: is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read: is not a regular file"),
        (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic"),
        (lambda path: path.touch(), "is empty|is not a readable mask .unknown format"),
    ],
)
def test_files_that_would_hang(tmp_path: Path, place: str, make, reason: str) -> None:
    root = devkit(tmp_path, train=2, val=2)
    path = root / "VOC2012" / place
    path.unlink()
    make(path)
    problems, _ = mask_check.problems(root)
    assert len(problems) == 1 and re.match(f"{re.escape(str(path))}: .*({reason})", problems[0])


def test_images_and_masks_with_other_extensions_and_spaces_in_their_names(tmp_path: Path) -> None:
    root = devkit(tmp_path, train=2, val=2)
    year = root / "VOC2012"
    for folder, extension in (("JPEGImages", ".PNG"), ("SegmentationClass", ".bmp")):
        for path in list((year / folder).iterdir()):
            with Image.open(path) as image:
                image.save(path.with_name(f"a {path.stem}{extension}"))
            path.unlink()
    for path in (year / "ImageSets" / "Segmentation").iterdir():
        path.write_text("".join(f"a {name}\n" for name in path.read_text().split()))
    assert mask_check.problems(root) == ([], [])
    train, _ = labelled_images.read(root)
    assert train.pairs[0] == (
        "VOC2012/JPEGImages/a train_000.PNG",
        "VOC2012/SegmentationClass/a train_000.bmp",
    )
    path = year / "SegmentationClass" / "a train_000.bmp"
    with Image.open(path) as image:
        image.convert("L").save(path.with_suffix(".jpg"))
    path.unlink()
    problems, _ = mask_check.problems(root)
    assert len(problems) == 1 and "a JPEG mask: compression changes labels" in problems[0]
