"""A backbone as the file that another tool reads, and how that tool reads it.

The names are those of `weights`; the values are never touched.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from lewel_bench.evals import weights
from lewel_bench.evals.normalisation import MEAN, STD
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.value import unknown

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Format:
    """A way to write a backbone. Its reader goes by the file's `suffix` and builds the networks
    that `takes` says; `how` is Python that reads the file `{out}`."""

    suffix: str
    write: Callable[[State, Backbone], bytes]
    takes: Callable[[Backbone], bool]
    how: Callable[[Backbone], str]


def write(format: str, state: State, spec: Backbone) -> bytes:
    """The content of a file in one of FORMATS.

    Raises ValueError naming the nearest format, for weights that are not those of `spec`, and for a
    backbone that the format's reader cannot build.
    """
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    weights.check(state, spec)
    if not FORMATS[format].takes(spec):
        named = f"{spec.arch} of stem {spec.stem} and width {spec.width}{unusual(spec)}"
        raise ValueError(f"{format} has no {named}: --to safetensors supports every backbone")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    return FORMATS[format].write(tensors, spec)


def unusual(spec: Backbone) -> str:
    """What torchvision has otherwise, and no file but ours tells its reader; in words."""
    text = ", with the stride in its 1x1 convolutions" * (spec.stride == "1x1")
    return text + (f", for pixels less {spec.mean}" if spec.mean else "")


def _pth(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _torchvision(state: State, spec: Backbone) -> bytes:
    return _pth(dict(state))


def _safetensors(state: State, spec: Backbone) -> bytes:
    # one entry: safetensors writes several in random order
    return serialise(dict(state), metadata={"backbone": json.dumps(spec.model_dump())})


def _detectron2(state: State, spec: Backbone) -> bytes:
    """Names without a model's prefix, which detectron2 matches by their ends: the same file serves
    C4, whose res5 is in the head, and FPN."""
    prefix = "backbone.bottom_up."
    named = {weights.detectron2_name(k, "fpn").removeprefix(prefix): v for k, v in state.items()}
    # no .pkl: arrays pickled by NumPy 2 cannot be read with NumPy before 1.26
    return _pth({"model": named, "__author__": "lewel-bench", "matching_heuristics": True})


def _mmseg(state: State, spec: Backbone) -> bytes:
    return _pth({"meta": {}, "state_dict": weights.to_mmseg(state, spec)})


def _any(spec: Backbone) -> bool:
    return True


def _stem_7x7(spec: Backbone) -> bool:
    return spec.stem == "imagenet" and not unusual(spec)


def _detectron2_builds(spec: Backbone) -> bool:
    """Its basic blocks have one width; other stems than 7x7 it has none."""
    return _stem_7x7(spec) and (spec.width == 64 or spec.arch not in ("resnet18", "resnet34"))


def _width_64(spec: Backbone) -> bool:
    return _stem_7x7(spec) and spec.width == 64


def _how_torchvision(spec: Backbone) -> str:
    return (
        f"net = torchvision.models.{spec.arch}()\n"
        "net.fc = torch.nn.Identity()  # the file has no classifier\n"
        'net.load_state_dict(torch.load("{out}", weights_only=True))'
    )


def _how_safetensors(spec: Backbone) -> str:
    kind = f"# {spec.arch}, stem {spec.stem}, width {spec.width}{unusual(spec)}"
    kind += "; torchvision's names\n"
    return kind + 'state = safetensors.torch.load_file("{out}")'


def _how_timm(spec: Backbone) -> str:
    return f'net = timm.create_model("{spec.arch}", num_classes=0, checkpoint_path="{{out}}")'


def _how_detectron2(spec: Backbone) -> str:
    return (
        'cfg.MODEL.WEIGHTS = "{out}"\n'
        f"cfg.MODEL.RESNETS.DEPTH = {spec.depth}\n"
        f"cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = {spec.width}\n"
        f"cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = {spec.width * spec.expansion}\n"
        f"cfg.MODEL.RESNETS.WIDTH_PER_GROUP = {spec.width}\n"
        "cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # torchvision's place of the stride\n"
        'cfg.MODEL.RESNETS.NORM = "SyncBN"  # or "BN"; trained, as the statistics are not frozen\n'
        f'cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", {MEAN}, {STD}'
    )


def _how_mmseg(spec: Backbone) -> str:
    return (
        'load_from = "{out}"\n'
        f'backbone = dict(type="ResNet", depth={spec.depth}, stem_channels={spec.width}, '
        f'base_channels={spec.width}, style="pytorch")\n'
        f"data_preprocessor = dict(bgr_to_rgb=True, mean={list(MEAN)}, std={list(STD)})"
    )


FORMATS = {
    "torchvision": Format(".pth", _torchvision, _width_64, _how_torchvision),
    "safetensors": Format(".safetensors", _safetensors, _any, _how_safetensors),
    "timm": Format(".safetensors", _safetensors, _width_64, _how_timm),
    "detectron2": Format(".pth", _detectron2, _detectron2_builds, _how_detectron2),
    "mmseg": Format(".pth", _mmseg, _stem_7x7, _how_mmseg),
}
