"""The official code, imported from outside, and the conversion of its names and weights to ours.

Nothing of it is in this repository (LEWEL, EMAN and ReSim are CC-BY-NC).
`$LEWEL_BENCH_REFERENCE` is a folder with work trees `lewel` (LayneH/LEWEL @4ee47eb), `eman`
(amazon-science/exponential-moving-average-normalization @f79248b), `moco`
(facebookresearch/moco @7397dfe), `cmc` (HobbitLong/CMC @7b227be), `pcl` (salesforce/PCL @964da1f),
`pixpro` (zdaxie/PixPro @e390d6b) and `resim` (Tete-Xiao/ReSim @b6a36ee).
"""

import contextlib
import importlib
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch import distributed as dist

from lewel_bench.pretrain import methods, optim
from lewel_bench.pretrain.recipe import Backbone, Ema, Optimizer, Recipe

VARIABLE = "LEWEL_BENCH_REFERENCE"


def folder(name: str) -> Path | None:
    """The folder of the repository `name`, None if it is missing."""
    path = Path(os.environ.get(VARIABLE, "")) / name
    return path if VARIABLE in os.environ and path.is_dir() else None


def load(name: str, *modules: str) -> list[Any]:
    """Modules of the repository `name`; its generic names (utils, models) are forgotten again."""
    root = folder(name)
    assert root is not None, f"{VARIABLE} has no {name}"
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    try:
        return [importlib.import_module(m) for m in modules]
    finally:
        sys.path.remove(str(root))
        for module in set(sys.modules) - before:
            if str(root) in str(getattr(sys.modules[module], "__file__", None) or root):
                del sys.modules[module]


RULES = {
    "lewel": [
        (r"^online_net\.neck\.proj\.mlp\.", "online.g."),
        (r"^online_net\.neck\.proj_obj\.mlp\.", "online.p."),
        (r"^online_net\.", "online."),
        (r"^target_net\.neck\.proj\.mlp\.", "target.network.g."),
        (r"^target_net\.neck\.proj_obj\.mlp\.", "target.network.p."),
        (r"^target_net\.", "target.network."),
        (r"^predictor\.mlp\.", "q."),
        (r"^predictor_obj\.mlp\.", "s."),
    ],
    "eman": [
        (r"^online_net\.neck\.mlp\.", "online.g."),
        (r"^online_net\.", "online."),
        (r"^target_net\.neck\.mlp\.", "target.network.g."),
        (r"^target_net\.", "target.network."),
        (r"^predictor\.mlp\.", "q."),
    ],
    "moco": [
        (r"^encoder_q\.fc\.", "online.g."),
        (r"^encoder_q\.", "online.backbone."),
        (r"^encoder_k\.fc\.", "target.network.g."),
        (r"^encoder_k\.", "target.network.backbone."),
        (r"^queue$", "queue.keys"),
    ],
}


def name(repository: str, theirs: str) -> str:
    """Our name of a tensor that the repository calls `theirs`; ValueError for an unknown one."""
    for pattern, replacement in RULES[repository]:
        if re.match(pattern, theirs):
            return re.sub(pattern, replacement, theirs)
    raise ValueError(f"{repository} has no name {theirs!r} that we know")


