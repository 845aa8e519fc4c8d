"""Checkpoints as the projects document them, made of small networks with random statistics."""

import argparse
import collections
import pickle
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lewel_bench.evals import weights
from lewel_bench.pretrain import backbone
from lewel_bench.pretrain.recipe import Backbone

State = dict[str, Tensor]
SMALL = Backbone(arch="resnet18", width=8)
DEEP = Backbone(arch="resnet50", width=4)


def state(seed: int, spec: Backbone = SMALL) -> State:
    """Random weights whose batch norms say something."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for key, value in backbone.build(spec).state_dict().items():
        if key.endswith("num_batches_tracked"):
            made[key] = torch.tensor(seed + 7)
        elif key.endswith("running_var"):
            made[key] = torch.rand(value.shape, generator=generator) + 0.5
        else:
            made[key] = torch.randn(value.shape, generator=generator) * 0.1
    return made


def within(prefix: str, result: State, **heads: tuple[int, ...]) -> State:
    """A network behind a prefix, and heads of some shapes beside it."""
    more = {f"{prefix}{name.replace('__', '.')}": torch.ones(s) for name, s in heads.items()}
    return {**{f"{prefix}{key}": value for key, value in result.items()}, **more}


def plain(**named: tuple[int, ...]) -> State:
    """Further tensors of a file, by name with two underscores for a dot."""
    return {name.replace("__", "."): torch.ones(size) for name, size in named.items()}


def wrapped(result: State) -> State:
    """Behind DistributedDataParallel."""
    return collections.OrderedDict((f"module.{key}", value) for key, value in result.items())


def optimizer(result: State) -> dict[str, Any]:
    """The state of an optimizer that has made a step."""
    parameter = torch.nn.Parameter(torch.ones(len(result)))
    made = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    parameter.sum().backward()  # type: ignore[no-untyped-call]
    made.step()
    return made.state_dict()


def _trained(result: State, **more: Any) -> dict[str, Any]:
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": wrapped(result),
        "optimizer": optimizer(result),
        **more,
    }


class Layout(NamedTuple):
    """What a file holds when its network has state `a` (and its second one `b`); the format and
    network that are recognised, and what its second network is called."""

    content: Callable[[State, State], Any]
    format: str
    network: str
    second: str = ""
    write: str = "torch"


def _moco(a: State, b: State) -> Any:
    result = {
        **within("encoder_q.", a, fc__0__weight=(4, 4), fc__2__bias=(4,)),
        **within("encoder_k.", b, fc__0__weight=(4, 4), fc__2__bias=(4,)),
        **plain(queue=(4, 8), queue_ptr=(1,)),
    }
    return _trained(result)


def _moco_v1(a: State, b: State) -> Any:
    return _trained({**within("encoder_q.", a, fc__weight=(4, 4)), **plain(queue=(4, 8))})


def _resim(a: State, b: State) -> Any:
    result = _moco(a, b)
    result["state_dict"]["module.encoder_q.fpn_lateral4.weight"] = torch.ones(3)
    result["state_dict"]["module.encoder_k.fpn_lateral4.weight"] = torch.ones(3)
    return result


def _lewel(a: State, b: State) -> Any:
    heads = {"proj__mlp__0__weight": (4, 4, 1), "proj_obj__mlp__0__weight": (4, 4, 1)}
    result = {
        **within("online_net.backbone.", a),
        **within("target_net.backbone.", b),
        **within("online_net.neck.", {}, **heads),
        **within("target_net.neck.", {}, **heads),
        **plain(predictor__mlp__0__weight=(4, 4, 1), predictor_obj__mlp__0__weight=(4, 4, 1)),
    }
    return _trained(result, best_acc1=0.0, scaler=None)


def _eman(a: State, b: State) -> Any:
    result = {
        **within("online_net.backbone.", a),
        **within("target_net.backbone.", b),
        **plain(online_net__neck__mlp__0__weight=(4, 4), target_net__neck__mlp__0__weight=(4, 4)),
        **plain(predictor__mlp__0__weight=(4, 4)),
    }
    return _trained(result, best_acc1=0.0)


def _simsiam(a: State, b: State) -> Any:
    heads = within("encoder.", a, fc__0__weight=(4, 4), fc__7__running_mean=(4,))
    return _trained({**heads, **plain(predictor__0__weight=(4, 4))})


def _swav(a: State, b: State) -> Any:
    heads = {"projection_head__0__weight": (4, 4), "prototypes__weight": (9, 4)}
    return wrapped(within("", a, **heads))


def _barlow(a: State, b: State) -> Any:
    result = {**within("backbone.", a), **plain(projector__0__weight=(4, 4), bn__running_mean=(4,))}
    return {"epoch": 1000, "model": wrapped(result), "optimizer": optimizer(result)}


def _pixpro(a: State, b: State) -> Any:
    result = {
        **within("encoder.", a),
        **within("encoder_k.", b),
        **plain(projector__linear1__weight=(4, 4), projector_k__linear1__weight=(4, 4)),
        **plain(value_transform__weight=(4, 4)),
    }
    return {"opt": argparse.Namespace(lr=1.0), "model": wrapped(result), "epoch": 100}


def _pycontrast(a: State, b: State) -> Any:
    return {
        "model": wrapped({**within("encoder.", a), **plain(head__0__weight=(4, 4))}),
        "model_ema": {**within("encoder.", b), **plain(head__0__weight=(4, 4))},
        "contrast": plain(memory=(4, 4)),
        "optimizer": optimizer(a),
        "epoch": 240,
    }


class NCEAverage(torch.nn.Module):
    """Stands for lemniscate's memory, which its authors save as an object."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.ones(4, 4))


