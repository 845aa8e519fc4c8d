"""A backbone's weights under the names of the paper's engines, and back.

Ours are torchvision's: `layer1.0.bn2.weight`. detectron2 counts stages from the stem and keeps a
norm inside its convolution: `res2.0.conv2.norm.weight`; mmseg's names are torchvision's behind a
prefix. Every key must find its place: a weight left behind would be a random layer in a detector
whose numbers look like a bad method's.
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

# what a detector and a segmenter have beside the backbone
DETECTRON2_OTHERS = (
    "proposal_generator.",
    "roi_heads.",
    "backbone.fpn_",
    "pixel_mean",
    "pixel_std",
)
MMSEG_OTHERS = ("decode_head.", "auxiliary_head.", "data_preprocessor.")
SHOWN = 6  # keys that a message lists before it counts the rest


def to_detectron2(state: State, spec: Backbone, model: Model) -> dict[str, Tensor]:
    """The weights by the names of a detectron2 C4 or FPN detector.

    Raises ValueError when they are not those of `spec`: naming both architectures, or the keys.
    """
    check(state, spec)
    return {detectron2_name(key, model): value for key, value in state.items()}


def from_detectron2(state: State, spec: Backbone, model: Model) -> dict[str, Tensor]:
    """The backbone's weights out of a whole detector's, by torchvision's names.

    Raises ValueError listing the keys that belong to no part of the detector, and those missing.
    """
    ours = {detectron2_name(key, model): key for key in shapes(spec)}
    return _taken(state, spec, ours, DETECTRON2_OTHERS, f"detectron2's {model} detector")


def to_mmseg(state: State, spec: Backbone) -> dict[str, Tensor]:
    """The weights by the names of an mmseg segmenter. Raises ValueError as `to_detectron2`."""
    check(state, spec)
    return {f"backbone.{key}": value for key, value in state.items()}


def from_mmseg(state: State, spec: Backbone) -> dict[str, Tensor]:
    """The backbone's weights out of a whole segmenter's. Raises ValueError as `from_detectron2`."""
    ours = {f"backbone.{key}": key for key in shapes(spec)}
    return _taken(state, spec, ours, MMSEG_OTHERS, "mmseg's segmenter")


def detectron2_name(key: str, model: Model) -> str:
    """The name of one of our keys in a detectron2 detector.

    In C4 the last stage is the head of the regions. Raises ValueError for a key of no ResNet.
    """
    if found := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        norm = ".norm" if found[1] == "bn" else ""
        stage, rest = "stem", f"conv1{norm}.{found[2]}"
    elif found := re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn)([1-3])\.(\w+)", key):
        norm = ".norm" if found[3] == "bn" else ""
        stage, rest = f"res{int(found[1]) + 1}", f"{found[2]}.conv{found[4]}{norm}.{found[5]}"
    elif found := re.fullmatch(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)", key):
        norm = ".norm" if found[3] == "1" else ""
        stage, rest = f"res{int(found[1]) + 1}", f"{found[2]}.shortcut{norm}.{found[4]}"
    else:
        raise ValueError(f"{key!r} is no weight of a ResNet by torchvision's names")
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
    held, named = describe({k: tuple(v.shape) for k, v in state.items()}), describe(wanted)
    if held is not None and held != named:
        raise ValueError(f"the weights are those of a {held}, not of a {named}: {_spec(spec)}")
    said = [f"missing {listed(missing)}"] if missing else []
    said += [f"not of it {listed(rest)}"] if rest else []
    said += [
        f"of another shape {listed(f'{k} {tuple(state[k].shape)} for {wanted[k]}' for k in other)}"
    ] * bool(other)
    raise ValueError(f"the weights are not those of a {named}: {'; '.join(said)}")


def shapes(spec: Backbone) -> dict[str, tuple[int, ...]]:
    """The keys of a backbone's state and the shapes of its tensors, in order."""
    with torch.device("meta"):
        net = backbone.build(spec)
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


def describe(sizes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The architecture that keys and shapes speak of, None where they speak of no ResNet of ours.

    The two 3x3 stems differ in their stride only, which weights do not show.
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
    """The first names, and how many there are beyond."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def _taken(
    state: State, spec: Backbone, ours: Mapping[str, str], others: tuple[str, ...], whose: str
) -> dict[str, Tensor]:
    rest = [key for key in state if key not in ours and not key.startswith(others)]
    if rest:
        raise ValueError(f"{len(rest)} keys have no place in {whose}: {listed(rest)}")
    taken = {key: state[name] for name, key in ours.items() if name in state}
    check(taken, spec)
    return taken


def _spec(spec: Backbone) -> str:
    return (
        f"the recipe's backbone is arch {spec.arch}, stem {spec.stem}, width {spec.width}; give "
        "the file that belongs to it"
    )
