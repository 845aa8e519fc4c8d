import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lewel_bench.evals import weights
from lewel_bench.evals.weights import Model
from lewel_bench.pretrain import backbone
from lewel_bench.pretrain.recipe import Backbone

SPECS = [
    Backbone(),
    Backbone(arch="resnet18", stem="small", width=16),
    Backbone(arch="resnet34", stem="cifar", width=8),
    Backbone(arch="resnet101", width=8),
]
R50, TINY = SPECS[:2]


def state_of(spec: Backbone) -> dict[str, Tensor]:
    """Weights that differ in every element of every tensor."""
    state, first = {}, 0
    for key, shape in weights.shapes(spec).items():
        count = int(torch.Size(shape).numel())
        state[key] = torch.arange(first, first + count, dtype=torch.float64).view(shape)
        first += count
    return state


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.arch)
@pytest.mark.parametrize("model", ["c4", "fpn"])
def test_detectron2_round_trip_is_exact(spec: Backbone, model: Model) -> None:
    state = state_of(spec)
    converted = weights.to_detectron2(state, spec, model)
    assert len(converted) == len(state)
    assert equal(weights.from_detectron2(converted, spec, model), state)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.arch)
def test_mmseg_round_trip_is_exact(spec: Backbone) -> None:
    state = state_of(spec)
    assert equal(weights.from_mmseg(weights.to_mmseg(state, spec), spec), state)


def test_shapes_are_those_of_the_backbone() -> None:
    net = backbone.build(TINY)
    assert weights.shapes(TINY) == {k: tuple(v.shape) for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    ("key", "c4", "fpn"),
    [
        ("conv1.weight", "backbone.stem.conv1.weight", "backbone.bottom_up.stem.conv1.weight"),
        (
            "bn1.running_var",
            "backbone.stem.conv1.norm.running_var",
            "backbone.bottom_up.stem.conv1.norm.running_var",
        ),
        (
            "layer1.0.conv3.weight",
            "backbone.res2.0.conv3.weight",
            "backbone.bottom_up.res2.0.conv3.weight",
        ),
        (
            "layer3.5.bn2.bias",
            "backbone.res4.5.conv2.norm.bias",
            "backbone.bottom_up.res4.5.conv2.norm.bias",
        ),
        (
            "layer4.0.downsample.0.weight",
            "roi_heads.res5.0.shortcut.weight",
            "backbone.bottom_up.res5.0.shortcut.weight",
        ),
        (
            "layer4.0.downsample.1.num_batches_tracked",
            "roi_heads.res5.0.shortcut.norm.num_batches_tracked",
            "backbone.bottom_up.res5.0.shortcut.norm.num_batches_tracked",
        ),
    ],
)
def test_detectron2_names(key: str, c4: str, fpn: str) -> None:
    assert weights.detectron2_name(key, "c4") == c4
    assert weights.detectron2_name(key, "fpn") == fpn


def test_a_detector_keeps_its_own_keys() -> None:
    state = state_of(TINY)
    detector = weights.to_detectron2(state, TINY, "c4") | {
        "pixel_mean": torch.zeros(3),
        "proposal_generator.rpn_head.conv.weight": torch.zeros(1),
        "roi_heads.res5.norm.weight": torch.zeros(1),
        "roi_heads.box_predictor.cls_score.bias": torch.zeros(1),
    }
    assert equal(weights.from_detectron2(detector, TINY, "c4"), state)


def _without(state: dict[str, Tensor]) -> None:
    del state["layer2.0.bn1.weight"]


def _with(state: dict[str, Tensor]) -> None:
    state["fc.weight"] = state["layer9.0.conv1.weight"] = torch.zeros(1)


def _misshapen(state: dict[str, Tensor]) -> None:
    state["layer2.1.bn1.bias"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without, "missing layer2.0.bn1.weight"),
        (_with, "unexpected fc.weight, layer9.0.conv1.weight"),
        (_misshapen, "with another shape layer2.1.bn1.bias (7,), expected (32,)"),
    ],
)
def test_every_key_is_accounted_for(
    spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    state = state_of(TINY)
    spoil(state)
    for convert in (weights.to_mmseg, lambda s, b: weights.to_detectron2(s, b, "fpn")):
        with pytest.raises(ValueError, match=re.escape(message)):
            convert(state, TINY)


def test_a_foreign_key_in_a_detector_is_listed() -> None:
    detector = weights.to_detectron2(state_of(TINY), TINY, "fpn")
    detector["backbone.bottom_up.res6.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 unexpected keys in .*: backbone\.bottom_up\.res6"):
        weights.from_detectron2(detector, TINY, "fpn")
    with pytest.raises(ValueError, match="unexpected keys in mmseg's segmenter"):
        weights.from_mmseg(detector, TINY)


@pytest.mark.parametrize(
    ("actual", "named", "message"),
    [
        (
            R50,
            TINY,
            "those of a resnet50 with a 7x7 stem of width 64, not of a resnet18 with a 3x3",
        ),
        (TINY, R50, "those of a resnet18 with a 3x3 stem of width 16, not of a resnet50"),
        (SPECS[2], Backbone(arch="resnet50", stem="cifar", width=8), "of a resnet34"),
        (Backbone(arch="resnet18", width=16), TINY, "with a 7x7 stem of width 16, not of"),
    ],
)
def test_another_architecture_is_named(actual: Backbone, named: Backbone, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights.to_detectron2(state_of(actual), named, "c4")


def test_a_deep_stem_is_named() -> None:
    state = {k: v for k, v in state_of(R50).items() if not k.startswith(("conv1", "bn1"))}
    state["stem.0.weight"] = torch.zeros(32, 3, 3, 3)
    with pytest.raises(ValueError, match="resnet50 with a stem of three convolutions, not of a"):
        weights.to_mmseg(state, R50)


def test_no_key_of_a_resnet() -> None:
    with pytest.raises(ValueError, match=r"'fc\.weight' is not a weight of a ResNet"):
        weights.detectron2_name("fc.weight", "c4")
