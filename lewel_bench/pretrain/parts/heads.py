"""Multi-layer perceptrons on tokens: channels last, so a layer is one matrix product.

Equal to the 1x1 `Conv1d` heads of LEWEL's code, which put channels before tokens.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from lewel_bench.pretrain.backbone import Norm

Init = Literal["kaiming", "normal", "haiku", "torch"]


def mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    norm: Norm | None,
    *,
    bias: tuple[bool, bool] = (False, False),
    init: Init = "kaiming",
) -> nn.Sequential:
    """Linear, `norm` (None: without), ReLU, Linear; (..., inputs) to (..., outputs).

    `bias` says which of the two Linears has one; `init` how their weights start:
    kaiming normal by fan-out (LEWEL's Conv1d, EMAN's projector), normal with std .01 (EMAN's
    predictor), haiku (truncated normal of variance 1/fan-in, zero bias), torch (its default).
    """
    first, last = nn.Linear(inputs, hidden, bias[0]), nn.Linear(hidden, outputs, bias[1])
    for layer in (first, last):
        _initialise(layer, init)
    return nn.Sequential(first, *([norm(hidden)] if norm else []), nn.ReLU(inplace=True), last)


def deep(
    widths: Sequence[int],
    norm: Norm,
    *,
    last: Literal["none", "gain", "plain"] = "none",
    init: Init,
) -> nn.Sequential:
    """Linear, `norm`, ReLU between each two of `widths`; then a Linear and, unless `last` is none,
    a norm with a gain but no offset, or with neither.

    A Linear that a norm follows has no bias: the norm would remove it.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths), start=2):
        end = i == len(widths)
        linear = nn.Linear(inputs, outputs, bias=end and last == "none")
        _initialise(linear, init)
        layers += [linear] if end else [linear, norm(outputs), nn.ReLU(inplace=True)]
    if last != "none":
        closing = norm(widths[-1])
        for name, p in closing.named_parameters():
            p.requires_grad_(last == "gain" and name == "weight")
        layers.append(closing)
    return nn.Sequential(*layers)


def _initialise(layer: nn.Linear, init: Init) -> None:
    if init == "torch":
        return
    if init == "kaiming":
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif init == "normal":
        nn.init.normal_(layer.weight, std=0.01)
    else:
        std = layer.in_features**-0.5
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
