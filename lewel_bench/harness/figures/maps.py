"""Figure 5: where the projector of a pre-training points on images of any folder.

B images, V = 2 views, P = h·w positions, d maps.
"""

import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lewel_bench.evals import splits
from lewel_bench.evals.checkpoints import limited, match
from lewel_bench.evals.checkpoints.formats import ALLOWED
from lewel_bench.evals.dataset import Dataset
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.rundir import SPEC, JobDir, missing_weights_message
from lewel_bench.pretrain import checkpoint, methods, published
from lewel_bench.pretrain.augment import distort
from lewel_bench.pretrain.colour import BOX, MEAN, STD
from lewel_bench.pretrain.data import Batch, Images, decode, view_batches
from lewel_bench.pretrain.folder import EXTENSIONS, is_image
from lewel_bench.pretrain.method import Method
from lewel_bench.pretrain.parts.aligned import alignment_maps
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.views import AUGMENTS
from lewel_bench.results import record
from lewel_bench.results.figures.alignment_figure import ImageMaps, View, alignment_figure
from lewel_bench.results.figures.draw import Format
from lewel_bench.value import unknown

ALIKE = 0.9  # a map that correlates more than this with one that is shown adds nothing to it
IMAGES, MAPS = 4, 6  # how many, where no number is asked for and there are as many
CPU = torch.device("cpu")


class Source(NamedTuple):
    """What maps are made by: a method with its weights, as a title names it, and the data set of
    its training (None: it came from elsewhere)."""

    method: Method
    recipe: Recipe
    title: str
    data: Dataset | None


def figure(
    root: Path,
    run: str,
    format: Format,
    *,
    folder: Path | None = None,
    count: int | None = None,
    channels: str | None = None,
    map_count: int | None = None,
    seed: int = 0,
) -> bytes:
    """Figure 5 of a run for `count` images of a folder, with the channels of these numbers, or with
    `map_count` of them. Raises ValueError for a run without a projector."""
    source = _source(run, root)
    if folder:
        images = read_any(folder.expanduser())
    elif source.data:
        images = splits.read(source.data, "val")
    else:
        raise ValueError(f"{run} has no images: name a folder with --images")
    count = min(IMAGES, len(images)) if count is None else count
    if not 1 <= count <= len(images):
        raise ValueError(f"--count {count}: {images.root} has {len(images)} images")
    batch = _drawn(images, source.recipe, count, seed)
    x = torch.stack([distort(batch.pixels[v], batch.params[v], CPU) for v in range(2)])
    W = maps(source.method, x, source.recipe)  # (V, B, d, h, w)
    d = W.shape[2]
    shown = min(MAPS, d) if map_count is None else map_count
    if not 1 <= shown <= d:
        raise ValueError(f"--maps {shown}: {source.title} has {d} maps")
    numbers = _listed(channels, d) if channels else telling(W.flatten(0, 1), shown)
    how = "as requested" if channels else "those that vary most over positions"
    return alignment_figure(
        _shown(images, batch, x, W[:, :, numbers]),
        numbers,
        f"Figure 5. Alignment maps of {source.title}",
        (
            f"Maps of the projector in evaluation mode on both views: {len(numbers)} of "
            f"{d}, {how}. Each is drawn from its smallest to its largest weight; the "
            "number below it is its largest weight as a multiple of the mean (1 is uniform).",
        ),
        format,
    )


def read_any(folder: Path) -> Images:
    """All image files below a folder, in any layout. Raises ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: no such folder")
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if is_image(file.name) and file.is_file() and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"--images {folder}: no image in it ({', '.join(EXTENSIONS)})")
    return Images(folder, tuple(files), np.zeros(len(files), dtype=np.int64), ("",))


@torch.no_grad()
def maps(method: Method, x: Tensor, recipe: Recipe) -> Tensor:
    """Alignment maps (..., d, h, w) of views (..., 3, S, S): the projector at every position."""
    assert method.projector is not None
    method.eval()
    F = method.backbone(x.flatten(0, -4))  # (N, D, h, w)
    heat = method.projector(F.flatten(2).transpose(1, 2))  # (N, P, d)
    W = alignment_maps(heat, float(methods.arguments(recipe).get("scale", 1.0)))
    return W.transpose(1, 2).reshape(*x.shape[:-3], -1, *F.shape[2:])


def telling(W: Tensor, count: int) -> list[int]:
    """The `count` maps of W (N, d, h, w) that vary most over positions, in that order, without
    those that look like one before them as far as there are others."""
    W = W.flatten(2)  # (N, d, P)
    order = W.std(2).mean(0).argsort(descending=True, stable=True).tolist()
    about = W - W.mean(2, keepdim=True)
    flat = torch.nn.functional.normalize(about, dim=2).transpose(0, 1).flatten(1)  # (d, N·P)
    alike = flat @ flat.T / len(W)  # mean correlation
    chosen: list[int] = []
    for k in order:
        if len(chosen) < count and all(alike[k, other] <= ALIKE for other in chosen):
            chosen.append(k)
    rest = [k for k in order if k not in chosen]
    return [*chosen, *rest[: max(0, count - len(chosen))]]


def _source(run: str, root: Path) -> Source:
    """What a key, a run's folder, one of our checkpoints or a published one stands for."""
    path = Path(run).expanduser()
    if path.name in ("backbone.safetensors", checkpoint.PROJECTOR):
        path = path.parent
    named = path if path.is_file() else None
    if named and not checkpoint.is_ours(named):
        with limited.opened(named) as reader:
            content = reader.content(ALLOWED)
            names = match.unwrapped(content.shapes)
            project, recipe, method = published.read(named, names, content.tensors)
        return Source(method, recipe, f"{named.name} (a checkpoint of {project}'s code)", None)
    folder = path.parent if named else path if path.is_dir() else root / run
    try:
        job = JobDir(folder).read_spec()
    except FileNotFoundError:
        known = [p.parent.name for p in root.glob(f"*/{SPEC}")]
        raise ValueError(unknown("run", run, known) if known else f"no run in {root}") from None
    if job.recipe is None:
        raise ValueError(
            f"{job.key} is {job.name}, not a pre-training: take {job.upstream}, which it evaluates"
        )
    title = f"{job.recipe.label}, {job.recipe.epochs} epochs, seed {job.seed} ({job.key})"
    return Source(_loaded(folder, job, named), job.recipe, title, job.data)


