"""The `shapes` data: generated scenes, written once as real files in the standard layouts.

    imagenet/{train,val}/CLASS/*.jpg                       one class a scene, with distractors
    VOCdevkit/{VOC2007,VOC2012}/{Annotations,ImageSets,…}  several classes a scene: boxes, masks
    coco/{annotations,train2017,val2017}                   the same kind of scene: polygons, crowds

The same revision, seed and counts give the same bytes, as far as the same NumPy and Pillow do.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lewel_bench.files import Lock, naming
from lewel_bench.pretrain.shapes_labels import Coco, Voc, jpeg
from lewel_bench.pretrain.shapes_revision import REVISION, Counts
from lewel_bench.pretrain.shapes_scene import CLASSES, Rng, Scene, Shape, draw, spread

MARKER = "shapes.json"
SIZES = ((80, 80), (96, 80), (80, 96), (88, 88), (84, 112), (112, 84))  # height, width
DENSE_SIZES = ((128, 128), (96, 128), (128, 96), (108, 128), (128, 112))


def make(
    folder: Path,
    *,
    seed: int = 0,
    counts: Counts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """`folder` with the data set, written by this call or by an earlier or simultaneous call.

    The folder appears complete or not at all. `progress(done, total)` is called after each image.
    Raises ValueError if the folder has other contents, or another revision, seed or counts.
    """
    counts = counts or Counts()
    wanted = {"revision": REVISION, "seed": seed, "counts": counts.model_dump()}
    folder = Path(os.path.abspath(folder))
    if _is_written(folder, wanted):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Lock(folder.parent / f".{folder.name}.lock", None), naming(folder):
        if _is_written(folder, wanted):
            return folder
        partial = folder.parent / f".{folder.name}.partial"
        if partial.exists():
            shutil.rmtree(partial)  # of a process that was killed: we hold the lock
        total = counts.total()
        for done, _ in enumerate(_write(partial, seed, counts), 1):
            if progress:
                progress(done, total)
        (partial / MARKER).write_text(json.dumps(wanted, indent=1) + "\n")
        partial.rename(folder)
    return folder


def _is_written(folder: Path, wanted: dict[str, object]) -> bool:
    """Whether the folder is the wanted data set; False if it is missing or empty."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} exists and is not a shapes data set (it has no {MARKER}): "
                "choose another folder"
            ) from None
        return False
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {folder / MARKER}: {error}: delete {folder}") from None
    if marker != wanted:
        raise ValueError(
            f"{folder} holds another shapes data set, {json.dumps(marker)}, not "
            f"{json.dumps(wanted)}: choose another folder, or delete it to regenerate the data"
        )
    return True


def _write(root: Path, seed: int, counts: Counts) -> Iterator[None]:
    """Writes everything below `root`, yielding after each image."""
    for role, split in enumerate(("train", "val")):
        for kind, name in enumerate(CLASSES):
            (root / "imagenet" / split / name).mkdir(parents=True)
            for index in range(getattr(counts, split)):
                scene = single(kind, _rng(seed, role, kind, index))
                jpeg(scene, root / "imagenet" / split / name / f"{name}_{index:04d}.jpg")
                yield
    for role, year in enumerate((2007, 2012), 2):
        splits = ("train", "val", "test")
        sizes = {name: getattr(counts, f"voc{year}_{name}", 0) for name in splits}
        voc = Voc(root / "VOCdevkit" / f"VOC{year}", year)
        for split, index in _numbered(sizes):
            voc.add(split, index, *crowded(_rng(seed, role, index), crowds=False))
            yield
        voc.finish()
    coco = Coco(root / "coco")
    for split, index in _numbered({"train": counts.coco_train, "val": counts.coco_val}):
        coco.add(split, index, *crowded(_rng(seed, 4, index), crowds=True))
        yield
    coco.finish()


def _numbered(sizes: dict[str, int]) -> Iterator[tuple[str, int]]:
    number = 0
    for split, size in sizes.items():
        for _ in range(size):
            number += 1
            yield split, number


def _rng(seed: int, *where: int) -> Rng:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([REVISION, seed, *where])))


def single(kind: int, rng: Rng) -> Scene:
    """A scene of one class: seven to ten of its objects, and one of another."""
    height, width = SIZES[rng.integers(len(SIZES))]
    other = (kind + int(rng.integers(1, len(CLASSES)))) % len(CLASSES)
    kinds = [kind] * int(rng.integers(7, 11)) + [other]
    centres = spread(len(kinds), height, width, rng)
    radii = rng.uniform(0.18, 0.27, len(kinds)) * min(height, width)
    shapes = [
        Shape(kinds[i], float(centres[i, 0]), float(centres[i, 1]), float(radii[i]), instance)
        for instance, i in enumerate(rng.permutation(len(kinds)), 1)
    ]
    return draw(shapes, height, width, rng)


def crowded(rng: Rng, *, crowds: bool) -> tuple[Scene, list[Shape], set[int]]:
    """A scene of any classes: the scene, its shapes, and which instances are crowds.

    With `crowds`, one scene in six holds a crowd (many small shapes of one class, labelled as one
    instance), and one in twenty-five holds nothing, as in COCO.
    """
    height, width = DENSE_SIZES[rng.integers(len(DENSE_SIZES))]
    if crowds and rng.random() < 0.04:
        return draw([], height, width, rng), [], set()
    count = int(rng.integers(2, 7))
    centres = spread(count, height, width, rng, tries=2)  # near enough to cover one another
    radii = np.exp(rng.uniform(np.log(9), np.log(34), count))  # COCO's small, medium and large
    shapes = [
        Shape(
            int(rng.integers(len(CLASSES))),
            float(centres[i, 0]),
            float(centres[i, 1]),
            float(radii[i]),
            i + 1,
        )
        for i in np.argsort(-radii)  # small ones in front, or they would often be hidden
    ]
    if not (crowds and rng.random() < 1 / 6):
        return draw(shapes, height, width, rng), shapes, set()
    kind, y, x = int(rng.integers(len(CLASSES))), *rng.uniform(0.25, 0.75, 2) * (height, width)
    for dy, dx in rng.uniform(-20, 20, (int(rng.integers(7, 12)), 2)):
        radius = float(rng.uniform(5, 8))
        shapes.append(Shape(kind, float(y + dy), float(x + dx), radius, count + 1))
    return draw(shapes, height, width, rng), shapes, {count + 1}
