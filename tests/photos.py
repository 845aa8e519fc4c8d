"""Images for tests: photographs from an archive, if present, and generated images."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("LEWEL_BENCH_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def extract(archive: str, folder: Path, most: int | None = None) -> list[Path]:
    """The first `most` JPEG files of a test archive, extracted below `folder`; skips without it."""
    path = DATA / archive
    if not path.is_file():
        pytest.skip(f"{archive} is not at hand (set LEWEL_BENCH_TEST_DATA)")
    actual: list[Path] = []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".jpg") and (most is None or len(actual) < most):
                tar.extract(member, folder, filter="data")
                actual.append(folder / member.name)
    return actual


def drawn(height: int, width: int, seed: int) -> np.ndarray:
    """A image with smooth shading, edges, texture and saturated colours, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.empty((height, width, 3))
    for channel in range(3):
        a, b, c = rng.uniform(0.01, 0.06, 3)
        image[..., channel] = 128 + 100 * np.sin(a * x + b * y + 6 * c)
    for _ in range(30):
        cy, cx = rng.integers(0, height), rng.integers(0, width)
        r = rng.integers(4, max(5, min(height, width) // 4))
        image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = rng.integers(0, 256, 3)
    image += rng.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)
