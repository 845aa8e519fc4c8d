"""The `detectron2` engine: a detection protocol as a configuration of detectron2, and its run.

detectron2's modules, trainer and evaluators do the work. Beside it stand the norm after res5 that
MoCo's fine-tuning adds, and stems that it does not have. What imports it is in `detectron_*.py`;
here is what can be known without it. Values that are nobody's choice in `Detection` are those of
MoCo's configurations (C4; facebookresearch/moco @7397dfe, detection/configs) and of InfoMin's (FPN,
as LEWEL's det_configs @4ee47eb), or detectron2's defaults.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from lewel_bench.evals import engines, other_interpreter
from lewel_bench.evals.detection.annotated_images import Scenes
from lewel_bench.evals.normalisation import STD, mean_of
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.distributed import Machine, share, world
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.pretrain.report import Report, Stop

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection


def settings(
    protocol: "Detection",
    spec: Backbone,
    *,
    classes: int,
    candidate: tuple[float, float],
    seed: int,
    device: str,
    mask_format: Literal["polygon", "bitmask"] = "polygon",
) -> dict[str, Any]:
    """detectron2's configuration by dotted keys: everything that the number depends on.

    `candidate` is (lr, weight decay); `mask_format` bitmask also takes run lengths. Only the stem's
    key is not detectron2's own.
    """
    # synchronised norms need CUDA; in one process they are plain ones
    norm = "BN" if device == "cpu" else "SyncBN"
    model = _c4(protocol, spec) if protocol.model == "c4" else _fpn(protocol, spec, norm)
    return {
        **_backbone(spec, norm),
        **_regions(protocol, classes),
        **_input(protocol),
        "INPUT.MASK_FORMAT": mask_format,
        **_solver(protocol, candidate),
        **model,
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.WEIGHTS": "",  # the backbone is loaded key by key, so that none is left out
        "MODEL.MASK_ON": protocol.masks,
        "MODEL.DEVICE": device,
        "TEST.DETECTIONS_PER_IMAGE": 100,
        "TEST.EVAL_PERIOD": 0,
        "TEST.PRECISE_BN.ENABLED": protocol.precise_bn > 0,
        "TEST.PRECISE_BN.NUM_ITER": protocol.precise_bn or 200,
        "SEED": seed,
    }


def _backbone(spec: Backbone, norm: str) -> dict[str, Any]:
    return {
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": spec.depth,
        "MODEL.RESNETS.STEM": spec.stem,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": spec.width,
        "MODEL.RESNETS.WIDTH_PER_GROUP": spec.width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": spec.width * spec.expansion,
        "MODEL.RESNETS.NORM": norm,
        "MODEL.RESNETS.STRIDE_IN_1X1": spec.stride == "1x1",
        "MODEL.PIXEL_MEAN": list(mean_of(spec)),
        "MODEL.PIXEL_STD": list(STD),
    }


def _c4(protocol: "Detection", spec: Backbone) -> dict[str, Any]:
    own = stock(spec)
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone" if own else "build_lewel_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res4"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(protocol.anchors)],
        "MODEL.RPN.IN_FEATURES": ["res4"],
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
        "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
        "MODEL.ROI_MASK_HEAD.NORM": "",
    }


def _fpn(protocol: "Detection", spec: Backbone, norm: str) -> dict[str, Any]:
    own = stock(spec)
    finest = spec.stem_stride.bit_length() - 1  # detectron2 names a level by log2 of stride
    levels = [f"p{finest + i}" for i in range(5)]
    return {
        "MODEL.BACKBONE.NAME": f"build_{'' if own else 'lewel_'}resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": protocol.head_width,
        "MODEL.FPN.NORM": norm,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[side] for side in protocol.anchors],
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": levels[:4],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": protocol.head_width,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": protocol.fc_width,
        "MODEL.ROI_BOX_HEAD.NORM": norm,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.ROI_MASK_HEAD.NORM": norm,
    }


def _regions(protocol: "Detection", classes: int) -> dict[str, Any]:
    """What C4 and FPN share from the anchors to the masks."""
    return {
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": protocol.rpn_samples,
        "MODEL.RPN.POSITIVE_FRACTION": 0.5,
        "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
        "MODEL.RPN.NMS_THRESH": 0.7,
        "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": protocol.pre_nms[0],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": protocol.pre_nms[1],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": protocol.post_nms[0],
        "MODEL.RPN.POST_NMS_TOPK_TEST": protocol.post_nms[1],
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": protocol.rois,
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.CONV_DIM": protocol.head_width,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    }


def _input(protocol: "Detection") -> dict[str, Any]:
    return {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TRAIN": tuple(protocol.min_sizes),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
        "INPUT.MAX_SIZE_TRAIN": protocol.max_size,
        "INPUT.MIN_SIZE_TEST": protocol.test_size,
        "INPUT.MAX_SIZE_TEST": protocol.max_size,
        "INPUT.RANDOM_FLIP": "horizontal",
        "DATALOADER.ASPECT_RATIO_GROUPING": True,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    }


def _solver(protocol: "Detection", candidate: tuple[float, float]) -> dict[str, Any]:
    return {
        "SOLVER.IMS_PER_BATCH": protocol.batch,
        "SOLVER.BASE_LR": candidate[0],
        "SOLVER.WEIGHT_DECAY": candidate[1],
        "SOLVER.WEIGHT_DECAY_NORM": 0.0,
        "SOLVER.MOMENTUM": protocol.momentum,
        "SOLVER.MAX_ITER": protocol.steps,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER.STEPS": tuple(protocol.milestones),
        "SOLVER.GAMMA": 0.1,
        "SOLVER.WARMUP_ITERS": protocol.warmup,
        "SOLVER.WARMUP_FACTOR": protocol.warmup_factor,
        "SOLVER.WARMUP_METHOD": "linear",
        "SOLVER.AMP.ENABLED": protocol.precision != "fp32",
    }


def stock(spec: Backbone) -> bool:
    """Whether detectron2 builds this backbone itself: it has one stem, and one width of basic
    blocks."""
    return spec.stem == "imagenet" and (spec.expansion > 1 or spec.width == 64)


def run(
    protocol: "Detection",
    *,
    candidate: tuple[float, float],
    backbone: Path,
    splits: DenseSplits[Scenes],
    seed: int,
    folder: Path,
    machine: Machine,
    report: Report,
    stop: Stop,
    rivals: Sequence[float] = (),
    python: str | None = None,
) -> Outcome:
    """Fine-tune at `candidate` = (lr, weight decay) with detectron2; as `finetune.run`.

    `python` is the interpreter that has detectron2, where that is not this one. The folder then
    holds `config.yaml` and `detectron2.log` too. Raises ValueError where the engine does not work
    or the machine is not one for it, Stopped after saving.
    """
    splits.check()
    _check(protocol, machine)
    arguments: dict[str, Any] = {
        "candidate": candidate,
        "backbone": backbone,
        "splits": splits,
        "seed": seed,
        "folder": folder,
        "machine": machine,
        "rivals": tuple(rivals),
    }
    if python is not None and Path(python) != Path(sys.executable):
        return other_interpreter.run(python, __name__, protocol, arguments, report, stop)
    detectron_train = _engine()
    _, spec = checkpoint.read_network(backbone)
    values = settings(
        protocol,
        spec,
        classes=len(splits.train.classes),
        candidate=candidate,
        seed=seed,
        device=machine.device.type,
        mask_format="bitmask" if splits.train.has_run_lengths() else "polygon",
    )
    outcome: Outcome = detectron_train.run(
        protocol, values, spec, report=report, stop=stop, **arguments
    )
    return outcome


def _engine() -> ModuleType:
    """The module that runs detectron2. Raises ValueError saying why it does not work here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses what torch deprecates
            from lewel_bench.evals.detection import detectron_train
    except Exception:  # an installation can be broken in many ways; the engine's check names them
        engines.require("detectron2", {})
        raise
    return detectron_train


def _check(protocol: "Detection", machine: Machine) -> None:
    processes, cpu = world(), machine.device.type == "cpu"
    if cpu and processes > 1:
        raise ValueError(
            f"{processes} processes on a CPU: detectron2's synchronised batch norm needs CUDA "
            "devices; use one process"
        )
    if cpu and protocol.precision != "fp32":
        raise ValueError(
            f"precision {protocol.precision}: detectron2 has mixed precision on CUDA only; use fp32"
        )
    share(protocol.batch)


if __name__ == "__main__":
    sys.exit(other_interpreter.serve(run))
