"""Images and their objects as detectron2's DatasetMapper hands them to a detector.

ResizeShortestEdge with Pillow's bilinear filter (masks of run lengths with its nearest pixel), then
a horizontal flip; crowds and objects whose box or mask is empty are left out. Shapes: N objects, k
points of a polygon, h and w of the resized image.
Whole numbers in an annotation are read as real ones; detectron2 would truncate the resized
coordinates of a box or polygon that is written without a decimal point.
"""

from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lewel_bench.evals.detection.annotated_images import Floats, Scene
from lewel_bench.evals.detection.exif import upright
from lewel_bench.evals.detection.masks import Pixels, decoded

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection

_EMPTY = 1e-5  # px; boxes of no larger width or height are left out (filter_empty_instances)


@dataclass(frozen=True, eq=False)
class Example:
    """One image for a detector; boxes and polygons are in its pixels. Tests have no objects.

    `polygons` is empty where the protocol has no masks.
    """

    image: Tensor  # uint8 (3, h, w), RGB
    boxes: Tensor  # float32 (N, 4): left, top, right, bottom
    labels: Tensor  # int64 (N,), from 0
    # of each object its polygons, each (2k,) as x1, y1, x2, y2, …, or its pixels (h, w) of 0 and 1
    polygons: list[list[Floats] | Pixels]
    id: int
    size: tuple[int, int]  # height and width of the image in its file


def training_view(
    root: Path, scene: Scene, protocol: "Detection", rng: np.random.Generator
) -> Example:
    """The image with its shortest edge drawn from the protocol's, flipped half of the time.

    Takes two draws from `rng`. Raises ValueError naming a file that cannot be read or has another
    size than its annotation says.
    """
    edge, flip = rng.random(2).tolist()
    short = protocol.min_sizes[int(edge * len(protocol.min_sizes))]
    return view(root, scene, short, protocol.max_size, flip < 0.5, protocol.masks)


def test_view(root: Path, scene: Scene, protocol: "Detection") -> Example:
    """The image at the protocol's test size, without objects. Raises as `training_view`."""
    image = _read(root, scene)
    image = _resized(image, shape(scene.height, scene.width, protocol.test_size, protocol.max_size))
    none = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    return Example(_tensor(image), *none, [], scene.id, (scene.height, scene.width))


def view(root: Path, scene: Scene, short: int, longest: int, flip: bool, masks: bool) -> Example:
    """The image and its objects at a shortest edge of `short` px or a longest one of `longest`."""
    image = _read(root, scene)
    h, w = shape(scene.height, scene.width, short, longest)
    image = _resized(image, (h, w))
    image = image[:, ::-1] if flip else image
    scale = np.array([w / scene.width, h / scene.height])
    objects = scene.objects
    boxes = move(objects.boxes.reshape(-1, 2), scale, w if flip else None).reshape(-1, 2, 2)
    boxes = np.concatenate([boxes.min(1), boxes.max(1)], axis=1)  # (N, 4)
    boxes = np.minimum(boxes.clip(min=0), [w, h, w, h]).astype(np.float32)
    filled = (boxes[:, 2:] - boxes[:, :2] > np.float32(_EMPTY)).all(1)
    kept = np.flatnonzero(filled & ~objects.crowd)
    polygons: list[list[Floats] | Pixels] = []
    if masks:
        shapes = [_mask(scene, i, scale, (h, w), flip) for i in kept.tolist()]
        seen = [not isinstance(shape, np.ndarray) or bool(shape.any()) for shape in shapes]
        kept, polygons = kept[seen], list(compress(shapes, seen))
    return Example(
        _tensor(image),
        torch.from_numpy(boxes[kept]),
        torch.from_numpy(objects.labels[kept]),
        polygons,
        scene.id,
        (scene.height, scene.width),
    )


def shape(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """(h, w) of an image resized to a shortest edge of `short` px, or a longest one of `longest`
    where the former would make it longer; rounded half up, as detectron2 does."""
    scale = short / min(height, width)
    h, w = (float(short), scale * width) if height < width else (scale * height, float(short))
    if max(h, w) > longest:
        scale = longest / max(h, w)
        h, w = h * scale, w * scale
    return int(h + 0.5), int(w + 0.5)


def move(points: Floats, scale: Floats, mirror: float | None) -> Floats:
    """Points (n, 2) of the file's image in the resized one, mirrored if its width is given."""
    moved: Floats = points * scale
    if mirror is not None:
        moved[:, 0] = mirror - moved[:, 0]
    return moved


def _mask(
    scene: Scene, index: int, scale: Floats, size: tuple[int, int], flip: bool
) -> list[Floats] | Pixels:
    """The mask of an object in the resized image: polygons as polygons, run lengths as pixels."""
    outlines, rle = scene.objects.polygons[index], scene.objects.rles[index]
    if outlines:
        mirror = size[1] if flip else None
        return [move(p.reshape(-1, 2), scale, mirror).reshape(-1) for p in outlines]
    if rle is None:
        raise ValueError(
            f"{scene.file}: object {scene.objects.ids[index]} has no mask: give it polygons or run "
            f"lengths, or choose a protocol without masks"
        )
    pixels = _resized(decoded(rle), size, Image.Resampling.NEAREST)
    return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)


def _read(root: Path, scene: Scene) -> NDArray[np.uint8]:
    path = Path(root) / scene.file
    image = upright(path)
    if image.shape[:2] != (scene.height, scene.width):
        raise ValueError(
            f"{path}: the image is {image.shape[1]}x{image.shape[0]} px, its annotation gives "
            f"{scene.width}x{scene.height}: correct the annotation or replace the image"
        )
    return image


def _resized(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    how: Image.Resampling = Image.Resampling.BILINEAR,
) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image  # Pillow would copy it
    resized = Image.fromarray(image).resize(size[::-1], how)
    return np.asarray(resized)


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    planes = np.array(image.transpose(2, 0, 1), order="C")  # writable, which torch wants
    return torch.from_numpy(planes)
