"""The detectron2 engine: its configurations by a table, and real runs where it is installed."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from lewel_bench.evals import detection, engines, other_interpreter, weights
from lewel_bench.evals.clock import Clock
from lewel_bench.evals.dense import Detection
from lewel_bench.evals.detection import detectron, voc
from lewel_bench.evals.detection.annotated_images import Objects, Scene, Scenes, read_coco, read_voc
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.pretrain import backbone, checkpoint, shapes
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.recipe import Backbone, change
from lewel_bench.pretrain.report import Stopped, never, silent

HAS = importlib.util.find_spec("detectron2") is not None
needs_detectron2 = pytest.mark.skipif(not HAS, reason="detectron2 is not installed")

R50, TINY = Backbone(), Backbone(arch="resnet18", stem="small", width=8)
CANDIDATE = (0.02, 1e-4)

# By hand, from facebookresearch/moco @7397dfe detection/configs and detectron2's own defaults at
# 02b5c4e where those say nothing.
BOTH: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cuda",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM": "imagenet",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.MASK_FORMAT": "polygon",
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.AMP.ENABLED": False,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.EVAL_PERIOD": 0,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "SEED": 3,
}
VOC_C4 = BOTH | {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.MASK_ON": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "INPUT.MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "SOLVER.MAX_ITER": 24000,
    "SOLVER.STEPS": (18000, 22000),
    "SOLVER.WARMUP_ITERS": 100,
}
COCO_FPN = BOTH | {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.MASK_ON": True,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": (60000, 80000),
    "SOLVER.WARMUP_ITERS": 1000,
}
TABLES = {"voc07_det_c4": (VOC_C4, 20), "coco_fpn_1x": (COCO_FPN, 80)}


def rendered(
    name: str, spec: Backbone = R50, classes: int = 20, device: str = "cuda", **changes: Any
) -> dict[str, Any]:
    protocol = change(PROTOCOLS[name], changes)
    return detectron.settings(
        protocol, spec, classes=classes, candidate=CANDIDATE, seed=3, device=device
    )


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_configuration(name: str) -> None:
    table, classes = TABLES[name]
    config = rendered(name, classes=classes)
    assert {k: v for k, v in config.items() if table.get(k) != v} == {}
    assert set(config) == set(table)


@pytest.mark.parametrize(
    ("name", "steps", "milestones", "masks"),
    [
        ("coco_c4_1x", 90_000, (60_000, 80_000), True),
        ("coco_c4_2x", 180_000, (120_000, 160_000), True),
        ("coco_fpn_2x", 180_000, (120_000, 160_000), True),
    ],
)
def test_longer_schedules(name: str, steps: int, milestones: tuple[int, int], masks: bool) -> None:
    table = VOC_C4 if "c4" in name else COCO_FPN
    expected = table | {
        "MODEL.MASK_ON": masks,
        "INPUT.MIN_SIZE_TRAIN": COCO_FPN["INPUT.MIN_SIZE_TRAIN"],
        "MODEL.ROI_HEADS.NUM_CLASSES": 80,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": milestones,
        "SOLVER.WARMUP_ITERS": 1000,
    }
    assert rendered(name, classes=80) == expected


def test_norms_on_a_cpu_are_plain() -> None:
    for name, (table, classes) in TABLES.items():
        config = rendered(name, classes=classes, device="cpu")
        plain = {k: "BN" if v == "SyncBN" else v for k, v in table.items()}
        assert config == plain | {"MODEL.DEVICE": "cpu"}


def test_settings_follow_the_protocol() -> None:
    config = rendered(
        "voc07_det_c4", rois=16, rpn_samples=32, precise_bn=0, momentum=0.5, precision="fp16"
    )
    assert config["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] == 16
    assert config["MODEL.RPN.BATCH_SIZE_PER_IMAGE"] == 32
    assert config["TEST.PRECISE_BN.ENABLED"] is False
    assert config["SOLVER.MOMENTUM"] == 0.5 and config["SOLVER.AMP.ENABLED"] is True


def test_run_lengths_are_read_as_bitmasks() -> None:
    config = detectron.settings(
        PROTOCOLS["coco_fpn_1x"], R50, classes=80, candidate=CANDIDATE, seed=3, device="cuda",
        mask_format="bitmask",
    )  # fmt: skip
    assert config == COCO_FPN | {"INPUT.MASK_FORMAT": "bitmask"}


def test_run_lengths_reach_detectron2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mapper decodes COCO's string of an object, and reads no mask of a crowd."""
    for name in ("", ".data", ".data.samplers", ".structures"):
        monkeypatch.setitem(sys.modules, f"detectron2{name}", MagicMock())
    spec = importlib.util.find_spec("lewel_bench.evals.detection.detectron_data")
    assert spec is not None and spec.loader is not None
    detectron_data = importlib.util.module_from_spec(spec)  # a copy for this test alone
    spec.loader.exec_module(detectron_data)
    runs = {"size": [8, 10], "counts": [0, 80]}
    polygon = [0, 0, 9, 0, 9, 7]
    shapes_of = (({**runs, "counts": "0`2"}, 0), (runs, 0), (runs, 1), ([polygon], 0), ([], 0))
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}],
        "categories": [{"id": 5, "name": "kite"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 8], "area": 80,
             "iscrowd": crowd, "segmentation": shape}
            for i, (shape, crowd) in enumerate(shapes_of)
        ],
    }  # fmt: skip
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    scenes = read_coco(tmp_path, "val2017").with_masks()
    assert scenes.without_mask == 1
    record = detectron_data._record(scenes, scenes.scenes[0], True)
    text = {"size": [8, 10], "counts": "0`2"}
    masks = [annotation.get("segmentation") for annotation in record["annotations"]]
    assert masks == [text, text, None, [polygon]]
    pycocotools = pytest.importorskip("pycocotools.mask")
    assert pycocotools.decode(masks[0]).sum() == 80  # detectron2's call


