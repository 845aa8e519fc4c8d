"""A tiny data set of class folders and a tiny random backbone, made once per test session."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lewel_bench.evals.outcome import Splits
from lewel_bench.pretrain import backbone, checkpoint
from lewel_bench.pretrain.data import holdout, read_folder
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.recipe import Backbone

CLASSES, SIDE = 6, 32


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine(device=torch.device("cpu"), workers=0, save_every_s=1e9)


@pytest.fixture(scope="session")
def splits(tmp_path_factory) -> Splits:
    """6 classes of coloured stripes under noise: 72 to train, 36 held out, 36 to report."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 18), ("val", 6)):
        for c in range(CLASSES):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                draw(c, rng).save(folder / f"{i:03d}.png")
    train = read_folder(root, "train")
    rest, held_out = holdout(train, 36, seed=0)
    return Splits(train.take(rest), train.take(held_out), read_folder(root, "val", train.classes))


def draw(c: int, rng: np.random.Generator) -> Image.Image:
    phase = rng.uniform(0, 6)
    wave = np.sin(np.arange(SIDE + 8) * (0.4 + 0.3 * (c % 3)) + phase)
    level = np.full((SIDE + 8, SIDE + 8, 3), 110.0)
    level[..., c % 3] += 20 + 60 * (wave[:, None] if c < 3 else wave[None, :])
    level += rng.normal(0, 12, level.shape)
    return Image.fromarray(level.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory) -> Path:
    spec = Backbone(arch="resnet18", stem="small", width=8)
    torch.manual_seed(0)
    net = backbone.build(spec)
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    header = {"arch": spec.arch, "stem": spec.stem, "width": str(spec.width)}
    checkpoint.write_backbone(path, net.state_dict(), header)
    return path


class Killed(BaseException):
    """Stands for SIGKILL: nothing in between may catch it."""


def killed_after(steps: int):
    """A `stop` that kills at its `steps`-th question, which is asked once a step."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == steps:
            raise Killed
        return False

    return stop
