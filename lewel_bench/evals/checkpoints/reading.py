"""A checkpoint of any known layout as a backbone of ours, or the reason why it is none."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lewel_bench.evals import weights
from lewel_bench.evals.checkpoints import files, formats, match
from lewel_bench.evals.checkpoints.content import Content
from lewel_bench.evals.checkpoints.formats import ALLOWED, FORMATS, Format
from lewel_bench.evals.checkpoints.match import COUNTER, Match
from lewel_bench.evals.checkpoints.pixels import Pixels, adapt
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.value import unknown

# Authors that detectron2's files name, whose networks have the stride in the 1x1 convolution
CAFFE = ("Caffe2", "Detectron2 Model Zoo")
BLOCK = "layer1.0.conv1.weight"
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
    recognised), `network` one that the format has (None: its first).

    Nothing of the file is executed. Raises ValueError: one line for a file that is broken or not
    plain data, a report for one whose names do not fit.
    """
    layouts = _layouts(format)
    allowed = {name for one in layouts.values() for name in one.allows} if format else ALLOWED
    content = files.read(path, allowed)
    if not content.shapes:
        raise ValueError(f"{path}: holds no tensors")
    _caffe(path, content)
    try:
        found = _recognised(layouts, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    layout = layouts[found.format]
    if not found.sound:
        raise ValueError(_refusal(path, found, layout, content, format))
    if foreign := content.globals - set(layout.allows):
        raise ValueError(f"{path}: {min(foreign)} is no part of a file of {found.format}")
    name = _network(path, found, layout, network)
    return _taken(path, content, found, layout, name)


def _layouts(format: str | None) -> dict[str, Format]:
    if format is None:
        return FORMATS
    if format.endswith(".toml"):
        return {Path(format).stem: formats.own(Path(format))}
    if format not in FORMATS:
        raise ValueError(f"{unknown('format', format, FORMATS)}; or a TOML file of your own")
    return {format: FORMATS[format]}


def _recognised(layouts: Mapping[str, Format], content: Content) -> Match:
    """The first layout that the whole file fits, else the one that it fits best."""
    nearest: Match | None = None
    for name, layout in layouts.items():
        found = match.match(name, layout, content)
        if found.sound:
            return found
        if nearest is None or (found.faults, bool(found.lacks)) < (
            nearest.faults,
            bool(nearest.lacks),
        ):
            nearest = found
    assert nearest is not None
    return nearest


def _refusal(path: Path, found: Match, layout: Format, content: Content, format: str | None) -> str:
    lines = [f"{path}: "]
    if format is None and not found.networks:
        first = ", ".join(list(content.shapes)[:3])
        behind = [n.removesuffix(BLOCK) for n in content.shapes if n.endswith(BLOCK)]
        named = f'. A ResNet\'s names begin with "{behind[0]}"' if behind else ""
        return (
            f"{path}: no backbone is in it that any known format ({', '.join(FORMATS)}) would have "
            f"there. Its {len(content.shapes)} tensors begin with {first}{named}. A layout of your "
            "own: --format FILE.toml"
        )
    asked = "does not fit" if format else "is nearest to, but does not fit,"
    lines[0] += f"{asked} the format {found.format} ({layout.source}):"
    lines.append(match.report(found))
    if format and format in FORMATS:
        other = _recognised(FORMATS, content)
        lines += [f"  it is a file of the format {other.format}"] if other.sound else []
    return "\n".join(lines)


def _network(path: Path, found: Match, layout: Format, asked: str | None) -> str:
    if asked is None:
        return next(iter(found.networks))
    if asked not in layout.networks:
        raise ValueError(unknown(f"network of {found.format}", asked, layout.networks))
    if asked not in found.networks:
        here = ", ".join(found.networks)
        near = difflib.get_close_matches(asked, found.networks, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path}: it does not hold the network {asked}.{hint} It holds: {here}")
    return asked


def _caffe(path: Path, content: Content) -> None:
    author = content.texts.get("__author__", "")
    if author in CAFFE or any(name.endswith(("conv1_w", "branch2a_w")) for name in content.shapes):
        raise ValueError(
            f"{path}: a network in Caffe's style{f' (by {author})' if author else ''}, with the "
            "stride in the 1x1 convolution and BGR pixels: lewel-bench has no such ResNet. Take "
            "weights that detectron2's convert-torchvision-to-d2.py or MoCo's converter wrote"
        )


def _taken(path: Path, content: Content, found: Match, layout: Format, name: str) -> Reading:
    one = found.networks[name]
    assert one.spec is not None
    state: dict[str, Tensor] = {}
    for key in weights.shapes(one.spec):
        if key not in one.keys:
            assert key.endswith(COUNTER)
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        try:
            state[key] = _weight(key, content.tensor(one.keys[key]))
        except ValueError as error:
            raise ValueError(f"{path}: {one.keys[key]}: {error}") from None
    try:
        state["conv1.weight"] = adapt(state["conv1.weight"], layout.pixels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    spec, guessed = _stem(one.spec, content)
    same = one.same(found.root)
    return Reading(
        state=state,
        spec=spec,
        format=found.format,
        network=name,
        networks=tuple(found.networks),
        pixels=layout.pixels,
        file_sha256=checkpoint.sha256(path),
        tensors=digest(state),
        same=same,
        renamed=len(one.keys) - same,
        aside=len(found.heads),
        guessed=guessed,
    )


def _weight(key: str, value: Tensor) -> Tensor:
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


def _stem(spec: Backbone, content: Content) -> tuple[Backbone, str]:
    """The two stems of 3x3 differ in their stride, which only a header of ours tells."""
    if spec.stem == "imagenet":
        return spec, ""
    try:
        return Backbone.model_validate(json.loads(content.texts["backbone"])), ""
    except (KeyError, ValueError):
        return spec, "a 3x3 stem is taken to have stride 1 and no pooling, as for CIFAR-10"


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
