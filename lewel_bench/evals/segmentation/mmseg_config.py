"""A protocol as an mmseg configuration: plain dicts, made without mmseg.

What the configuration names beyond mmseg's own parts (LewelBench...) is registered by mmseg_parts.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench.evals.normalisation import STD, mean_of
from lewel_bench.pretrain.recipe import Backbone

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Segmentation

Config = dict[str, Any]


def training(
    protocol: "Segmentation",
    candidate: tuple[float, float],
    spec: Backbone,
    classes: tuple[str, ...],
    *,
    lists: dict[str, Path],
    weights: Path,
    folder: Path,
    seed: int,
    workers: int = 0,
    world: int = 1,
    cuda: bool = False,
) -> Config:
    """What mmengine's Runner trains at `candidate` = (lr, weight decay).

    `lists` has the file of each split's images, `weights` the backbone by mmseg's names. On a CPU
    batch norm is not synchronised, as mmcv's works on CUDA alone.
    """
    lr, decay = candidate
    amp = protocol.precision != "fp32"
    dtype = {"fp16": "float16", "bf16": "bfloat16"}.get(protocol.precision)
    return {
        "default_scope": "mmseg",
        "work_dir": str(folder),
        "randomness": {"seed": seed},
        "log_level": "ERROR",
        "log_processor": {"by_epoch": False},
        "env_cfg": {
            "cudnn_benchmark": True,
            "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            "dist_cfg": {"backend": "nccl" if cuda else "gloo"},
        },
        "launcher": "pytorch" if world > 1 else "none",
        "model": model(protocol, spec, len(classes), weights=weights, cuda=cuda),
        "train_dataloader": {
            "batch_size": protocol.batch // world,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": _dataset(lists["train"], classes, _training_pipeline(protocol)),
        },
        "optim_wrapper": {
            "type": "AmpOptimWrapper" if amp else "OptimWrapper",
            "optimizer": {
                "type": "SGD",
                "lr": lr,
                "momentum": protocol.momentum,
                "weight_decay": decay,
            },
            "clip_grad": None,
            **({"dtype": dtype} if amp else {}),
        },
        "param_scheduler": [
            {
                "type": "PolyLR",
                "eta_min": protocol.min_lr,
                "power": protocol.power,
                "begin": 0,
                "end": protocol.steps,
                "by_epoch": False,
            }
        ],
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": protocol.steps,
            "val_interval": protocol.steps + 1,
        },
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "sampler_seed": {"type": "DistSamplerSeedHook"},
            "checkpoint": None,  # LewelBenchWatch saves
        },
    }


def testing(
    config: Config,
    protocol: "Segmentation",
    classes: tuple[str, ...],
    *,
    pictures: Path,
    checkpoint: Path,
    masks: Path | None = None,
    workers: int = 0,
) -> Config:
    """What a Runner measures a `checkpoint` with, whole images at the protocol's scale.

    The predicted labels are written to the folder `masks`.
    """
    kept = ("default_scope", "work_dir", "randomness", "log_level", "log_processor", "env_cfg")
    return {
        **{key: config[key] for key in (*kept, "launcher", "model")},
        "load_from": str(checkpoint),
        "default_hooks": {**config["default_hooks"], "param_scheduler": None},
        "test_dataloader": {
            "batch_size": 1,
            "num_workers": workers,
            "persistent_workers": False,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": _dataset(pictures, classes, _test_pipeline(protocol)),
        },
        "test_evaluator": {
            "type": "LewelBenchIoU",
            "iou_metrics": ["mIoU"],
            "pictures": str(pictures),
            "folder": None if masks is None else str(masks),
        },
        "test_cfg": {"type": "TestLoop"},
    }


def model(
    protocol: "Segmentation",
    spec: Backbone,
    classes: int,
    *,
    weights: Path | None = None,
    cuda: bool = False,
) -> Config:
    """mmseg's fcn_r50-d8 with a plain ResNet of `spec`, started from `weights` if given."""
    norm = {"type": "SyncBN" if cuda else "BN", "requires_grad": True}
    top = 8 * spec.width * spec.expansion
    backbone = {
        "type": "ResNet" if spec.stem == "imagenet" else "LewelBenchResNet",
        "depth": spec.depth,
        "stem_channels": spec.width,
        "base_channels": spec.width,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "dilations": (1, 1, 2, 4),
        "strides": (1, 2, 1, 1),
        "norm_cfg": norm,
        "norm_eval": False,
        "style": "caffe" if spec.stride == "1x1" else "pytorch",
        "contract_dilation": True,
    }
    if spec.stem != "imagenet":
        backbone["stem"] = spec.stem
    if weights is not None:
        backbone["init_cfg"] = {
            "type": "Pretrained",
            "checkpoint": str(weights),
            "prefix": "backbone.",
        }
    head = {
        "type": "FCNHead",
        "dropout_ratio": protocol.dropout,
        "num_classes": classes,
        "norm_cfg": norm,
        "align_corners": False,
    }
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": list(mean_of(spec)),
            "std": list(STD),
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": 255,
            "size": (protocol.crop, protocol.crop),
        },
        "backbone": backbone,
        "decode_head": {
            **head,
            "in_channels": top,
            "in_index": 3,
            "channels": protocol.head_width,
            "num_convs": 2,
            "concat_input": True,
            "loss_decode": _loss(1.0),
        },
        "auxiliary_head": {
            **head,
            "in_channels": top // 2,
            "in_index": 2,
            "channels": protocol.aux_width,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": _loss(protocol.aux_weight),
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }


def _loss(weight: float) -> Config:
    return {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}


def _dataset(pictures: Path, classes: tuple[str, ...], pipeline: list[Config]) -> Config:
    return {
        "type": "LewelBenchImages",
        "ann_file": str(pictures),
        "metainfo": {"classes": classes},
        "pipeline": pipeline,
    }


def _training_pipeline(protocol: "Segmentation") -> list[Config]:
    side = (protocol.crop, protocol.crop)
    return [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {
            "type": "RandomResize",
            "scale": protocol.scale,
            "ratio_range": protocol.ratios,
            "keep_ratio": True,
        },
        {"type": "RandomCrop", "crop_size": side, "cat_max_ratio": protocol.max_class_share},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "Pad", "size": side},
        {"type": "PackSegInputs"},
    ]


def _test_pipeline(protocol: "Segmentation") -> list[Config]:
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": protocol.scale, "keep_ratio": True},
        {"type": "LoadAnnotations"},  # after Resize: the truth keeps its size
        {"type": "PackSegInputs"},
    ]
