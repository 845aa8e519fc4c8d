"""detectron2's detectors on the cases of `detection_cases.py`, and the conversion of its names.

It is imported from where it is installed (at COMMIT), in functions alone.
"""

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
import torchvision
from detection_cases import (
    CLASSES,
    Case,
    Random,
    Trace,
    detached,
    fill,
    images,
    originals,
    permuted,
    targets,
)
from torch import Tensor, nn

from lewel_bench.evals.normalisation import MEAN, STD

COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
LAYERS = {"resnet18": 18, "resnet50": 50}


def name(model: str, theirs: str) -> str:
    """Our name of a tensor that detectron2 calls `theirs`; ValueError for an unknown one."""
    for pattern, own in RULES:
        if re.match(pattern, theirs):
            actual = re.sub(pattern, own, theirs) if isinstance(own, str) else own(model, theirs)
            return re.sub(r"\.conv(\d)\.norm\.", r".bn\1.", actual)
    raise ValueError(f"detectron2 has no name {theirs!r} that we know")


def _numbered(start: str, step: int, model: str, theirs: str) -> str:
    """Conv k of a head and its norm, by their positions in our Sequential."""
    match = re.match(r".*?(\d)\.(norm\.)?(\w+)$", theirs)
    assert match
    place = step * (int(match[1]) - 1) + bool(match[2])
    return f"{start}.{place}.{match[3]}"


def _fpn(model: str, theirs: str) -> str:
    match = re.match(r"backbone\.fpn_(\w+?)(\d)\.(norm\.)?(\w+)$", theirs)
    assert match
    return f"fpn.{match[1]}.{int(match[2]) - 2}.{int(bool(match[3]))}.{match[4]}"


def _mask(place: int, model: str, theirs: str) -> str:
    return f"mask.{place + (0 if model == 'c4' else 12)}.{theirs.rsplit('.')[-1]}"


_NET = r"^backbone\.(?:bottom_up\.)?"
RULES: list[tuple[str, Any]] = [
    (_NET + r"stem\.conv1\.norm\.", "backbone.bn1."),
    (_NET + r"stem\.", "backbone."),
    *((_NET + rf"res{i}\.(\d+)\.shortcut\.norm\.", rf"backbone.layer{i - 1}.\1.downsample.1.")
      for i in range(2, 6)),
    *((_NET + rf"res{i}\.(\d+)\.shortcut\.", rf"backbone.layer{i - 1}.\1.downsample.0.")
      for i in range(2, 6)),
    *((_NET + rf"res{i}\.", f"backbone.layer{i - 1}.") for i in range(2, 6)),
    (r"^roi_heads\.res5\.norm\.", "res5_norm."),
    (r"^roi_heads\.res5\.(\d+)\.shortcut\.norm\.", r"backbone.layer4.\1.downsample.1."),
    (r"^roi_heads\.res5\.(\d+)\.shortcut\.", r"backbone.layer4.\1.downsample.0."),
    (r"^roi_heads\.res5\.", "backbone.layer4."),
    (r"^backbone\.fpn_", _fpn),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.conv."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.objectness."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.deltas."),
    (r"^roi_heads\.box_head\.conv", partial(_numbered, "box.head", 3)),
    (r"^roi_heads\.box_head\.fc1\.", "box.head.13."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "box.score."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "box.deltas."),
    (r"^roi_heads\.mask_head\.mask_fcn", partial(_numbered, "mask", 3)),
    (r"^roi_heads\.mask_head\.deconv\.", partial(_mask, 0)),
    (r"^roi_heads\.mask_head\.predictor\.", partial(_mask, 2)),
]  # fmt: skip