@pytest.mark.parametrize(
    ("stem", "levels"),
    [
        ("imagenet", ["p2", "p3", "p4", "p5", "p6"]),
        ("small", ["p1", "p2", "p3", "p4", "p5"]),
        ("cifar", ["p0", "p1", "p2", "p3", "p4"]),
    ],
)
def test_small_backbones(stem: str, levels: list[str]) -> None:
    spec = Backbone.model_validate({"arch": "resnet18", "stem": stem, "width": 16})
    config = rendered("coco_fpn_1x", spec)
    assert config["MODEL.BACKBONE.NAME"] == "build_lewel_resnet_fpn_backbone"
    assert config["MODEL.RPN.IN_FEATURES"] == levels
    assert config["MODEL.ROI_HEADS.IN_FEATURES"] == levels[:4]
    assert config["MODEL.RESNETS.RES2_OUT_CHANNELS"] == 16
    assert config["MODEL.RESNETS.STEM"] == stem


# with detectron2


def small(name: str, **changes: Any) -> Detection:
    settings: dict[str, Any] = {
        "batch": 2,
        "steps": 3,
        "milestones": [2],
        "warmup": 1,
        "min_sizes": [64, 80],
        "test_size": 64,
        "max_size": 128,
        "anchors": [8, 16, 32, 48, 64],
        "rois": 8,
        "rpn_samples": 16,
        "pre_nms": [100, 50],
        "post_nms": [50, 10],
        "head_width": 16,
        "fc_width": 32,
        "precise_bn": 1,
    }
    protocol: Detection = change(PROTOCOLS[name], {**settings, **changes})
    return protocol


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {
        "train": 1, "val": 1, "voc2007_train": 6, "voc2007_val": 4, "voc2007_test": 4,
        "voc2012_train": 6, "voc2012_val": 4, "coco_train": 14, "coco_val": 4,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return shapes.make(folder, counts=shapes.Counts(**counts))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    header = {"arch": TINY.arch, "stem": TINY.stem, "width": str(TINY.width)}
    checkpoint.write_backbone(path, backbone.build(TINY).state_dict(), header)
    return path


def splits_of(data: Path, metric: str) -> DenseSplits[Scenes]:
    if metric == "coco":
        train, report = (read_coco(data / "coco", f"{s}2017") for s in ("train", "val"))
    else:
        sets = voc.splits(data / "VOCdevkit")
        train, report = (read_voc(data / "VOCdevkit", s) for s in sets)
    return DenseSplits(train.take(range(10)), train.take(range(10, 13)), report)


def ran(protocol: Detection, data: Path, file: Path, folder: Path, **others: Any) -> Outcome:
    settings: dict[str, Any] = {
        "candidate": CANDIDATE,
        "backbone": file,
        "splits": splits_of(data, protocol.metric),
        "seed": 1,
        "folder": folder,
        "machine": Machine(save_every_s=1e9),
        "report": silent,
        "stop": never,
    }
    return detectron.run(protocol, **{**settings, **others})


@needs_detectron2
@pytest.mark.parametrize("name", TABLES)
def test_detectron2_takes_the_configuration(name: str) -> None:
    from lewel_bench.evals.detection.detectron_model import config

    table, classes = TABLES[name]
    cfg = config(rendered(name, classes=classes), OUTPUT_DIR="there")
    for key, value in table.items():
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value, key
    assert cfg.OUTPUT_DIR == "there"


@needs_detectron2
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("voc07_det_c4", {}),
        ("coco_fpn_1x", {"steps": 9000, "milestones": (6000, 8000)}),
        ("coco_fpn_1x", {"steps": 300, "milestones": (200, 266), "warmup": 0}),
        ("coco_fpn_1x", {"steps": 7, "milestones": (5,), "warmup": 4, "warmup_factor": 0.1}),
        ("coco_fpn_1x", {"steps": 7, "milestones": (), "warmup": 7}),
    ],
)
def test_learning_rates_are_the_native_ones(name: str, changes: dict[str, Any]) -> None:
    from detectron2.solver import build_lr_scheduler

    from lewel_bench.evals.detection.detectron_model import config
    from lewel_bench.evals.detection.run import lr_factor

    protocol: Detection = change(PROTOCOLS[name], changes)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    schedule = build_lr_scheduler(config(rendered(name, **changes)), optimizer)
    for step in range(protocol.steps):
        rate = optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(0.02 * lr_factor(protocol, step), rel=1e-9), step
        optimizer.step()
        schedule.step()


