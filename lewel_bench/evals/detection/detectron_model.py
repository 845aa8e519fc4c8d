"""What detectron2 does not have: stems and widths of small backbones, and the norm after res5.

Importing this registers them by name, for `detectron.settings`. The norm stands behind the last
stage of a C4 head, where features that no frozen norm scales would otherwise meet the predictors
(MoCo, arXiv 1911.05722, Section 4.2: "extra BN"); it is of the kind of the backbone's.
"""

from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import Tensor, nn
from torch.nn.functional import relu_

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def config(values: dict[str, Any], **others: Any) -> CfgNode:
    """detectron2's defaults with `values` by dotted keys and `others` with `__` for the dots."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.STEM = "imagenet"  # the one key of ours
    every = values | {key.replace("__", "."): value for key, value in others.items()}
    cfg.merge_from_list([part for pair in every.items() for part in pair])
    return cfg


class SmallStem(CNNBlockBase):  # type: ignore[misc]  # of a package without types
    """A 3x3 convolution of stride 1 or 2 with norm and ReLU, without pooling."""

    def __init__(self, channels: int, width: int, stride: int, norm: str) -> None:
        super().__init__(channels, width, stride)
        self.conv1 = Conv2d(
            channels, width, 3, stride=stride, padding=1, bias=False, norm=get_norm(norm, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return relu_(self.conv1(x))


def build_lewel_resnet_backbone(cfg: CfgNode, shape: ShapeSpec) -> ResNet:
    """A ResNet of our stems and widths."""
    of = cfg.MODEL.RESNETS
    stem = (
        BasicStem(shape.channels, of.STEM_OUT_CHANNELS, of.NORM)
        if of.STEM == "imagenet"
        else SmallStem(shape.channels, of.STEM_OUT_CHANNELS, 1 + (of.STEM == "small"), of.NORM)
    )
    stages = [_stage(cfg, number) for number in range(2, 6)]
    return ResNet(stem, stages, out_features=of.OUT_FEATURES).freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def build_lewel_resnet_fpn_backbone(cfg: CfgNode, shape: ShapeSpec) -> FPN:
    """A feature pyramid on it: its levels are named by their strides, not always P2 to P6."""
    net = build_lewel_resnet_backbone(cfg, shape)
    top = LastLevelMaxPool()
    top.in_feature = cfg.MODEL.RPN.IN_FEATURES[3]
    of = cfg.MODEL.FPN
    return FPN(net, of.IN_FEATURES, of.OUT_CHANNELS, norm=of.NORM, top_block=top)


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]  # of a package without types
    """Heads on res5 with a norm behind it, for any of our backbones."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        blocks = _stage(cfg, 5)
        channels: int = blocks[-1].out_channels
        res5 = nn.Sequential(*blocks)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels


def _stage(cfg: CfgNode, number: int) -> list[Any]:
    """The blocks of res2 to res5."""
    of = cfg.MODEL.RESNETS
    deep, depth = of.DEPTH >= 50, BLOCKS[of.DEPTH][number - 2]
    wide = 2 ** (number - 2)
    outputs = of.RES2_OUT_CHANNELS * wide
    extra = (
        {"bottleneck_channels": of.WIDTH_PER_GROUP * wide, "stride_in_1x1": of.STRIDE_IN_1X1}
        if deep
        else {}
    )
    blocks: list[Any] = ResNet.make_stage(
        BottleneckBlock if deep else BasicBlock,
        depth,
        in_channels=of.STEM_OUT_CHANNELS if number == 2 else outputs // 2,
        out_channels=outputs,
        stride_per_block=[1 if number == 2 else 2] + [1] * (depth - 1),
        norm=of.NORM,
        **extra,
    )
    return blocks


BACKBONE_REGISTRY.register(build_lewel_resnet_backbone)
BACKBONE_REGISTRY.register(build_lewel_resnet_fpn_backbone)
