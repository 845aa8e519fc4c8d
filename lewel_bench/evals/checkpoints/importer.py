"""A checkpoint of any known layout as a backbone of ours, or the reason why it is none."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from lewel_bench.evals import weights
from lewel_bench.evals.checkpoints import limited
from lewel_bench.evals.checkpoints.formats import ALLOWED, FORMATS, Format
from lewel_bench.evals.checkpoints.limited import Content, Reader
from lewel_bench.evals.checkpoints.match import (
    COUNTER,
    Match,
    Rename,
    match_layout,
    mismatch_report,
)
from lewel_bench.evals.checkpoints.pixels import Pixels, adapt
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.backbone import LAYERS
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.value import explain, unknown

# Authors that detectron2's files name, whose networks mostly have the stride in the 1x1 convolution
CAFFE = ("Caffe2", "Detectron2 Model Zoo")
OURS = "lewel-bench"
SMOOTHED = ("resnetaa", "resnetblur")  # without a parameter that would show it
FEW = 10  # names of a ResNet-18, which has 120: with less, what is missing says nothing
BLOCK = "layer1.0.conv1.weight"
TRANSFORMER = ("cls_token", ".attn.qkv.", "patch_embed", "patch_embeddings", ".self_attn.")
EPS = 1e-5  # of batch norm
LIKE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Reading:
    """A backbone out of a file: its weights in float32 by our keys, for pixels as torchvision's
    networks have them; what it was in the file; and how many names were the same, renamed, and
    left aside as parts of heads."""

    state: Mapping[str, Tensor]
    spec: Backbone
    format: str
    network: str
    networks: tuple[str, ...]  # all that the file holds
    pixels: Pixels
    file_sha256: str
    tensors: str  # hash of the weights, whatever file they are in
    same: int
    renamed: int
    aside: int
    guessed: str = ""  # what neither the names nor the shapes say


def read(path: Path, format: str | None = None, network: str | None = None) -> Reading:
    """The backbone in a file. `format` is one of FORMATS or a TOML file of a user's (None: it is
    recognised), `network` one that the format has (None: its first). `path` may be the index of a
    checkpoint in several files, or the folder that it lies in.

    Nothing of the file is executed. Raises ValueError: one line for a file that is broken or not
    plain data, a report for one whose names do not fit.
    """
    with limited.opened(path) as reader:
        return _read(reader, format, network)


def _read(reader: Reader, format: str | None, network: str | None) -> Reading:
    path, layouts = reader.path, _layouts(format, reader)
    allowed = {name for layout in layouts.values() for name in layout.allows} if format else ALLOWED
    content = reader.content(allowed)
    if not content.shapes:
        raise ValueError(f"{path}: holds no tensors")
    own = format not in (None, *FORMATS)

    def renamed(layout: Format, names: Sequence[str]) -> Sequence[str]:
        """A user's patterns may take for ever: they are tried where there is a limit."""
        return reader.renamed(layout.rename, names)

    try:
        match = _recognised(layouts, content, renamed if own else Format.keys)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    layout = layouts[match.format]
    if not match.sound:
        raise ValueError(_refusal(path, match, layout, content, format))
    if foreign := content.globals - set(layout.allows):
        raise ValueError(f"{path}: {min(foreign)} is no part of a file of {match.format}")
    name = _network(path, match, layout, network)
    taken = _taken(reader, content, match, layout, name)
    if unlike := _unlike(content, layout, taken.spec):
        raise ValueError(f"{path}: {unlike}")
    if own and taken.guessed:
        raise ValueError(
            f'{path}: its first convolution is 3x3, as of two stems here: add stem = "cifar" '
            f'(stride 1) or stem = "small" (stride 2, the suites\' own) to {format}'
        )
    if format is None and match.format == "detectron2":
        taken = replace(taken, guessed=_stride(path, content, match, taken.spec))
    return taken