@needs_detectron2
@pytest.mark.parametrize("model", ["c4", "fpn"])
@pytest.mark.parametrize(
    "spec",
    [
        TINY,
        Backbone(arch="resnet34", stem="cifar", width=8),
        Backbone(arch="resnet18"),
        Backbone(arch="resnet50", width=8),
        Backbone(arch="resnet50", stem="small", width=8),
        Backbone(arch="resnet50", width=8, stride="1x1"),
    ],
    ids=lambda s: f"{s.arch}-{s.stem}-{s.width}-{s.stride}",
)
def test_backbones_compute_what_ours_do(spec: Backbone, model: weights.Model) -> None:
    from detectron2.modeling import build_model

    from lewel_bench.evals.detection.detectron_model import config

    torch.manual_seed(0)
    net = backbone.build(spec).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    name = "coco_c4_1x" if model == "c4" else "coco_fpn_1x"
    theirs = build_model(config(rendered(name, spec, device="cpu"))).eval()
    given = weights.to_detectron2(net.state_dict(), spec, model)
    left = theirs.load_state_dict(given, strict=False)
    others = ("pixel", "proposal_generator", "roi_heads", "backbone.fpn")
    assert not left.unexpected_keys
    assert all(key.startswith(others) for key in left.missing_keys)
    assert not [k for k in left.missing_keys if ".res5." in k and ".res5.norm." not in k]
    back = weights.from_detectron2(theirs.state_dict(), spec, model)
    assert all(torch.equal(back[k], v) for k, v in net.state_dict().items())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        if model == "fpn":
            result = theirs.backbone.bottom_up(x)["res5"]
        else:
            result = theirs.roi_heads.res5[:-1](theirs.backbone(x)["res4"])
        assert torch.equal(result, net(x))