def _instdisc(a: State, b: State) -> Any:
    module = types.ModuleType("lib.NCEAverage")
    memory = NCEAverage()
    try:
        sys.modules |= {"lib": types.ModuleType("lib"), "lib.NCEAverage": module}
        NCEAverage.__module__ = "lib.NCEAverage"
        module.NCEAverage = NCEAverage  # type: ignore[attr-defined]
        return pickle_safe(_trained(within("", a, fc__weight=(4, 4)), lemniscate=memory))
    finally:
        del sys.modules["lib"], sys.modules["lib.NCEAverage"]


class Saved(NamedTuple):
    """Bytes that torch.save has already made."""

    content: bytes


def pickle_safe(content: Any) -> Saved:
    """What torch.save makes of `content` now."""
    import io

    file = io.BytesIO()
    torch.save(content, file)
    return Saved(file.getvalue())


def _densecl(a: State, b: State) -> Any:
    result = {
        **within("encoder_q.0.", a),
        **within("encoder_k.0.", b),
        **within("backbone.", a),
        **plain(encoder_q__1__mlp__0__weight=(4, 4), encoder_k__1__mlp__0__weight=(4, 4)),
        **plain(queue=(4, 8), queue_ptr=(1,), queue2=(4, 8), queue2_ptr=(1,)),
    }
    return {"meta": {"epoch": 200, "mmcv_version": "0.2"}, "state_dict": result}


def _openselfsup(a: State, b: State) -> Any:
    result = {
        **within("online_net.0.", a),
        **within("target_net.0.", b),
        **within("backbone.", a),
        **plain(online_net__1__fc0__weight=(4, 4), target_net__1__fc0__weight=(4, 4)),
        **plain(head__predictor__fc0__weight=(4, 4)),
    }
    return {"meta": {"epoch": 200}, "state_dict": result}


def _vissl(a: State, b: State) -> Any:
    model = {
        "trunk": within("_feature_blocks.", a),
        "heads": plain(**{"0__clf__0__weight": (4, 4)}),
    }
    return {
        "phase_idx": 100,
        "classy_state_dict": {
            "base_model": {"model": model, "meta": {}},
            "optimizer": optimizer(a),
        },
    }


def _mmselfsup(a: State, b: State) -> Any:
    result = {
        **within("backbone.", a),
        **within("target_net.module.0.", b),
        **plain(neck__fc0__weight=(4, 4), target_net__module__1__fc0__weight=(4, 4)),
        **plain(head__predictor__fc0__weight=(4, 4), target_net__steps=()),
    }
    history = {"loss": np.ones(3), "scale": np.float64(2.5), "count": np.int64(3)}
    return {"meta": {"epoch": 200, "time": "now"}, "state_dict": result, "message_hub": history}


def _mmpretrain(a: State, b: State) -> Any:
    return {
        "meta": {"dataset_meta": {"classes": ["a", "b"]}},
        "state_dict": {**within("backbone.", a), **plain(head__fc__weight=(4, 4))},
    }


def _lightning(result: State) -> dict[str, Any]:
    return {
        "epoch": 399,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": result,
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}},
        "optimizer_states": [optimizer(result)],
        "hyper_parameters": {"lr": 0.3, "namespace": argparse.Namespace(method="byol")},
    }


def _solo_learn(a: State, b: State) -> Any:
    result = {
        **within("backbone.", a),
        **within("momentum_backbone.", b),
        **plain(classifier__weight=(4, 4), projector__0__weight=(4, 4)),
        **plain(momentum_projector__0__weight=(4, 4), predictor__0__weight=(4, 4)),
    }
    return _lightning(result)


