"""The engine mmseg: its configuration against a table, and, where it is installed, its runs."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lewel_bench.evals.clock import Clock
from lewel_bench.evals.context import Context
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.evals.segmentation import (
    image_sets,
    labelled_images,
    masks,
    metric,
    mmseg_config,
    run,
)
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.pacer import Pacer
from lewel_bench.pretrain.recipe import Backbone, change
from lewel_bench.pretrain.report import Stopped, never, silent
from tests.evals.segmentation.making import TINY

needed = pytest.mark.skipif(
    importlib.util.find_spec("mmseg") is None or torch.cuda.is_available(),
    reason="mmseg is not installed (pip install '.[seg]'), or takes the CUDA device",
)

NUMBERS = {"miou", "pixel_acc", "class_acc"}
TABLE = {  # mmsegmentation's fcn_r50-d8_4xb4-20k_voc12aug-512x512, by hand, with a plain ResNet
    "model.type": "EncoderDecoder",
    "model.data_preprocessor.type": "SegDataPreProcessor",
    "model.data_preprocessor.mean": [123.675, 116.28, 103.53],
    "model.data_preprocessor.std": [58.395, 57.12, 57.375],
    "model.data_preprocessor.bgr_to_rgb": True,
    "model.data_preprocessor.pad_val": 0,
    "model.data_preprocessor.seg_pad_val": 255,
    "model.data_preprocessor.size": (512, 512),
    "model.backbone.type": "ResNet",
    "model.backbone.depth": 50,
    "model.backbone.num_stages": 4,
    "model.backbone.stem_channels": 64,
    "model.backbone.base_channels": 64,
    "model.backbone.out_indices": (0, 1, 2, 3),
    "model.backbone.strides": (1, 2, 1, 1),
    "model.backbone.dilations": (1, 1, 2, 4),
    "model.backbone.contract_dilation": True,
    "model.backbone.norm_cfg": {"type": "SyncBN", "requires_grad": True},
    "model.backbone.norm_eval": False,
    "model.backbone.style": "pytorch",
    "model.backbone.init_cfg.checkpoint": "/weights.pth",
    "model.decode_head.type": "FCNHead",
    "model.decode_head.in_channels": 2048,
    "model.decode_head.in_index": 3,
    "model.decode_head.channels": 512,
    "model.decode_head.num_convs": 2,
    "model.decode_head.concat_input": True,
    "model.decode_head.dropout_ratio": 0.1,
    "model.decode_head.num_classes": 21,
    "model.decode_head.align_corners": False,
    "model.decode_head.loss_decode.type": "CrossEntropyLoss",
    "model.decode_head.loss_decode.use_sigmoid": False,
    "model.decode_head.loss_decode.loss_weight": 1.0,
    "model.auxiliary_head.type": "FCNHead",
    "model.auxiliary_head.in_channels": 1024,
    "model.auxiliary_head.in_index": 2,
    "model.auxiliary_head.channels": 256,
    "model.auxiliary_head.num_convs": 1,
    "model.auxiliary_head.concat_input": False,
    "model.auxiliary_head.dropout_ratio": 0.1,
    "model.auxiliary_head.num_classes": 21,
    "model.auxiliary_head.loss_decode.loss_weight": 0.4,
    "model.test_cfg.mode": "whole",
    "train_dataloader.batch_size": 4,
    "train_dataloader.sampler.type": "InfiniteSampler",
    "train_dataloader.sampler.shuffle": True,
    "train_dataloader.dataset.ann_file": "/train.json",
    "train_dataloader.dataset.metainfo.classes": image_sets.CLASSES,
    "train_dataloader.dataset.pipeline": [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {
            "type": "RandomResize",
            "scale": (2048, 512),
            "ratio_range": (0.5, 2.0),
            "keep_ratio": True,
        },
        {"type": "RandomCrop", "crop_size": (512, 512), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "Pad", "size": (512, 512)},
        {"type": "PackSegInputs"},
    ],
    "optim_wrapper.type": "OptimWrapper",
    "optim_wrapper.clip_grad": None,
    "optim_wrapper.optimizer.type": "SGD",
    "optim_wrapper.optimizer.lr": 0.01,
    "optim_wrapper.optimizer.momentum": 0.9,
    "optim_wrapper.optimizer.weight_decay": 5e-4,
    "param_scheduler": [
        {
            "type": "PolyLR",
            "eta_min": 1e-4,
            "power": 0.9,
            "begin": 0,
            "end": 20_000,
            "by_epoch": False,
        }
    ],
    "train_cfg.type": "IterBasedTrainLoop",
    "train_cfg.max_iters": 20_000,
    "randomness.seed": 3,
    "launcher": "pytorch",
    "env_cfg.dist_cfg.backend": "nccl",
}


def rendered(protocol=PROTOCOLS["voc12_seg_fcn_d8"], spec=None, **more):
    settings = {
        "lists": {"train": Path("/train.json"), "report": Path("/report.json")},
        "weights": Path("/weights.pth"),
        "folder": Path("/work_dir"),
        "seed": 3,
        "world": 4,
        "cuda": True,
    }
    return mmseg_config.training(
        protocol, (0.01, 5e-4), spec or Backbone(), image_sets.CLASSES, **{**settings, **more}
    )


@pytest.mark.parametrize("key", TABLE)
def test_rendered_configuration(key: str) -> None:
    value = rendered()
    for part in key.split("."):
        value = value[part]
    assert value == TABLE[key]


def test_rendered_for_a_cpu_other_backbones_and_mixed_precision() -> None:
    spec = Backbone(arch="resnet18", stem="cifar", width=16)
    protocol = change(PROTOCOLS["voc12_seg_fcn_d8"], {"precision": "bf16"})
    config = rendered(protocol, spec, cuda=False, world=1)
    backbone = config["model"]["backbone"]
    assert (backbone["type"], backbone["stem"]) == ("LewelBenchResNet", "cifar")
    assert (
        backbone["norm_cfg"]["type"] == config["model"]["decode_head"]["norm_cfg"]["type"] == "BN"
    )
    assert config["model"]["decode_head"]["in_channels"] == 128
    assert config["model"]["auxiliary_head"]["in_channels"] == 64
    assert config["optim_wrapper"]["type"] == "AmpOptimWrapper"
    assert config["optim_wrapper"]["dtype"] == "bfloat16"
    assert config["launcher"] == "none" and config["train_dataloader"]["batch_size"] == 16


def test_rendered_measurement() -> None:
    config = mmseg_config.testing(
        rendered(),
        PROTOCOLS["voc12_seg_fcn_d8"],
        image_sets.CLASSES,
        pictures=Path("/report.json"),
        checkpoint=Path("/iter_20000.pth"),
    )
    assert config["test_dataloader"]["batch_size"] == 1
    assert config["test_dataloader"]["dataset"]["ann_file"] == "/report.json"
    assert config["test_dataloader"]["dataset"]["pipeline"] == [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (2048, 512), "keep_ratio": True},
        {"type": "LoadAnnotations"},
        {"type": "PackSegInputs"},
    ]
    assert config["load_from"] == "/iter_20000.pth"
    assert "train_dataloader" not in config


@pytest.fixture
def train(splits, small_backbone, tmp_path):
    def work(name="run", protocol=None, candidate=(0.02, 5e-4), **more):
        arguments = {
            "candidate": candidate,
            "backbone": small_backbone,
            "splits": splits,
        }
        context = Context(0, tmp_path / name, Machine(), silent, never)
        context = replace(context, **{k: more.pop(k) for k in vars(context) if k in more})
        protocol = protocol or change(TINY, {"engine": "mmseg", "steps": 4})
        return run.run(protocol, context=context, **{**arguments, **more})

    return work


@needed
def test_trains_measures_and_stops(train, splits, tmp_path, monkeypatch) -> None:
    asked = []
    with pytest.raises(Stopped, match="saved at step 2 of 4"), monkeypatch.context() as patch:
        patch.setattr(Clock, "seconds", lambda self: 1000.0)
        train(stop=lambda: asked.append(1) or len(asked) == 2)
    seen = []
    outcome = train(report=lambda event, **fields: seen.append((event, fields)))
    assert ("resumed", {"step": 2, "steps": 4, "seconds": 1000.0}) in seen
    assert outcome.chosen == {"lr": 0.02, "weight_decay": 5e-4}
    assert set(outcome.metrics) == set(outcome.extra["select"]) == NUMBERS
    assert set(outcome.extra["per_class"]) == set(splits.train.classes)
    total = np.zeros((3, 3), np.int64)
    for place, name in enumerate(splits.report.names()):
        with Image.open(tmp_path / "run" / "predictions" / f"{name}.png") as image:
            total += metric.confusion(
                np.array(image), labelled_images.pair(splits.report, place)[1], 3
            )
    actual = metric.scores(total, splits.train.classes)
    assert outcome.metrics["miou"] == pytest.approx(actual["miou"], abs=1e-4)
    again = train()  # nothing is left to train
    assert again.metrics == outcome.metrics


@needed
def test_starts_from_the_backbone_and_names_what_diverges(train, tmp_path, small_backbone) -> None:
    from lewel_bench.pretrain import checkpoint

    outcome = train(candidate=(1e9, 0.0))
    assert outcome.metrics == {} and outcome.extra["diverged_at_step"] in (2, 3, 4)
    assert "at lr 1e+09" in outcome.warnings[0]
    protocol = change(TINY, {"engine": "mmseg", "steps": 1, "min_lr": 0.0})
    train("still", protocol, candidate=(1e-30, 0.0))
    state = torch.load(tmp_path / "still" / "iter_1.pth", weights_only=False)["state_dict"]
    weights, _ = checkpoint.read_backbone(small_backbone)
    for key, value in weights.items():
        if "running" not in key and "tracked" not in key:
            torch.testing.assert_close(state[f"backbone.{key}"], value, rtol=0, atol=1e-25)


@needed
def test_predictions_are_written_by_their_own_names(tmp_path) -> None:
    from lewel_bench.evals.segmentation import mmseg_parts as parts

    pictures = [[f"/{n}/image.jpg", f"/masks/{n}.png", f"picture{n}"] for n in range(2)]
    (tmp_path / "report.json").write_text(json.dumps(pictures))
    judge = parts.LewelBenchIoU(str(tmp_path / "report.json"), str(tmp_path / "predictions"))
    judge.dataset_meta = {"classes": ("a", "b")}
    for n, (image, mask, _) in enumerate(pictures):
        labels = {"data": torch.full((1, 6, 9), n)}
        sample = {"pred_sem_seg": labels, "gt_sem_seg": labels}
        judge.process({}, [{**sample, "img_path": image, "seg_map_path": mask}])
    for n in range(2):
        result = masks.mask(tmp_path / "predictions" / f"picture{n}.png")
        assert result.shape == (6, 9) and (result == n).all()


@needed
@pytest.mark.parametrize("own", [1.0, float("nan")])
def test_all_ranks_leave_where_one_diverges(monkeypatch, tmp_path, own: float) -> None:
    from lewel_bench.evals.segmentation import mmseg_parts as parts

    asked = []
    monkeypatch.setattr(parts.distributed, "world", lambda: 2)
    # the other rank's loss is not finite
    monkeypatch.setattr(parts.distributed, "any_rank", lambda bad, _: asked.append(bad) or True)
    pacer = Pacer(Machine(), never)
    watch = parts.Watch(tmp_path, silent, pacer, Clock(), None, lambda path: None)
    runner = SimpleNamespace(iter=parts.ASK_EVERY - 1, max_iters=1000)
    with pytest.raises(parts.Diverged, match=str(parts.ASK_EVERY)):
        watch.after_train_iter(runner, 0, outputs={"loss": torch.tensor(own)})
    assert asked == [not own > 0]


@needed
def test_a_clear_loser_ends_half_way(train) -> None:
    protocol = change(TINY, {"engine": "mmseg", "steps": 4, "prune": 0.9})
    outcome = train(protocol=protocol, rivals=[100.0])
    assert "stopped after 2 of 4 steps: select miou" in outcome.extra["pruned"]
    assert train(protocol=protocol, rivals=[100.0]).extra == outcome.extra
    assert train("kept", protocol, rivals=[1.0]).extra["half"]["step"] == 2


@needed
def test_in_another_python(train, tmp_path) -> None:
    """The link is another path to this interpreter, as a site file would name one."""
    link = tmp_path / "bin" / "python"
    link.parent.mkdir()
    link.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    link.chmod(0o755)
    seen = []
    outcome = train("outside", python=str(link), report=lambda event, **fields: seen.append(event))
    assert outcome.metrics["miou"] > 0 and "evaluated" in seen


@pytest.mark.skipif(importlib.util.find_spec("mmseg") is not None, reason="mmseg is installed here")
def test_an_engine_that_is_not_installed_is_refused(train) -> None:
    with pytest.raises(ValueError, match="engine mmseg does not work: mmseg is not installed"):
        train()
