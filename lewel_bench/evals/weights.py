"""A backbone's weights under the names of the paper's engines, and back.

lewel-bench uses torchvision's names: `layer1.0.bn2.weight`. detectron2 counts stages from the stem
and keeps a norm inside its convolution: `res2.0.conv2.norm.weight`; mmseg prefixes torchvision's
names. Every key must be converted: a missed weight would be a random layer in a detector, whose
numbers would then look like those of a bad method.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from lewel_bench.pretrain import backbone
from lewel_bench.pretrain.backbone import LAYERS
from lewel_bench.pretrain.recipe import Backbone

State = Mapping[str, Tensor]
Model = Literal["c4", "fpn"]

# prefixes of the weights of a detector and a segmenter outside the backbone
DETECTRON2_OTHERS = (
    "proposal_generator.",
    "roi_heads.",
    "backbone.fpn_",
    "pixel_mean",
    "pixel_std",
)
MMSEG_OTHERS = ("decode_head.", "auxiliary_head.", "data_preprocessor.")
SHOWN = 6  # keys that a message lists; the others are counted


def to_detectron2(state: State, spec: Backbone, model: Model) -> dict[str, Tensor]:
    """The weights under the names of a detectron2 C4 or FPN detector.

    Raises ValueError when they are not those of `spec`, naming both architectures or the keys.
    """
    check(state, spec)
    return {detectron2_name(key, model): value for key, value in state.items()}


def from_detectron2(state: State, spec: Backbone, model: Model) -> dict[str, Tensor]:
    """The backbone's weights from those of a whole detector, under torchvision's names.

    Raises ValueError listing unexpected and missing keys.
    """
    keys = {detectron2_name(key, model): key for key in shapes(spec)}
    return _taken(state, spec, keys, DETECTRON2_OTHERS, f"detectron2's {model} detector")


def to_mmseg(state: State, spec: Backbone) -> dict[str, Tensor]:
    """The weights under the names of an mmseg segmenter. Raises ValueError as `to_detectron2`."""
    check(state, spec)
    return {f"backbone.{key}": value for key, value in state.items()}


def from_mmseg(state: State, spec: Backbone) -> dict[str, Tensor]:
    """The backbone's weights from those of a segmenter. Raises ValueError as `from_detectron2`."""
    keys = {f"backbone.{key}": key for key in shapes(spec)}
    return _taken(state, spec, keys, MMSEG_OTHERS, "mmseg's segmenter")


def detectron2_name(key: str, model: Model) -> str:
    """The name of a torchvision key in a detectron2 detector.

    In C4 the last stage is the RoI head. Raises ValueError for a key that no ResNet has.
    """
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        norm = ".norm" if match[1] == "bn" else ""
        stage, rest = "stem", f"conv1{norm}.{match[2]}"
    elif match := re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn)([1-3])\.(\w+)", key):
        norm = ".norm" if match[3] == "bn" else ""
        stage, rest = f"res{int(match[1]) + 1}", f"{match[2]}.conv{match[4]}{norm}.{match[5]}"
    elif match := re.fullmatch(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)", key):
        norm = ".norm" if match[3] == "1" else ""
        stage, rest = f"res{int(match[1]) + 1}", f"{match[2]}.shortcut{norm}.{match[4]}"
    else:
        raise ValueError(f"{key!r} is not a weight of a ResNet in torchvision's naming")
    if model == "fpn":
        return f"backbone.bottom_up.{stage}.{rest}"
    return f"{'roi_heads' if stage == 'res5' else 'backbone'}.{stage}.{rest}"


def check(state: State, spec: Backbone) -> None:
    """Raise ValueError unless `state` is exactly the state of the backbone that `spec` names."""
    wanted = shapes(spec)
    missing, rest = [k for k in wanted if k not in state], [k for k in state if k not in wanted]
    other = [k for k in wanted if k in state and tuple(state[k].shape) != wanted[k]]
    if not (missing or rest or other):
        return
    actual, named = describe({k: tuple(v.shape) for k, v in state.items()}), describe(wanted)
    if actual is not None and actual != named:
        raise ValueError(f"the weights are those of a {actual}, not of a {named}. {_spec(spec)}")
    problems = [f"missing {listed(missing)}"] if missing else []
    problems += [f"unexpected {listed(rest)}"] if rest else []
    problems += [
        "with another shape "
        + listed(f"{k} {tuple(state[k].shape)}, expected {wanted[k]}" for k in other)
    ] * bool(other)
    raise ValueError(f"the weights do not fit a {named}: {'; '.join(problems)}. {_spec(spec)}")


def shapes(spec: Backbone) -> dict[str, tuple[int, ...]]:
    """The keys of a backbone's state and the shapes of its tensors, in order."""
    with torch.device("meta"):
        net = backbone.build(spec)
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


def describe(sizes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The architecture that keys and shapes imply, None where they imply no known ResNet.

    The two 3x3 stems differ only in their stride, which weights do not show.
    """
    stem = sizes.get("conv1.weight", ())
    blocks = tuple(
        len({key.split(".")[1] for key in sizes if key.startswith(f"layer{n}.")})
        for n in range(1, 5)
    )
    deep = any(key.startswith("stem.") for key in sizes)
    if not all(blocks) or (len(stem) != 4 and not deep):
        return None
    thick = "layer1.0.conv3.weight" in sizes
    names = [
        arch
        for arch, (block, depths) in LAYERS.items()
        if depths == blocks and (block.expansion > 1) == thick
    ]
    kind = (
        names[0] if names else f"ResNet with {blocks} {'bottleneck' if thick else 'basic'} blocks"
    )
    if deep:
        return f"{kind} with a stem of three convolutions"
    return f"{kind} with a {stem[2]}x{stem[3]} stem of width {stem[0]}"


def listed(names: Iterable[str]) -> str:
    """The first names, and how many others follow."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def _taken(
    state: State, spec: Backbone, keys: Mapping[str, str], others: tuple[str, ...], whose: str
) -> dict[str, Tensor]:
    rest = [key for key in state if key not in keys and not key.startswith(others)]
    if rest:
        raise ValueError(f"{len(rest)} unexpected keys in {whose}: {listed(rest)}")
    taken = {key: state[name] for name, key in keys.items() if name in state}
    check(taken, spec)
    return taken


def _spec(spec: Backbone) -> str:
    return (
        f"the recipe's backbone is arch {spec.arch}, stem {spec.stem}, width {spec.width}; use "
        "the file that matches it"
    )