def numbered(result: State) -> State:
    """Names within nn.Sequential(*list(resnet.children())[:-1])."""
    made = {}
    for key, value in result.items():
        first, rest = key.split(".", 1)
        index = {"conv1": 0, "bn1": 1}.get(first)
        index = int(first[-1]) + 3 if index is None else index
        made[f"{index}.{rest}"] = value
    return made


def _lightly(a: State, b: State) -> Any:
    result = {
        **within("backbone.", numbered(a)),
        **within("backbone_momentum.", numbered(b)),
        **plain(projection_head__layers__0__weight=(4, 4)),
        **plain(projection_head_momentum__layers__0__weight=(4, 4)),
    }
    return _lightning(result)


def _stable_pretraining(a: State, b: State) -> Any:
    result = {
        **within("backbone.teacher.", a),
        **within("backbone.student.", b),
        **plain(projector__0__weight=(4, 4), callbacks_modules__linear_probe__weight=(4, 4)),
        **plain(callbacks_metrics__linear_probe__top1=()),
    }
    return _lightning(result)


def transformers(result: State) -> State:
    """Names of transformers' ResNet, as microsoft/resnet-18 has them."""
    made = {}
    for key, value in result.items():
        name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", key)
        name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
        name = re.sub(r"^layer(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.", name)
        name = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", name)
        name = re.sub(r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization.", name)
        name = name.replace("downsample.0", "shortcut.convolution")
        made[f"resnet.{name.replace('downsample.1', 'shortcut.normalization')}"] = value
    return made


def compiled(result: State) -> State:
    """Of a module that torch.compile has wrapped."""
    return {f"_orig_mod.{key}": value for key, value in result.items()}


def _moco_compiled(a: State, b: State) -> Any:
    """Of a MoCo whose two encoders were compiled, in DistributedDataParallel."""
    result = {
        **within("encoder_q.", compiled(within("", a, fc__0__weight=(4, 4)))),
        **within("encoder_k.", compiled(within("", b, fc__0__weight=(4, 4)))),
        **plain(queue=(4, 8), queue_ptr=(1,)),
    }
    return _trained(result)


def _dino_compiled(a: State, b: State) -> Any:
    """A compiled student beside a plain teacher."""
    result = _dino(a, b)
    result["student"] = wrapped(
        compiled({name.removeprefix("module."): entry for name, entry in result["student"].items()})
    )
    return result


def _fsdp(a: State, b: State) -> Any:
    """Of blocks in FSDP and in activation checkpointing."""
    result = {
        re.sub(r"^(layer\d\.\d)\.", r"\1._checkpoint_wrapped_module.", key): value
        for key, value in a.items()
    }
    return {"model": {f"_fsdp_wrapped_module.{key}": value for key, value in result.items()}}


def _ema_hook(a: State, b: State) -> Any:
    """Of mmcv's EMAHook, which registers a copy of each parameter."""
    result = _mmpretrain(a, b)
    copies = {f"ema_backbone_{key.replace('.', '_')}": value for key, value in b.items()}
    result["state_dict"] |= {k: v for k, v in copies.items() if "running" not in k}
    return result


def _dino(a: State, b: State) -> Any:
    head = plain(head__mlp__0__weight=(4, 4), head__last_layer__weight_g=(4, 1))
    return {
        "teacher": {**within("backbone.", a), **head},
        "student": wrapped({**within("backbone.", b), **head}),
        "optimizer": optimizer(a),
        "epoch": 800,
        "args": argparse.Namespace(arch="resnet50", output_dir=Path(".")),
        "dino_loss": plain(center=(1, 4)),
    }


def staged(result: State) -> State:
    """Names as detectron2's converters write them; its files have no counters."""
    return {
        weights.detectron2_name(key, "fpn").removeprefix("backbone.bottom_up."): value
        for key, value in result.items()
        if not key.endswith("num_batches_tracked")
    }


def _detectron2(a: State, b: State) -> Any:
    arrays = {key: value.numpy() for key, value in staged(a).items()}
    arrays["stem.fc.0.weight"] = np.ones((4, 4), np.float32)
    return {"model": arrays, "__author__": "MOCO", "matching_heuristics": True}


def caffe2(result: State) -> dict[str, Any]:
    """Arrays by Caffe2's names, as MSRA's networks came to detectron2."""
    arrays = {}
    for key, value in staged(result).items():
        name = key.replace("stem.conv1.norm", "res.conv1.bn").replace("stem.", "")
        name = name.replace("shortcut.norm", "branch1.bn").replace("shortcut", "branch1")
        if not name.startswith(("conv1", "res.conv1")):
            name = re.sub(r"conv([123])\.norm", r"conv\1.bn", name)
            name = re.sub(r"conv([123])", lambda m: f"branch2{'abc'[int(m[1]) - 1]}", name)
        for actual, theirs in (
            *(("bn.weight", "bn_s"), ("bn.bias", "bn_b"), ("bn.running_mean", "bn_rm")),
            *(("bn.running_var", "bn_riv"), ("weight", "w")),
        ):
            name = name.removesuffix(actual) + theirs if name.endswith(actual) else name
        arrays[name.replace(".", "_")] = value.numpy()
    return {**arrays, "fc1000_w": np.ones((4, 4), np.float32), "conv1_b": np.ones(4, np.float32)}


LAYOUTS = {
    "torchvision": Layout(lambda a, b: within("", a, fc__weight=(4, 4)), "torchvision", "backbone"),
    "a backbone alone": Layout(lambda a, b: dict(a), "torchvision", "backbone"),
    "before torch 1.6": Layout(lambda a, b: dict(a), "torchvision", "backbone", write="old"),
    "extracted": Layout(
        lambda a, b: {"state_dict": dict(a), "author": "OpenSelfSup"}, "torchvision", "backbone"
    ),
    "timm": Layout(
        lambda a, b: within("", a, fc__bias=(4,)), "torchvision", "backbone", write="safetensors"
    ),
    "moco v1": Layout(_moco_v1, "moco", "query"),
    "moco v2": Layout(_moco, "moco", "query", "key"),
    "resim": Layout(_resim, "resim", "query", "key"),
    "lewel": Layout(_lewel, "lewel", "online", "target"),
    "eman": Layout(_eman, "eman", "online", "target"),
    "simsiam": Layout(_simsiam, "simsiam", "online"),
    "swav": Layout(_swav, "swav", "backbone"),
    "barlow twins": Layout(_barlow, "barlow_twins", "online"),
    "pixpro": Layout(_pixpro, "pixpro", "online", "target"),
    "pycontrast": Layout(_pycontrast, "pycontrast", "online", "momentum"),
    "instdisc": Layout(_instdisc, "instdisc", "backbone"),
    "densecl": Layout(_densecl, "densecl", "query", "key"),
    "openselfsup": Layout(_openselfsup, "openselfsup", "online", "target"),
    "vissl": Layout(_vissl, "vissl", "trunk"),
    "mmselfsup": Layout(_mmselfsup, "mmselfsup", "online", "target"),
    "mmcv's moving average": Layout(_ema_hook, "mmselfsup", "online"),
    "stable-pretraining, two networks": Layout(
        _stable_pretraining, "stable_pretraining", "teacher", "student"
    ),
    "transformers": Layout(
        lambda a, b: transformers(a) | plain(classifier__1__weight=(4, 4)),
        *("transformers", "backbone"),
        write="safetensors",
    ),
    "sequential": Layout(lambda a, b: numbered(a), "sequential", "whole"),
    "sequential in a model": Layout(
        lambda a, b: within("backbone.", numbered(a)) | plain(projection_head__0__weight=(4, 4)),
        *("sequential", "backbone"),
    ),
    "compiled": Layout(lambda a, b: wrapped(compiled(a)), "torchvision", "backbone"),
    "compiled moco": Layout(_moco_compiled, "moco", "query", "key"),
    "compiled dino": Layout(_dino_compiled, "dino", "teacher", "student"),
    "fsdp": Layout(_fsdp, "torchvision", "backbone"),
    "mmpretrain": Layout(_mmpretrain, "mmselfsup", "online"),
    "solo-learn": Layout(_solo_learn, "solo_learn", "online", "momentum"),
    "lightly": Layout(_lightly, "lightly", "backbone", "momentum"),
    "timm's training": Layout(
        lambda a, b: {"state_dict": b, "state_dict_ema": a, "epoch": 3, "arch": "resnet18"},
        *("timm_training", "ema", "model"),
    ),
    "torchvision's training": Layout(
        lambda a, b: {"model": wrapped(a), "model_ema": wrapped(b) | plain(n_averaged=())},
        *("torchvision_training", "model", "ema"),
    ),
    "dino": Layout(_dino, "dino", "teacher", "student"),
    "caffe2": Layout(lambda a, b: {"blobs": caffe2(a)}, "caffe2", "backbone", write="pickle"),
    "detectron2": Layout(_detectron2, "detectron2", "backbone", write="pickle"),
}


def write(path: Path, content: Any, how: str = "torch") -> Path:
    """A file as the project's own code writes it."""
    if isinstance(content, Saved):
        path.write_bytes(content.content)
    elif how == "safetensors":
        save_file(content, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    return path
