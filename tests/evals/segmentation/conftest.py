"""The small data set, made once per test session."""

from pathlib import Path

import pytest
import torch

from lewel_bench.evals.outcome import DenseSplits
from lewel_bench.evals.segmentation import labelled_images
from lewel_bench.evals.segmentation.labelled_images import LabelledImages
from lewel_bench.pretrain import backbone, checkpoint
from lewel_bench.pretrain.recipe import Backbone
from tests.evals.segmentation.making import devkit


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return devkit(tmp_path_factory.mktemp("voc") / "VOCdevkit")


@pytest.fixture(scope="session")
def splits(voc: Path) -> DenseSplits[LabelledImages]:
    train, report = labelled_images.read(voc)
    return DenseSplits(train.take(range(2, 10)), train.take(range(2)), report)


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = Backbone(arch="resnet18", stem="small", width=8)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    header = {"arch": spec.arch, "stem": spec.stem, "width": str(spec.width)}
    checkpoint.write_backbone(path, backbone.build(spec).state_dict(), header)
    return path