def _layouts(format: str | None, reader: Reader) -> dict[str, Format]:
    if format is None:
        return FORMATS
    if format.endswith(".toml"):
        try:
            return {Path(format).stem: Format.model_validate(reader.layout(Path(format)))}
        except ValidationError as error:
            raise ValueError(f"{format}: {explain(error)}") from None
    if format not in FORMATS:
        raise ValueError(f"{unknown('format', format, FORMATS)}; or a TOML file of your own")
    return {format: FORMATS[format]}


def _recognised(
    layouts: Mapping[str, Format], content: Content, rename: Rename = Format.keys
) -> Match:
    """The first layout that the whole file fits, else the one that it fits best."""
    nearest: Match | None = None
    for name, layout in layouts.items():
        candidate = match_layout(name, layout, content, rename)
        if candidate.sound:
            return candidate
        if nearest is None or (candidate.faults, bool(candidate.lacks)) < (
            nearest.faults,
            bool(nearest.lacks),
        ):
            nearest = candidate
    assert nearest is not None
    return nearest


def _refusal(path: Path, match: Match, layout: Format, content: Content, format: str | None) -> str:
    lines = [f"{path}: "]
    if format is None and not any(len(network.keys) >= FEW for network in match.networks.values()):
        if any(part in name for name in content.shapes for part in TRANSFORMER):
            return (
                f"{path}: holds a Vision Transformer. Only ResNets ({', '.join(LAYERS)}) are "
                "evaluated here: take the method's checkpoint of a ResNet"
            )
        first = ", ".join(list(content.shapes)[:3])
        behind = [n.removesuffix(BLOCK) for n in content.shapes if n.endswith(BLOCK)]
        named = f'. A ResNet\'s names begin with "{behind[0]}"' if behind else ""
        return (
            f"{path}: no backbone is in it that any known format ({', '.join(FORMATS)}) would have "
            f"there. Its {len(content.shapes)} tensors begin with {first}{named}. A layout of your "
            "own: --format FILE.toml"
        )
    asked = "does not fit" if format else "is nearest to, but does not fit,"
    lines[0] += f"{asked} the format {match.format} ({layout.source}):"
    lines.append(mismatch_report(match))
    if format and format in FORMATS:
        with suppress(ValueError):  # it has two backbones
            other = _recognised(FORMATS, content)
            lines += [f"  it is a file of the format {other.format}"] if other.sound else []
    return "\n".join(lines)


def _network(path: Path, match: Match, layout: Format, asked: str | None) -> str:
    if asked is None:
        return next(iter(match.networks))
    if asked not in layout.networks:
        raise ValueError(unknown(f"network of {match.format}", asked, layout.networks))
    if asked not in match.networks:
        here = ", ".join(match.networks)
        near = difflib.get_close_matches(asked, match.networks, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path}: it does not hold the network {asked}.{hint} It holds: {here}")
    return asked


def _unlike(content: Content, layout: Format, spec: Backbone) -> str:
    """Why a network whose names and shapes are a ResNet's is another one, or nothing."""
    if layout.foreign_stem and spec.stem != "imagenet":
        return f"a network with another stem than ours: {layout.foreign_stem}"
    arch = content.texts.get("arch", "")
    if arch.startswith(SMOOTHED):
        return f"it is timm's {arch[:40]}, which smooths before its strides: no ResNet of ours does"
    return ""


def _stride(path: Path, content: Content, match: Match, spec: Backbone) -> str:
    """What is assumed of detectron2's file. Raises ValueError where that is too much."""
    author = content.texts.get("__author__", "")
    deviation = f"{match.root}pixel_std"
    unit = deviation in content.shapes and bool(
        (content.tensors([deviation])[deviation] == 1).all()
    )
    if author in CAFFE or unit:
        whose = f"by {author}" if author in CAFFE else "for pixels of 0 to 255"
        raise ValueError(
            f"{path}: a file {whose} does not say where its network has the stride. Where the "
            "configuration has STRIDE_IN_1X1 True and BGR pixels, detectron2's defaults: --format "
            "detectron2_caffe; where it has False and torchvision's pixels: --format detectron2"
        )
    if author == OURS or spec.expansion == 1:
        return ""
    return (
        "the stride is taken to be in the 3x3 convolutions, and the pixels to be torchvision's; "
        "otherwise --format detectron2_caffe"
    )