def _metrics_of(protocol: Detection, scenes: Scenes, path: Path) -> dict[str, Any]:
    from lewel_bench.evals.detection import metrics

    predictions = metrics.read_predictions(path)
    assert predictions
    if protocol.metric == "coco":
        return metrics.coco_ap(scenes, predictions, protocol.masks)
    return metrics.voc_ap(scenes, predictions, protocol.metric == "voc07")


@needs_detectron2
@pytest.mark.parametrize("name", ["voc07_det_c4", "coco_c4_1x", "coco_fpn_1x"])
def test_three_steps(name: str, data: Path, file: Path, tmp_path: Path) -> None:
    protocol, events = small(name), []
    outcome = ran(
        protocol, data, file, tmp_path, report=lambda event, **fields: events.append(event)
    )
    kinds = ("box", "mask") if protocol.masks else ("box",)
    assert set(outcome.metrics) == {f"{k}_{m}" for k in kinds for m in ("ap", "ap50", "ap75")}
    assert set(outcome.extra["select"]) == set(outcome.metrics)
    assert outcome.chosen == {"lr": 0.02, "weight_decay": 1e-4}
    assert events.count("evaluated") == 2 and "step" in events
    # the native metrics find the same numbers in the predictions that were written
    report = splits_of(data, protocol.metric).report
    again = _metrics_of(protocol, report, tmp_path / "predictions.json")
    for key, value in outcome.metrics.items():
        assert value == pytest.approx(again[key], abs=1e-6, nan_ok=True), key
    assert "STEM: small" in (tmp_path / "config.yaml").read_text()
    assert (tmp_path / "detectron2.log").stat().st_size > 1000


class Killed(BaseException):
    """Stands for kill -9."""


@needs_detectron2
def test_killed_and_resumed_is_undisturbed(data: Path, file: Path, tmp_path: Path) -> None:
    protocol = small("coco_fpn_1x", steps=4, milestones=[3], prune=0.5)
    whole = ran(protocol, data, file, tmp_path / "whole")
    assert whole.extra["half"]["step"] == 2
    for place in ("step", "evaluated"):
        seen = []

        def killer(event: str, /, place: str = place, seen: Any = seen, **fields: Any) -> None:
            seen.append((event, fields.get("step")))
            if event == place and (event == "evaluated" or fields["step"] == 3):
                raise Killed

        # a save after each step, and a log
        always = Machine(save_every_s=0.0)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr("lewel_bench.pretrain.pacer.LOG_EVERY_S", 0.0)
            ran(protocol, data, file, tmp_path / place, machine=always, report=killer)
        events: list[str] = []
        again = ran(
            protocol,
            data,
            file,
            tmp_path / place,
            report=lambda event, events=events, **_: events.append(event),
        )
        assert "resumed" in events
        assert repr(again) == repr(whole)
        names = [tmp_path / n / "predictions.json" for n in ("whole", place)]
        assert names[0].read_bytes() == names[1].read_bytes()


@needs_detectron2
def test_stopped_saves_and_goes_on(data: Path, file: Path, tmp_path: Path) -> None:
    protocol = small("coco_fpn_1x")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="at step 1 of 3"):
        patch.setattr(Clock, "seconds", lambda self: 1000.0)
        ran(protocol, data, file, tmp_path, stop=lambda: True)
    assert checkpoint.newest(tmp_path) is not None
    clock = Clock()
    assert ran(protocol, data, file, tmp_path, report=clock.follow(silent)).metrics
    assert clock.seconds() > 1000


