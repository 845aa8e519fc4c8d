"""A small data set of textured shapes in VOC's layout, and a protocol of a size to test with."""

from pathlib import Path

import numpy as np
from PIL import Image

from lewel_bench.evals.dense import Segmentation

TINY = Segmentation(
    name="tiny",
    label="tiny",
    source="none",
    data="none",
    batch=4,
    steps=6,
    lrs=(0.02,),
    weight_decays=(5e-4,),
    held_out=2,
    scale=(128, 64),
    crop=48,
    head_width=12,
    aux_width=8,
)
CLASSES = ("background", "disc", "square")


def devkit(root: Path, train: int = 10, val: int = 4) -> Path:
    """VOC2012 with images of about 80x60 px, of 2 classes before a background."""
    rng = np.random.default_rng(0)
    year = root / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    (year / "labels.txt").write_text("\n".join(CLASSES))
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}_{i:03d}" for i in range(count)]
        (year / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image, labels = picture(rng)
            Image.fromarray(image).save(year / "JPEGImages" / f"{name}.jpg", quality=92)
            write_mask(year / "SegmentationClass" / f"{name}.png", labels)
    return root


def picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and its labels (H, W): a red disc and a green square with void borders."""
    height, width = rng.integers(50, 90, 2).tolist()
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    cy, cx = rng.uniform(15, height - 15), rng.uniform(15, width - 15)
    far = np.hypot(y - cy, x - cx)
    labels[far < 14] = 1
    top, left = int(rng.integers(0, height - 22)), int(rng.integers(0, width - 22))
    labels[top : top + 20, left : left + 20] = 2
    image = rng.normal(110, 30, (height, width, 3))
    image[labels == 1, 0] += 90
    image[labels == 2, 1] += 90
    labels[(far > 13) & (far < 15)] = 255
    return image.clip(0, 255).astype(np.uint8), labels


def write_mask(path: Path, labels: np.ndarray, mode: str = "P") -> None:
    image = Image.fromarray(labels.astype(np.uint8))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([value for level in range(256) for value in (level, 255 - level, 128)])
    image.save(path)
