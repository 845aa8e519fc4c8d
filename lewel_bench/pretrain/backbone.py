"""ResNets as torchvision builds them, without pooling and classifier (arXiv 1512.03385, v1.5)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lewel_bench.pretrain.colour import MEAN, STD
from lewel_bench.pretrain.recipe import Backbone

Norm = Callable[[int], nn.Module]

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """Images (B, 3, H, W), less ImageNet's mean and over its deviation, to features (B, `channels`,
    h, w) before pooling.

    The keys of the state dict are those of torchvision's resnet without `fc`.
    """

    shift: Tensor | None  # to the mean that the weights expect; none to ImageNet's

    def __init__(self, spec: Backbone, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        block, depths = LAYERS[spec.arch]
        width = spec.width
        if spec.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        else:
            stride = 1 if spec.stem == "cifar" else 2
            self.conv1 = nn.Conv2d(3, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if spec.stem == "imagenet" else nn.Identity()
        self.layer1 = _layer(block, width, width, depths[0], 1, norm)
        self.layer2 = _layer(block, width * block.expansion, 2 * width, depths[1], 2, norm)
        self.layer3 = _layer(block, 2 * width * block.expansion, 4 * width, depths[2], 2, norm)
        self.layer4 = _layer(block, 4 * width * block.expansion, 8 * width, depths[3], 2, norm)
        self.channels = spec.channels
        if spec.stride == "1x1":
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
        shift = _shift(spec.mean) if spec.mean else None
        self.register_buffer("shift", shift, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # torchvision's initialisation; norms start at 1, 0
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1]

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The features of all four stages; each halves the last one's side and doubles its
        channels."""
        if self.shift is not None:
            x = x + self.shift
        x1 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return x1, x2, x3, self.layer4(x3)


def _shift(mean: tuple[float, float, float]) -> Tensor:
    """(3, 1, 1): what turns pixels less ImageNet's mean into pixels less `mean`."""
    own, theirs, scale = (torch.tensor(values)[:, None, None] for values in (MEAN, mean, STD))
    return (own - theirs) / scale


def build(spec: Backbone, norm: Norm = nn.BatchNorm2d) -> ResNet:
    """The randomly initialised backbone of `spec`; `norm` makes each normalisation layer."""
    return ResNet(spec, norm)


def _layer(
    block: type[BasicBlock | Bottleneck],
    inputs: int,
    planes: int,
    depth: int,
    stride: int,
    norm: Norm,
) -> nn.Sequential:
    outputs = planes * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
    blocks = [block(inputs, planes, stride, shortcut, norm_layer=norm)]
    blocks += [block(outputs, planes, norm_layer=norm) for _ in range(1, depth)]
    return nn.Sequential(*blocks)