@needs_detectron2
def test_stopped_within_the_look_half_way_keeps_its_steps(
    data: Path, file: Path, tmp_path: Path
) -> None:
    protocol = small("coco_fpn_1x", steps=4, milestones=[3], prune=0.5)
    asked = iter([False] * 2 + [True] * 9)  # after two steps, then before an image
    with pytest.raises(Stopped, match="saved before the evaluation"):
        ran(protocol, data, file, tmp_path / "stopped", stop=lambda: next(asked))
    saved = checkpoint.load(tmp_path / "stopped", silent)
    assert saved is not None and saved["step"] == 2
    whole = ran(protocol, data, file, tmp_path / "whole")
    assert repr(ran(protocol, data, file, tmp_path / "stopped")) == repr(whole)
    assert whole.extra["half"]["step"] == 2


@needs_detectron2
def test_a_diverging_candidate_says_so(data: Path, file: Path, tmp_path: Path) -> None:
    protocol = small("coco_fpn_1x", steps=6, milestones=[5])
    outcome = ran(protocol, data, file, tmp_path, candidate=(1e20, 1e-4))
    assert outcome.metrics == {} and outcome.extra["select"] == {}
    step = outcome.extra["diverged_at_step"]
    assert f"diverged at step {step} of 6 at lr 1e+20" in outcome.warnings[0]


@needs_detectron2
def test_a_clear_loser_is_stopped(data: Path, file: Path, tmp_path: Path) -> None:
    protocol = small("coco_fpn_1x", steps=4, milestones=[3], prune=0.5)
    for _ in range(2):  # the second begins half-way
        outcome = ran(protocol, data, file, tmp_path, rivals=(90.0,))
        assert outcome.metrics == {}
        assert "below 0.5 of the best candidate's 90.00" in outcome.extra["pruned"]
        assert outcome.extra["half"]["step"] == 2


@needs_detectron2
def test_weights_of_another_architecture(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    header = {"arch": "resnet18", "stem": "imagenet", "width": "8"}
    checkpoint.write_backbone(path, backbone.build(TINY).state_dict(), header)
    with pytest.raises(ValueError, match="3x3 stem of width 8, not of a resnet18 with a 7x7"):
        ran(small("coco_fpn_1x"), data, path, tmp_path)


@needs_detectron2
def test_batches_do_not_depend_on_workers_or_on_where_they_start(data: Path) -> None:
    from lewel_bench.evals.detection import detectron_data
    from lewel_bench.evals.detection.detectron_model import config

    protocol = small("voc07_det_c4")
    scenes = splits_of(data, "voc07").train
    values = detectron.settings(
        protocol, TINY, classes=12, candidate=CANDIDATE, seed=3, device="cpu"
    )
    detectron_data.register("there", scenes, "voc07", data)
    results = []
    for workers, start in ((0, 0), (0, 3), (2, 3)):
        cfg = config(values, DATASETS__TRAIN=("there",), DATALOADER__NUM_WORKERS=workers)
        batches = detectron_data.Batches(cfg, "there")
        batches.start = start
        endless = iter(batches)
        results.append([next(endless) for _ in range(9 - start)])
        endless.close()
    detectron_data.forget("there")
    for others in results[1:]:
        for a, b in zip(results[0][3:], others, strict=True):
            assert [x["image_id"] for x in a] == [x["image_id"] for x in b]
            assert all(torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))
            assert len({x["width"] > x["height"] for x in a}) == 1


