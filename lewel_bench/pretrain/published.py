"""Checkpoints that the authors of LEWEL, EMAN and MoCo publish, as our methods: encoder f and
projector g of the online network, which is all that their maps need."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

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


def read(
    path: Path,
    names: Mapping[str, str],
    tensors: Callable[[Collection[str]], Mapping[str, Tensor]],
) -> tuple[str, Recipe, Method]:
    """The project that the checkpoint `path` is from, the recipe to read it by, and the method with
    the weights of f and g; the rest of the method stays untrained.

    `names` maps each tensor's name without wrapper prefixes to its name in the file; `tensors`
    reads tensors by the latter. Raises ValueError for a file in none of the layouts, or whose
    weights do not match the recipe.
    """
    root = "state_dict."
    below = {n.removeprefix(root): file for n, file in names.items() if n.startswith(root)} or names
    for project, layout in LAYOUTS.items():
        f = {n.removeprefix(layout.f): n for n in below if n.startswith(layout.f)}
        g = {n.removeprefix(layout.g): n for n in below if n.startswith(layout.g)}
        f = {short: name for short, name in f.items() if not name.startswith(layout.g)}
        if f and g:
            values = tensors([below[name] for name in (*f.values(), *g.values())])
            of_f = {short: values[below[name]] for short, name in f.items()}
            # Conv1d of one tap in LEWEL, a Linear here
            of_g = {
                short: value.squeeze(-1) if (value := values[below[name]]).ndim == 3 else value
                for short, name in g.items()
            }
            return project, RECIPES[layout.recipe], _filled(path, layout, of_f, of_g)
    shown = ", ".join(list(below)[:3]) or "none"
    known = ", ".join(f"{name} ({layout.g}*)" for name, layout in LAYOUTS.items())
    raise ValueError(
        f"{path}: no projector in a known layout (known: {known}); first tensor names: {shown}"
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
            f"{path}: the weights do not match {layout.recipe} ({layout.source}): "
            f"{' '.join(line.strip() for line in lines[:2])}"
        ) from None
    return method
