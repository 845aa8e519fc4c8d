"""Checkpoints that the authors of LEWEL, EMAN and MoCo publish, as our methods: encoder f and
projector g of the online network, which is all that their maps need."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lewel_bench.pretrain import methods
from lewel_bench.pretrain.method import Method
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.recipes import RECIPES


class Layout(NamedTuple):
    """How a project names f and g; `recipe` is one whose heads and views are its own."""

    recipe: str
    f: str
    g: str
    source: str


LAYOUTS = {
    "LEWEL": Layout(
        "lewel_b_200ep",
        "online_net.backbone.",
        "online_net.neck.proj.mlp.",
        "LayneH/LEWEL @4ee47eb models/lewel.py",
    ),
    "EMAN": Layout(
        "byol_200ep",
        "online_net.backbone.",
        "online_net.neck.mlp.",
        "amazon-science/exponential-moving-average-normalization @f79248b models/byol.py",
    ),
    "MoCo v2": Layout(
        "moco_v2_200ep",
        "encoder_q.",
        "encoder_q.fc.",
        "facebookresearch/moco @7397dfe moco/builder.py",
    ),
}


def read(path: Path) -> tuple[str, Recipe, Method]:
    """The project whose checkpoint `path` is, the recipe that it is read by, and the method with
    the weights of f and g; nothing else of the method means anything.

    No code of the file is executed. Raises ValueError for a file in none of the layouts, or whose
    weights are not those of the recipe.
    """
    state = _state(path)
    for project, layout in LAYOUTS.items():
        f, g = {}, {}
        for name, value in state.items():
            if name.startswith(layout.g):
                # Conv1d of one tap in LEWEL, a Linear here
                g[name.removeprefix(layout.g)] = value.squeeze(-1) if value.ndim == 3 else value
            elif name.startswith(layout.f):
                f[name.removeprefix(layout.f)] = value
        if f and g:
            return project, RECIPES[layout.recipe], _filled(path, layout, f, g)
    shown = ", ".join(list(state)[:3])
    known = ", ".join(f"{name} ({one.g}*)" for name, one in LAYOUTS.items())
    raise ValueError(
        f"{path}: no projector of a layout that is known here, {known}; its first names are {shown}"
    )


def _filled(path: Path, layout: Layout, f: dict[str, Tensor], g: dict[str, Tensor]) -> Method:
    method = methods.build(RECIPES[layout.recipe], 0)
    assert method.projector is not None
    try:
        method.backbone.load_state_dict(f)
        method.projector.load_state_dict(g)
    except RuntimeError as error:  # names and shapes that differ, a line each
        lines = str(error).splitlines()[1:]
        raise ValueError(
            f"{path}: its weights are not those of {layout.recipe} ({layout.source}): "
            f"{' '.join(line.strip() for line in lines[:2])}"
        ) from None
    return method


def _state(path: Path) -> Mapping[str, Tensor]:
    """The tensors in a file by name, without the prefix of DistributedDataParallel."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch's reader raises whatever it runs into, and advises to execute it
        raise ValueError(
            f"{path} is no file of plain tensors that PyTorch can read, or is cut off. Nothing in "
            "a file is executed here: if it holds Python objects too, save its state_dict alone"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    named = state.items() if isinstance(state, Mapping) else ()
    found = {str(k): v for k, v in named if isinstance(v, Tensor)}
    if not found:
        raise ValueError(f"{path} holds no weights by name")
    return {name.removeprefix("module."): value for name, value in found.items()}