@needs_detectron2
def test_records_are_those_that_detectron2_reads(data: Path) -> None:
    from detectron2.data.datasets import load_coco_json, load_voc_instances

    from lewel_bench.evals.detection.detectron_data import _record

    coco = read_coco(data / "coco", "train2017")
    file = data / "coco" / "annotations" / "instances_train2017.json"
    theirs = load_coco_json(str(file), str(data / "coco" / "train2017"), "shapes-of-test")
    crowds = 0
    for scene, their in zip(coco.scenes, theirs, strict=True):
        mine = _record(coco, scene, True)
        for entry, other in zip(mine["annotations"], their["annotations"], strict=True):
            if entry["iscrowd"]:  # dropped in training, so its mask is not carried along
                crowds += 1
                del other["segmentation"]
        assert mine == their
    assert crowds
    voc = read_voc(data / "VOCdevkit", [(2007, "trainval")])
    place = str(data / "VOCdevkit" / "VOC2007")
    theirs = load_voc_instances(place, "trainval", voc.classes)
    for scene, their in zip(voc.scenes, theirs, strict=True):
        mine = _record(voc, scene, False)
        for entry in mine["annotations"]:
            assert entry.pop("iscrowd") == 0
        assert mine | {"image_id": their["image_id"]} == their


def test_an_empty_split(data: Path, file: Path, tmp_path: Path) -> None:
    whole = splits_of(data, "coco")
    for splits in (
        DenseSplits(whole.train, None, whole.report.take([])),
        DenseSplits(whole.train.take([]), None, whole.report),
    ):
        with pytest.raises(ValueError, match="split has no images"):
            ran(small("coco_fpn_1x"), data, file, tmp_path, splits=splits)


def test_a_split_on_which_nothing_counts(data: Path, file: Path, tmp_path: Path) -> None:
    whole = splits_of(data, "coco")
    scenes = [replace(s, objects=_crowds(s.objects)) for s in whole.report.scenes]
    splits = replace(whole, report=replace(whole.report, scenes=tuple(scenes)))
    with pytest.raises(ValueError, match=r"nothing can be measured on the 4 images of the report"):
        ran(small("coco_fpn_1x"), data, file, tmp_path, splits=splits)


def _crowds(o: Objects) -> Objects:
    return replace(o, crowd=np.ones_like(o.crowd))


@needs_detectron2
def test_without_a_split_to_select_on(data: Path, file: Path, tmp_path: Path) -> None:
    whole = splits_of(data, "coco")
    splits = DenseSplits(whole.train, None, whole.report)
    result = ran(small("coco_fpn_1x", steps=1, milestones=()), data, file, tmp_path, splits=splits)
    assert result.extra["select"] == {} and set(result.metrics) >= {"box_ap", "mask_ap"}


def evaluated(
    protocol: Detection, scenes: Scenes, folder: Path, guess: Callable[[Scene], Any]
) -> dict[str, float]:
    """What detectron2's evaluator finds for the instances that `guess` sees in a scene."""
    from lewel_bench.evals.detection import detectron_data, detectron_eval

    detectron_data.register("guesses", scenes, protocol.metric, folder)
    detectron_data.write_truth(scenes, protocol.metric, folder)
    evaluator = detectron_eval._Evaluator("guesses", protocol, folder / "predictions.json")
    evaluator.reset()
    for scene in scenes.scenes:
        evaluator.process([{"image_id": scene.id}], [{"instances": guess(scene)}])
    metrics, _ = evaluator.evaluate()
    detectron_data.forget("guesses")
    return metrics


def instances(scene: Scene, boxes: Any, labels: Any) -> Any:
    """Of falling scores; a mask fills its box."""
    from detectron2.structures import Boxes, Instances

    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    y, x = np.mgrid[: scene.height, : scene.width]
    left, top, right, bottom = boxes.T[:, :, None, None]
    return Instances(
        (scene.height, scene.width),
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        pred_classes=torch.tensor(labels, dtype=torch.int64),
        scores=torch.linspace(0.9, 0.5, len(boxes)),
        pred_masks=torch.from_numpy((x >= left) & (x < right) & (y >= top) & (y < bottom)),
    )