def converted(repository: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The repository's tensors with our names and shapes: Conv1d heads and the queue differ."""
    renamed = {}
    for theirs, value in tensors.items():
        if theirs != "queue_ptr":  # ours follows from the step
            value = value.T if theirs == "queue" else value
            renamed[name(repository, theirs)] = value.squeeze(-1) if value.ndim == 3 else value
    return renamed


def fill(repository: str, model: nn.Module) -> None:
    """Give every tensor of the official model a value by formula, equal in online and target.

    Philox bits keyed by the tensor's name: the same on every machine and for every implementation.
    """
    with torch.no_grad():
        for theirs, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            own = name(repository, theirs).replace("target.network", "online")
            tensor.copy_(formula(own, tensor.shape).to(tensor))
            if theirs == "queue":
                tensor.copy_(nn.functional.normalize(tensor, dim=0))


def noise(key: str, *shape: int) -> Tensor:
    """Uniform numbers in (-1, 1) in double precision that `key` and the shape determine."""
    bits = np.random.Philox(key=zlib.crc32(key.encode())).random_raw(prod(shape))
    return torch.from_numpy(bits / 2.0**63 - 1).view(shape)


def formula(own: str, shape: torch.Size) -> Tensor:
    """The value of the tensor that we call `own`."""
    wave = noise(own, *shape)
    if own.endswith("running_var"):
        return 1 + 0.2 * wave
    if len(shape) == 1:
        return 1 + 0.1 * wave if own.endswith("weight") else 0.1 * wave
    fan_out = shape.numel() // shape[1]
    return wave * (6 / fan_out) ** 0.5  # kaiming: variance 2 / fan_out


def views(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Two views (count, 3, size, size) by formula; the second is a distorted first."""
    coarse = noise("image", count, 3, 4, 4).repeat_interleave(size // 4, 2)
    x = 2 * coarse.repeat_interleave(size // 4, 3) + noise("first", count, 3, size, size)
    return x, 0.7 * x + noise("second", count, 3, size, size)


STEPS, TOTAL = 2, 10  # steps of a trace, of the run it pretends to be part of
BATCH, SIZE, HIDDEN, DIM, QUEUE, SEED = 4, 48, 64, 32, 12, 0


@dataclass(frozen=True)
class Case:
    """One official class, and our recipe for the same."""

    repository: str
    official: str
    method: str
    args: dict[str, int | float]
    ema: Ema
    optimizer: Optimizer


def _lars() -> Optimizer:
    return Optimizer(name="lars", lr=1.8, weight_decay=1e-3, exclude="bias_and_norm")


def _ema(buffers: bool) -> Ema:
    return Ema(start=0.8, schedule="cosine", buffers=buffers)


_HEAD: dict[str, int | float] = {"hidden": HIDDEN}
_LEWEL: dict[str, int | float] = {**_HEAD, "d": DIM, "h": 4, "beta": 0.3, "scale": 0.5}
_BYOL: dict[str, int | float] = {**_HEAD, "dim": DIM}
_MOCO: dict[str, int | float] = {"hidden": 512, "dim": DIM, "queue": QUEUE, "tau": 0.2}
CASES = {
    "lewel_b_eman": Case("lewel", "LEWELB_EMAN", "lewel_b", _LEWEL, _ema(True), _lars()),
    "lewel_b_sync": Case("lewel", "LEWELB", "lewel_b", _LEWEL, _ema(False), _lars()),
    "byol_eman": Case("eman", "BYOLEMAN", "byol", _BYOL, _ema(True), _lars()),
    "byol_sync": Case("eman", "BYOL", "byol", _BYOL, _ema(False), _lars()),
    "moco_v2": Case(
        "moco",
        "MoCo",
        "moco_v2",
        _MOCO,
        Ema(start=0.8),
        Optimizer(name="sgd", lr=0.03, weight_decay=1e-3),
    ),
}


@dataclass
class Step:
    """The results of one training step, by our names."""

    loss: Tensor
    gradient: dict[str, Tensor]
    state: dict[str, Tensor]  # after the optimizer, the momentum network and the queue


def recipe(case: Case, bn_group: int | None = None) -> Recipe:
    return Recipe(
        name="parity",
        label="parity",
        source=f"{case.repository} {case.official}",
        method=case.method,
        args=dict(case.args),
        backbone=Backbone(arch="resnet18"),
        epochs=1,
        batch=BATCH,
        bn_group=bn_group,
        optimizer=case.optimizer,
        ema=case.ema,
        augment="moco_v2",
    )


def run_local(
    case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype, steps: int = STEPS
) -> list[Step]:
    """The trace of our method from `weights` (our names)."""
    method = methods.build(recipe(case), SEED).to(dtype).train()
    method.load_state_dict(dict(weights))
    optimizer = optim.build(case.optimizer, method)
    pair = tuple(x.to(dtype) for x in views(SIZE, BATCH))
    trace = []
    for step in range(steps):
        keys = method.keys(pair, step)
        loss, _ = method(pair, keys, slice(0, BATCH))
        optimizer.zero_grad()
        loss.backward()
        gradient = {k: p.grad.clone() for k, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        method.after_step(keys, step, TOTAL)
        state = {k: v.clone() for k, v in method.state_dict().items()}
        trace.append(Step(loss.detach(), gradient, state))
    return trace


def build(case: Case) -> nn.Module:
    """The official model with weights by formula, in training mode, in double precision."""
    if case.repository == "moco":
        (builder,) = load("moco", "moco.builder")
        m = case.ema.start
        model = builder.MoCo(torchvision.models.resnet18, DIM, QUEUE, m, 0.2, mlp=True)
    elif case.repository == "eman":
        byol, resnet = load("eman", "models.byol", "backbone.resnet")
        kind = getattr(byol, case.official)
        model = kind(resnet.resnet18_encoder, dim=DIM, m=case.ema.start, hid_dim=HIDDEN)
    else:
        lewel, resnet = load("lewel", "models.lewel", "backbone.resnet")
        model = getattr(lewel, case.official)(
            resnet.resnet18_encoder,
            dim=DIM,
            m=case.ema.start,
            hid_dim=HIDDEN,
            scale=case.args["scale"],
            num_heads=case.args["h"],
            loss_weight=1 - case.args["beta"],  # the code's weight is that of the global loss
        )
    model = model.double()
    fill(case.repository, model)
    model.train()
    if case.ema.buffers:
        model.target_net.eval()  # as main.py does for EMAN
    return model


def run_official(
    case: Case, model: nn.Module, dtype: torch.dtype, steps: int = STEPS
) -> list[Step]:
    """The trace of the official model with its own optimizer and momentum update."""
    model = model.to(dtype)
    optimizer = _official_optimizer(case, model)
    pair = tuple(x.to(dtype) for x in views(SIZE, BATCH))
    trace = []
    for step in range(steps):
        loss = model(*pair)
        if case.repository == "moco":
            loss = nn.functional.cross_entropy(*loss)
        optimizer.zero_grad()
        loss.backward()
        gradient = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        after = model
        if case.repository == "moco":
            after = deepcopy(model)  # MoCo updates before the next keys, we after this step
            after._momentum_update_key_encoder()
        else:
            model.momentum_update(step, TOTAL)
        state = {k: v.clone() for k, v in after.state_dict().items()}
        repository = case.repository
        trace.append(
            Step(loss.detach(), converted(repository, gradient), converted(repository, state))
        )
    return trace


def _official_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    spec = case.optimizer
    if spec.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay
        )
    (lars,) = load(case.repository, "utils.LARS")
    marks = ("bn", "downsample.1", "bias", "mlp.1")  # collect_params of LEWEL's main.py, EMAN archs
    named = [(k, p) for k, p in model.named_parameters() if p.requires_grad]
    excluded = [p for k, p in named if any(m in k for m in marks)]
    decayed = [p for k, p in named if not any(m in k for m in marks)]
    groups = [
        {"params": excluded, "weight_decay": 0.0, "lars_exclude": True},
        {"params": decayed},
    ]
    return lars.LARS(groups, spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Lets MoCo's code run on the CPU: in a gloo group, its `.cuda()` staying where it is."""
    cuda, alone = torch.Tensor.cuda, not dist.is_initialized()
    with tempfile.TemporaryDirectory() as scratch:
        if alone:
            where = f"file://{scratch}/rendezvous"
            dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
        torch.Tensor.cuda = lambda self, *_, **__: self
        try:
            yield
        finally:
            torch.Tensor.cuda = cuda
            if alone:
                dist.destroy_process_group()


def weights(case: Case) -> dict[str, Tensor]:
    """The weights by formula for our method, without the official code."""
    state = methods.build(recipe(case), SEED).double().state_dict()
    filled = {}
    for key, tensor in state.items():
        if key == "queue.keys":
            filled[key] = nn.functional.normalize(formula(key, tensor.T.shape).T, dim=1)
        elif tensor.is_floating_point():
            filled[key] = formula(key.replace("target.network", "online"), tensor.shape)
        else:
            filled[key] = tensor
    return filled


def summary(trace: list[Step]) -> dict[str, Any]:
    """A trace as numbers: norm and projection on a noise of each gradient and each network."""
    first, last = trace[0], trace[-1]
    parts: dict[str, list[float]] = {}
    for key, value in last.state.items():
        if value.is_floating_point():
            norm, projection = _numbers(key, value)
            part = parts.setdefault(key.split(".")[0], [0.0, 0.0])
            part[0] += norm
            part[1] += projection
    return {
        "loss": [step.loss.item() for step in trace],
        "gradient": {k: _numbers(k, g) for k, g in sorted(first.gradient.items())},
        "state": parts,
    }


def _numbers(key: str, value: Tensor) -> list[float]:
    direction = noise(f"direction of {key}", *value.shape)
    return [value.norm().item(), ((value * direction).sum() / direction.norm()).item()]
