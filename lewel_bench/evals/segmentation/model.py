"""A fully convolutional network (arXiv 1411.4038) on a dilated ResNet: what mmseg computes with its
fcn_r50-d8 configuration, under the same names of parameters.

The last two stages keep their resolution, so features have 1/8 of the image's side (with the
ImageNet stem; 1/4 and 1/2 with the small and the CIFAR one). Shapes: B images, C classes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.models.resnet import BasicBlock, Bottleneck

from lewel_bench.evals import weights
from lewel_bench.evals.normalisation import STD, mean_of, without_mean
from lewel_bench.evals.segmentation.masks import VOID
from lewel_bench.pretrain import backbone, checkpoint
from lewel_bench.pretrain.backbone import Norm, ResNet
from lewel_bench.pretrain.recipe import Backbone

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Segmentation

DILATIONS = {"layer3": (1, 2), "layer4": (2, 4)}  # of a stage's first block and of the others


class Segmenter(nn.Module):
    """The network of a protocol on the backbone of `spec`; `norm` makes each normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        protocol: "Segmentation",
        spec: Backbone,
        classes: int,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = dilated(backbone.build(without_mean(spec), norm))
        top, dropout = self.backbone.channels, protocol.dropout
        self.decode_head = Head(top, protocol.head_width, 2, True, classes, dropout, norm)
        self.auxiliary_head = Head(top // 2, protocol.aux_width, 1, False, classes, dropout, norm)
        self.aux_weight = protocol.aux_weight
        for name, values in (("mean", mean_of(spec)), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of RGB images uint8 (B, S, S, 3) with labels uint8 (B, S, S); their sum trains."""
        layer3, layer4 = self._features(images)
        decode, aux = self.decode_head(layer4), self.auxiliary_head(layer3)
        truth = labels.long()
        return {
            "decode.loss_ce": pixel_loss(decode, truth),
            "aux.loss_ce": self.aux_weight * pixel_loss(aux, truth),
        }

    def logits(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Of images uint8 (B, h, w, 3), as (B, C, H, W) at `size` (H, W)."""
        _, layer4 = self._features(images)
        at_image = _resized(self.decode_head(layer4), images.shape[1:3])
        return _resized(at_image, size)  # from there, as mmseg does

    @torch.no_grad()
    def predict(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels uint8 (H, W) of an image uint8 (h, w, 3)."""
        return self.logits(image[None], size)[0].argmax(0).to(torch.uint8)

    def load_backbone(self, path: Path) -> None:
        """Start from the backbone of a file. Raises ValueError naming it when it does not fit."""
        state, _ = checkpoint.read_backbone(path)
        try:
            weights.check(state, self.spec)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self.backbone.load_state_dict(state)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What layer3 and layer4 make of images uint8 (B, h, w, 3)."""
        x = images.permute(0, 3, 1, 2).contiguous().float()  # NCHW, as mmseg computes
        x = (x - self.mean) / self.std
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        layer3 = net.layer3(net.layer2(net.layer1(x)))
        return layer3, net.layer4(layer3)


class Head(nn.Module):
    """mmseg's FCNHead: 3x3 convolutions, one more over their output beside the input if `concat`,
    and a linear classification of every position."""

    def __init__(
        self,
        inputs: int,
        width: int,
        convs: int,
        concat: bool,
        classes: int,
        dropout: float,
        norm: Norm,
    ) -> None:
        super().__init__()
        widths = [inputs] + [width] * convs
        self.convs = nn.Sequential(*(_ConvBlock(a, width, norm) for a in widths[:-1]))
        self.conv_cat = _ConvBlock(inputs + width, width, norm) if concat else None
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.conv_seg = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w) to logits (B, classes, h, w)."""
        features = self.convs(x)
        if self.conv_cat is not None:
            features = self.conv_cat(torch.cat([x, features], dim=1))
        logits: Tensor = self.conv_seg(self.dropout(features))
        return logits


class _ConvBlock(nn.Module):
    def __init__(self, inputs: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn = norm(width)
        self.relu = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


def dilated(net: ResNet) -> ResNet:
    """`net` with the strides of its last two stages turned into dilations, in place.

    Each block's first 3x3 convolution is dilated: a BasicBlock's second one is not, as in mmseg.
    """
    for name, (first, others) in DILATIONS.items():
        for number, block in enumerate(getattr(net, name)):
            assert isinstance(block, BasicBlock | Bottleneck)
            conv = block.conv1 if isinstance(block, BasicBlock) else block.conv2
            dilation = others if number else first
            block.conv1.stride = conv.stride = (1, 1)
            conv.dilation = conv.padding = (dilation,) * 2
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)
    return net


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, C, h, w) with labels int64 (B, S, S).

    The mean is over all pixels, those without a label among them, as in mmseg (avg_non_ignore
    False).
    """
    logits = _resized(logits, labels.shape[1:])
    return cross_entropy(logits, labels, ignore_index=VOID, reduction="none").mean()


def _resized(logits: Tensor, size: Any) -> Tensor:
    return interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