@needs_detectron2
@pytest.mark.parametrize(
    ("name", "metric"),
    [("voc07_det_c4", "voc07"), ("voc07_det_c4", "voc12"), ("coco_fpn_1x", "coco")],
)
def test_guesses_are_measured_as_natively(
    name: str, metric: str, data: Path, tmp_path: Path
) -> None:
    protocol = small(name, metric=metric)
    scenes = splits_of(data, metric).report.take([0])
    labels = scenes.scenes[0].objects.labels.tolist()
    absent = (set(range(len(scenes.classes))) - set(labels)).pop()

    def guess(scene: Scene) -> Any:
        """Near each object, and once more as a class of which there is none."""
        boxes = scene.objects.boxes + 1
        return instances(scene, [*boxes, *boxes], [*labels, *([absent] * len(labels))])

    metrics = evaluated(protocol, scenes, tmp_path, guess)
    actual = _metrics_of(protocol, scenes, tmp_path / "predictions.json")
    assert metrics == pytest.approx({key: actual[key] for key in metrics}, abs=1e-9)
    assert len(metrics) == 3 + 3 * protocol.masks
    assert all(0 < metrics[key] < 100 for key in metrics if key.endswith("_ap50"))


@needs_detectron2
@pytest.mark.parametrize("name", ["voc07_det_c4", "coco_fpn_1x"])
@pytest.mark.parametrize("truth", [True, False])
def test_no_predictions(name: str, truth: bool, data: Path, tmp_path: Path) -> None:
    protocol = small(name)
    scenes = splits_of(data, protocol.metric).report
    if not truth:
        bare = [replace(s, objects=_no_objects(s.objects)) for s in scenes.scenes]
        scenes = replace(scenes, scenes=tuple(bare))
    metrics = evaluated(protocol, scenes, tmp_path, lambda scene: instances(scene, [], []))
    assert len(metrics) == 3 + 3 * protocol.masks
    assert all(v == 0 if truth else math.isnan(v) for v in metrics.values())
    assert (tmp_path / "predictions.json").read_text() == "[]\n"


def _no_objects(o: Objects) -> Objects:
    kept = {name: getattr(o, name)[:0] for name in o.__dataclass_fields__}
    return Objects(**kept)


# another interpreter


@needs_detectron2
def test_another_interpreter_gives_the_same(data: Path, file: Path, tmp_path: Path) -> None:
    protocol, events = small("coco_fpn_1x"), []
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    here = ran(protocol, data, file, tmp_path / "here")
    expected = ran(
        protocol,
        data,
        file,
        tmp_path / "there",
        python=str(other),
        report=lambda event, **fields: events.append(event),
    )
    assert repr(expected) == repr(here)
    assert events.count("evaluated") == 2
    left = {path.name for path in (tmp_path / "there").iterdir()}
    assert other_interpreter.SPEC not in left and other_interpreter.SPLITS not in left


def test_without_detectron2_it_says_what_to_do(
    data: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"version": None, "file": None, "error": "ModuleNotFoundError: …"}
    facts = {
        "executable": sys.executable,
        "python": "3.11.0",
        "modules": {"detectron2": missing | {"missing": "detectron2"}},
        "owners": {},
        "homes": {},
        "pair": {"wants": None, "error": None},
    }
    monkeypatch.setattr(engines, "_ask", lambda *_: facts)
    module = "lewel_bench.evals.detection.detectron_train"
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(detection, "detectron_train", raising=False)
    with pytest.raises(ValueError, match=r"detectron2 is not installed\. Install detectron2 at"):
        ran(small("coco_fpn_1x"), data, file, tmp_path)


def test_mixed_precision_needs_cuda(data: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision fp16: detectron2 has mixed precision on CUDA"):
        ran(small("coco_fpn_1x", precision="fp16"), data, file, tmp_path)