def _taken(reader: Reader, content: Content, match: Match, layout: Format, name: str) -> Reading:
    path, network = reader.path, match.networks[name]
    assert network.spec is not None
    state: dict[str, Tensor] = {}
    shapes = weights.shapes(network.spec)
    tensors = content.tensors([network.keys[key] for key in shapes if key in network.keys])
    for key, shape in shapes.items():
        if key not in network.keys:
            state[key] = _without(key, network.spec)
            continue
        try:
            state[key] = _weight(key, tensors[network.keys[key]], shape)
        except ValueError as error:
            raise ValueError(f"{path}: {network.keys[key]}: {error}") from None
    state["conv1.weight"] = adapt(state["conv1.weight"], layout.pixels)
    try:
        spec, guessed = _told(network.spec, content, layout)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    same = network.same(match.root)
    return Reading(
        state=state,
        spec=spec,
        format=match.format,
        network=name,
        networks=tuple(match.networks),
        pixels=layout.pixels,
        file_sha256=_sha256(reader.parts),
        tensors=digest(state),
        same=same,
        renamed=len(network.keys) - same,
        aside=len(match.heads),
        guessed=guessed,
    )


def _sha256(parts: Sequence[Path]) -> str:
    """Hex SHA-256 of a file, or of those of an index and its parts."""
    hashes = [checkpoint.sha256(part) for part in parts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _without(key: str, spec: Backbone) -> Tensor:
    """What stands for a tensor that a file may leave out: the counter of a norm, or its statistics
    where they are absorbed, as detectron2's frozen norms have them."""
    shape = weights.shapes(spec)[key]
    if key.endswith(COUNTER):
        return torch.zeros(shape, dtype=torch.int64)
    return torch.zeros(shape) if key.endswith("mean") else torch.full(shape, 1 - EPS)


def _weight(key: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(value.shape) != shape:
        raise ValueError(f"the file changed while it was read: shape {shape}")
    if key.endswith(COUNTER):
        if value.is_floating_point() or value.is_complex():
            raise ValueError(f"a counter of dtype {value.dtype}")
        return value.to(torch.int64)
    if value.dtype not in LIKE:
        raise ValueError(f"weights of dtype {value.dtype}, which are no real numbers")
    weight = value.to(torch.float32)
    if wrong := int((~weight.isfinite()).sum()):
        raise ValueError(f"{wrong} of its {weight.numel()} numbers are not finite")
    return weight.contiguous()


def _told(spec: Backbone, content: Content, layout: Format) -> tuple[Backbone, str]:
    """What weights do not show, which only a header of ours tells, or a layout: the stride of the
    two stems of 3x3, that of a bottleneck, and the mean. Raises ValueError for a header that cannot
    be read; one of another network is no header of ours."""
    text = content.texts.get("backbone", "")
    if text.startswith(("{", "[")):
        try:
            header = Backbone.model_validate(json.loads(text))
        except ValidationError as error:
            raise ValueError(f'its header "backbone" is none of ours: {explain(error)}') from None
        except (ValueError, RecursionError):
            raise ValueError('its header "backbone" is broken JSON') from None
        if weights.shapes(header) == weights.shapes(spec):
            return header, ""
    if layout.stem:
        return spec, ""
    guess = (
        "a 3x3 stem is taken to have stride 1, padding 1 and no pooling behind it, as for "
        "CIFAR-10, and its pixels ImageNet's mean and deviation"
    )
    return spec, guess if spec.stem != "imagenet" else ""


def digest(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of a backbone's weights, independent of their order and of the file; counters of
    batches are no weights."""
    whole = hashlib.sha256()
    for key in sorted(state):
        if not key.endswith(COUNTER):
            value = state[key].to(torch.float32).contiguous()
            whole.update(f"{key} {tuple(value.shape)}\n".encode())
            whole.update(value.numpy().tobytes())
    return whole.hexdigest()
