"""The command line in a process of its own, and a tiny image folder for it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

# one thread: the tests share the machine, and equal thread counts make results comparable
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
Bench = Callable[..., subprocess.CompletedProcess[str]]


def write_images(root: Path, classes: int = 3, train: int = 16, val: int = 6) -> Path:
    """Class folders of 40x32 images: a colour and a stripe width per class, under noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for c in range(classes):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                stripes = (np.arange(40) // (2 + 2 * c) % 2)[None, :, None] * 90
                colour = rng.uniform(40, 160, 3)
                pixels = colour + stripes + rng.normal(0, 25, (32, 40, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{i:03d}.jpg", quality=95)
    return root


def command(*arguments: str | Path) -> list[str]:
    """The command line of `lewel-bench` in this environment."""
    return [sys.executable, "-m", "lewel_bench.harness.cli", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: no site file of the user's, one thread."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LEWEL_", "XDG_"))}
    return {**kept, **ENVIRONMENT, "XDG_CONFIG_HOME": "/nonexistent", **more}
