"""VOC's lists and masks, the augmented set in its layouts, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lewel_bench.evals.segmentation import image_sets, labelled_images, masks
from tests.evals.segmentation.making import CLASSES, devkit, write_mask


def sets(root: Path) -> Path:
    return root / "VOC2012" / "ImageSets" / "Segmentation"


def augment(root: Path, names: list[str]) -> None:
    """Masks of SBD: 1 everywhere, to be told from VOC's."""
    folder = root / "VOC2012" / "SegmentationClassAug"
    folder.mkdir()
    for name in names:
        with Image.open(root / "VOC2012" / "JPEGImages" / f"{name}.jpg") as image:
            write_mask(folder / f"{name}.png", np.ones(image.size[::-1]))


def test_plain_sets(voc: Path) -> None:
    train, report = labelled_images.read(voc)
    assert (len(train), len(report), train.classes) == (10, 4, CLASSES)
    assert train.pairs[0] == (
        "VOC2012/JPEGImages/train_000.jpg",
        "VOC2012/SegmentationClass/train_000.png",
    )
    assert train.take(np.array([3, 1])).names() == ["train_003", "train_001"]
    image, labels = labelled_images.pair(train, 0)
    assert image.shape[:2] == labels.shape and set(np.unique(labels)) == {0, 1, 2, 255}


def test_a_16_bit_image_keeps_its_grey_levels(tmp_path: Path) -> None:
    root = devkit(tmp_path / "VOCdevkit")
    train, _ = labelled_images.read(root)
    image, _ = labelled_images.pair(train, 0)
    levels = np.linspace(0, 65535, image[..., 0].size).astype(np.uint16).reshape(image.shape[:2])
    Image.fromarray(levels).save(root / train.pairs[0][0], "PNG")
    assert np.abs(labelled_images.pair(train, 0)[0] - levels[..., None] / 257).max() <= 0.5


NAMES = [f"train_{i:03d}" for i in range(6)]


@pytest.mark.parametrize("layout", ["aug", "trainaug", "train_aug", "SegmentationAug"])
def test_augmented_set(tmp_path: Path, layout: str) -> None:
    """Of six images VOC annotates three; whatever the list is called, all are there once."""
    root = devkit(tmp_path, train=6)
    (sets(root) / "train.txt").write_text("\n".join(NAMES[:3]))
    augment(root, NAMES)
    if layout == "aug":
        (sets(root) / "aug.txt").write_text("\n".join(NAMES[3:]))
    elif layout == "SegmentationAug":
        folder = root / "VOC2012" / "ImageSets" / layout
        folder.mkdir()
        lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in NAMES]
        (folder / "train_aug.txt").write_text("\n".join(lines))
    else:
        (sets(root) / f"{layout}.txt").write_text("\n".join(reversed(NAMES)))
    train, _ = labelled_images.read(root)
    assert sorted(train.names()) == NAMES
    folders = {Path(mask).stem: Path(mask).parent.name for _, mask in train.pairs}
    assert [folders[n] for n in NAMES] == ["SegmentationClass"] * 3 + ["SegmentationClassAug"] * 3
    assert len(labelled_images.read(root, augmented=False)[0]) == 3


def test_voc12_without_the_augmented_set_is_refused(tmp_path: Path) -> None:
    root = devkit(tmp_path, train=1, val=1)
    for split, count in (("train", 1464), ("val", 1449)):
        (sets(root) / f"{split}.txt").write_text("\n".join(f"{split}{i}" for i in range(count)))
    with pytest.raises(ValueError, match=r"without the masks of SBD.*SegmentationClassAug"):
        labelled_images.read(root)


def test_classes_without_labels_txt(tmp_path: Path) -> None:
    root = devkit(tmp_path, train=3)
    (root / "VOC2012" / "labels.txt").unlink()
    assert image_sets.classes(root, 2012) == ("background", "label 1", "label 2")
    main = root / "VOC2012" / "ImageSets" / "Main"
    main.mkdir()
    for name in ("square", "disc"):
        (main / f"{name}_train.txt").write_text("train_000 1\n")
    assert image_sets.classes(root, 2012) == CLASSES
    for name in ("square", "disc"):
        (main / f"{name}_train.txt").unlink()
    # names of VOC: its numbers are kept by a part of its images, not by somebody's own
    (main / "cow_train.txt").write_text("train_000 1\n")
    assert image_sets.classes(root, 2012) == image_sets.CLASSES and len(image_sets.CLASSES) == 21
    (main / "dog_train.txt").write_text("train_000 1\n")
    assert image_sets.classes(root, 2012) == ("background", "cow", "dog")


def test_the_last_year_counts(tmp_path: Path) -> None:
    root = devkit(tmp_path, train=3)
    (root / "VOC2012").rename(root / "VOC2007")
    devkit(root, train=2)
    assert len(labelled_images.read(root)[0]) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda y: (y / "ImageSets/Segmentation/val.txt").unlink(), "val.txt: list cannot be read"),
        (
            lambda y: (y / "ImageSets/Segmentation/val.txt").write_text("\n"),
            "val.txt: is empty: expected one image per line",
        ),
        (lambda y: (y / "SegmentationClass/val_001.png").unlink(), "val_001.png: missing"),
        (
            lambda y: (y / "ImageSets/Segmentation/train.txt").write_text("train_000\ntrain_000"),
            "train.txt: lists 1 images twice, first 'train_000'",
        ),
    ],
)
def test_broken_sets_are_named(tmp_path: Path, damage, message: str) -> None:
    root = devkit(tmp_path, train=2)
    damage(root / "VOC2012")
    with pytest.raises(ValueError, match=message):
        labelled_images.read(root)


def test_masks_are_indices_or_grey(tmp_path: Path) -> None:
    labels = np.arange(64).reshape(8, 8) % 3
    for mode in ("P", "L"):
        write_mask(tmp_path / "mask.png", labels, mode)
        assert np.array_equal(masks.mask(tmp_path / "mask.png"), labels)
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=r"colour.png: a mask of mode RGB: use 8-bit"):
        masks.mask(tmp_path / "colour.png")
    labels[3, 5] = 9
    write_mask(tmp_path / "mask.png", labels)
    with pytest.raises(ValueError, match=r"mask.png: label 9 at x 5, y 3: labels are 0 to 2 and"):
        masks.mask(tmp_path / "mask.png", 3)
    (tmp_path / "mask.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"mask.png: (is not a readable mask|mask cannot be read)"):
        masks.mask(tmp_path / "mask.png")


def test_rotated_images_are_turned(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 200
    exif = Image.Exif()
    exif[274] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    write_mask(tmp_path / "a.png", np.zeros((32, 16)))
    turned, _ = labelled_images.pair(
        labelled_images.LabelledImages(tmp_path, ("a",), (("a.jpg", "a.png"),)), 0
    )
    assert turned.shape == (32, 16, 3) and turned[:12].min() > 150 and turned[20:].max() < 50