def official(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """detectron2's detector with weights by formula."""
    from detectron2.modeling import build_model

    _register_extra_norm()
    model = build_model(_config(case))
    fill(model, partial(name, case.protocol.model))
    return model.to(dtype)


def _config(case: Case) -> Any:
    """detectron2's defaults and MoCo's and InfoMin's changes to them, with the case's numbers."""
    from detectron2.config import get_cfg

    cfg, p, net = get_cfg(), case.protocol, case.spec
    m = cfg.MODEL
    m.DEVICE, m.MASK_ON, m.WEIGHTS, cfg.INPUT.FORMAT = "cpu", p.masks, "", "RGB"
    m.PIXEL_MEAN, m.PIXEL_STD, m.BACKBONE.FREEZE_AT = list(MEAN), list(STD), 0
    m.RESNETS.DEPTH, m.RESNETS.NORM = LAYERS[net.arch], "BN"
    m.RESNETS.STRIDE_IN_1X1 = False
    m.RESNETS.STEM_OUT_CHANNELS = m.RESNETS.WIDTH_PER_GROUP = net.width
    m.RESNETS.RES2_OUT_CHANNELS = net.width * (4 if net.arch == "resnet50" else 1)
    m.RPN.PRE_NMS_TOPK_TRAIN, m.RPN.PRE_NMS_TOPK_TEST = p.pre_nms
    m.RPN.POST_NMS_TOPK_TRAIN, m.RPN.POST_NMS_TOPK_TEST = p.post_nms
    m.RPN.BATCH_SIZE_PER_IMAGE, m.ROI_HEADS.BATCH_SIZE_PER_IMAGE = p.rpn_samples, p.rois
    m.ROI_HEADS.NUM_CLASSES = CLASSES
    m.ROI_MASK_HEAD.CONV_DIM = m.ROI_BOX_HEAD.CONV_DIM = m.FPN.OUT_CHANNELS = p.head_width
    m.ROI_BOX_HEAD.FC_DIM = p.fc_width
    if p.model == "c4":
        m.ROI_HEADS.NAME, m.ANCHOR_GENERATOR.SIZES = "Res5ROIHeadsExtraNorm", [list(p.anchors)]
        return cfg
    stages = ["res2", "res3", "res4", "res5"]
    m.BACKBONE.NAME, m.RESNETS.OUT_FEATURES = "build_resnet_fpn_backbone", stages
    m.FPN.IN_FEATURES, m.ANCHOR_GENERATOR.SIZES = stages, [[size] for size in p.anchors]
    m.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    m.ROI_HEADS.IN_FEATURES, m.ROI_HEADS.NAME = ["p2", "p3", "p4", "p5"], "StandardROIHeads"
    m.ROI_BOX_HEAD.NAME, m.ROI_BOX_HEAD.POOLER_RESOLUTION = "FastRCNNConvFCHead", 7
    m.ROI_BOX_HEAD.NUM_CONV, m.ROI_BOX_HEAD.NUM_FC, m.ROI_MASK_HEAD.NUM_CONV = 4, 1, 4
    m.FPN.NORM = m.ROI_BOX_HEAD.NORM = m.ROI_MASK_HEAD.NORM = "BN"
    return cfg


def _register_extra_norm() -> None:
    """MoCo's head: a norm over the output of res5 (facebookresearch/moco, detection/train_net)."""
    from detectron2.layers import get_norm
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads

    if "Res5ROIHeadsExtraNorm" in ROI_HEADS_REGISTRY:
        return

    class Res5ROIHeadsExtraNorm(Res5ROIHeads):
        @classmethod
        def _build_res5_block(cls, cfg: Any) -> Any:
            res5, channels = super()._build_res5_block(cfg)
            res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
            return res5, channels

    ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)


def official_inputs(case: Case) -> list[dict[str, Any]]:
    from detectron2.structures import Boxes, Instances, PolygonMasks

    made = []
    for x, target, (h, w) in zip(images(case), targets(case), originals(case), strict=True):
        truth = Instances(tuple(x.shape[-2:]))
        truth.gt_boxes, truth.gt_classes = Boxes(target.boxes), target.labels
        if case.protocol.masks:
            truth.gt_masks = PolygonMasks([list(of) for of in target.polygons])
        made.append({"image": x, "instances": truth, "height": h, "width": w})
    return made


def run_official(case: Case, model: nn.Module, random: Random | None = None) -> Trace:
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.utils.events import EventStorage

    of, inputs = case.protocol.model, official_inputs(case)
    model.train()
    with (random or permuted)(), EventStorage(0):
        losses = model(inputs)
    sum(losses.values()).backward()
    gradient = {name(of, k): p.grad for k, p in model.named_parameters() if p.grad is not None}
    model.eval()
    results = []
    with torch.no_grad():
        raw = model.inference(inputs, do_postprocess=False)
    for seen, x in zip(raw, inputs, strict=True):
        if case.protocol.masks:
            seen.mask_probs = seen.pred_masks[:, 0].clone()
        done = detector_postprocess(seen, x["height"], x["width"])
        fields = done.get_fields()
        results.append(
            {
                "boxes": done.pred_boxes.tensor,
                "scores": done.scores,
                "labels": done.pred_classes,
                "masks": fields.get("pred_masks"),
                "mask_probs": fields.get("mask_probs"),
            }
        )
    buffers = {name(of, k): b for k, b in model.named_buffers() if "running" in k}
    return Trace(detached(losses), gradient, buffers, results)


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Lets detectron2 run in double precision: two functions want one precision of all arguments.

    Its boxes stay in single precision, as ours do.
    """
    import detectron2.modeling  # noqa: F401 (compiles functions that must not be the patched ones)

    nms, loss = torchvision.ops.boxes.batched_nms, nn.functional.binary_cross_entropy_with_logits

    def same_nms(boxes: Tensor, scores: Tensor, *rest: Any) -> Tensor:
        return nms(boxes, scores.float(), *rest)

    def same_loss(logits: Tensor, target: Tensor, **rest: Any) -> Tensor:
        return loss(logits, target.to(logits.dtype), **rest)

    with (
        mock.patch("torchvision.ops.boxes.batched_nms", same_nms),
        mock.patch("torch.nn.functional.binary_cross_entropy_with_logits", same_loss),
    ):
        yield