def _loaded(folder: Path, job: Job, named: Path | None) -> Method:
    """The method of a run with its weights: of the checkpoint named, else of the finished run, else
    of its newest checkpoint."""
    assert job.recipe is not None
    method = methods.build(job.recipe, job.seed)
    if method.projector is None:
        raise ValueError(
            f"{job.key}: {job.recipe.label} has no learned maps, and no projector that can be "
            "applied at every position of the feature map: choose a run of lewel_m, lewel_b, "
            "moco_v2 or byol"
        )
    backbone, projector = folder / "backbone.safetensors", folder / checkpoint.PROJECTOR
    if named is None and backbone.exists() and projector.exists():
        weights, header = checkpoint.read_backbone(projector)
        if header.get("backbone") != checkpoint.sha256(backbone):
            raise ValueError(f"{projector} does not belong to the backbone in the same folder")
        method.projector.load_state_dict(weights)
        method.backbone.load_state_dict(checkpoint.read_backbone(backbone)[0])
        return method
    state = checkpoint.open_file(named) if named else checkpoint.load(folder, _print_warning)
    if state is None:
        raise ValueError(_lacking(folder, job))
    method.load_state_dict(state["method"])
    return method


def _print_warning(event: str, /, **fields: Any) -> None:
    print(f"warning: {fields['message']}", file=sys.stderr)


def _lacking(folder: Path, job: Job) -> str:
    """Why a run has no weights that could be read, and what to do about it."""
    words = ["lewel-bench", "run", "--suite", job.suite, "--method", job.recipe_name]
    words += ["--evals", "none", *(["--seeds", f"{job.seed},"] if job.seed else [])]
    again = shlex.join([*words, "--root", str(folder.absolute().parent)])
    of, backbone = f"{job.key} ({job.name})", folder / "backbone.safetensors"
    if backbone.exists():
        return (
            f"{of} has no {checkpoint.PROJECTOR}: an earlier version did not save it. Remove "
            f"{folder} and pre-train it again, with its --data and --set: {again}"
        )
    if (folder / record.NAME).exists():
        return f"{missing_weights_message(backbone)} and, with its --data and --set: {again}"
    return f"{of} has no weights yet. Pre-train it, with its --data and --set: {again}"


def _drawn(images: Images, recipe: Recipe, count: int, seed: int) -> Batch:
    """`count` images and their first two views, as training would draw them in its first step."""
    specs = AUGMENTS[recipe.augment][:2]
    return next(view_batches(images, specs, recipe.image_size, batch=count, seed=seed, steps=1))


def _listed(text: str, count: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < count for part in parts):
        raise ValueError(f"--channels {text}: write numbers from 0 to {count - 1}, as 0,17,31")
    return [int(part) for part in parts]


def _shown(images: Images, batch: Batch, x: Tensor, W: Tensor) -> list[ImageMaps]:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    pixels = (x * std + mean).clamp(0, 1).permute(0, 1, 3, 4, 2)  # (V, B, S, S, 3)
    shown = []
    for place, i in enumerate(batch.index.tolist()):
        image = decode(images.root / images.files[i])
        sides = image.shape[:2]
        views = []
        for v in range(2):
            box = batch.params[v, place, BOX] * torch.tensor([*sides, *sides])
            top, left, height, width = box.tolist()
            views.append(
                View(pixels[v, place].numpy(), (top, left, height, width), W[v, place].numpy())
            )
        shown.append(ImageMaps(images.files[i], image / 255, (views[0], views[1])))
    return shown
