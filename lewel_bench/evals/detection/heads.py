"""The layers above the backbone: feature pyramid, box head, box predictor, mask head."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from lewel_bench.pretrain.backbone import Norm


class FPN(nn.Module):
    """C2 to C5 of `channels` to P2 to P6 of `width` (arXiv 1612.03144), a norm after each conv."""

    def __init__(self, channels: Sequence[int], width: int, norm: Norm) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv_norm(c, width, 1, norm) for c in channels)
        self.output = nn.ModuleList(_conv_norm(width, width, 3, norm) for _ in channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Finest first; P6 is every second cell of P5."""
        top = self.lateral[-1](features[-1])
        levels = [self.output[-1](top)]
        for i in reversed(range(len(features) - 1)):
            top = self.lateral[i](features[i]) + interpolate(top, scale_factor=2.0, mode="nearest")
            levels.insert(0, self.output[i](top))
        return [*levels, max_pool2d(levels[-1], kernel_size=1, stride=2)]


class Mean(nn.Module):
    """Features (R, C, h, w) to (R, C): the box head of C4, whose layers are those of res5."""

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, h, w) -> (R, C)."""
        return x.mean((2, 3))


def conv_box_head(width: int, side: int, fc_width: int, norm: Norm) -> nn.Sequential:
    """4conv1fc: (R, width, side, side) to (R, fc_width)."""
    convs = [layer for _ in range(4) for layer in _conv_norm_relu(width, width, norm)]
    fc = nn.Linear(width * side * side, fc_width)
    nn.init.kaiming_uniform_(fc.weight, a=1)
    nn.init.zeros_(fc.bias)
    return nn.Sequential(*convs, nn.Flatten(), fc, nn.ReLU())


class BoxPredictor(nn.Module):
    """Logits (R, K + 1), background last, and deltas (R, K, 4), from the features of `head`."""

    def __init__(self, head: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.head = head
        self.score = nn.Linear(width, classes + 1)
        self.deltas = nn.Linear(width, classes * 4)
        for layer, std in ((self.score, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, ...) -> logits (R, K + 1) and deltas (R, K, 4)."""
        x = self.head(x)
        return self.score(x), self.deltas(x).unflatten(1, (-1, 4))


def mask_head(channels: int, width: int, classes: int, convs: int, norm: Norm) -> nn.Sequential:
    """(R, channels, s, s) to the classes' mask logits (R, K, 2 s, 2 s)."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += _conv_norm_relu(channels, width, norm)
        channels = width
    up = nn.ConvTranspose2d(channels, width, 2, stride=2)
    predictor = nn.Conv2d(width, classes, 1)
    nn.init.kaiming_normal_(up.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(predictor.weight, std=0.001)
    for layer in (up, predictor):
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers, up, nn.ReLU(), predictor)


def _conv_norm(inputs: int, outputs: int, side: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    return nn.Sequential(conv, norm(outputs))


def _conv_norm_relu(inputs: int, outputs: int, norm: Norm) -> list[nn.Module]:
    conv, layer = _conv_norm(inputs, outputs, 3, norm)
    assert isinstance(conv, nn.Conv2d)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, layer, nn.ReLU()]
