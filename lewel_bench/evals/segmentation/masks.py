"""Masks in files.

Shapes: H, W of an image. Labels are uint8, 255 where none is given; 0 is the background.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lewel_bench.pretrain.decode import open_image, unreadable
from lewel_bench.pretrain.problems import Problem
from lewel_bench.pretrain.shapes_labels import palette

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

VOID = 255


def mask(path: Path, count: int = 256) -> Pixels:
    """Labels (H, W): the palette's indices or the grey levels. Raises ValueError naming a file that
    cannot be read, is in colour, or has a label beyond `count` classes."""
    return read(path, count)[0]


def read(path: Path, count: int = 256) -> tuple[Pixels, list[int] | None]:
    """The labels as `mask`, and the colours of the palette (r, g, b, r, …) where there is one."""
    try:
        with open_image(path) as file:
            mode, kind, labels = file.mode, file.format, np.array(file)
            colours = file.getpalette() if mode == "P" else None
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, …
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(Problem(path, f"mask cannot be read: {error.strerror}")) from None
        advice = "replace the file"
        raise ValueError(
            Problem(
                path,
                f"is not a readable mask: {advice}",
                f"is not a readable mask ({unreadable(error)}): {advice}",
            )
        ) from None
    if mode not in ("P", "L", "1"):
        raise ValueError(
            Problem(
                path,
                f"a mask of mode {mode}: use 8-bit PNGs, with a palette or greyscale, whose "
                "values are the labels",
            )
        )
    if kind == "JPEG":
        raise ValueError(
            Problem(path, "a JPEG mask: compression changes labels; save masks as PNG")
        )
    labels = labels.astype(np.uint8)
    wrong = (labels >= count) & (labels != VOID)
    if wrong.any():
        y, x = np.argwhere(wrong)[0].tolist()
        rule = (
            f"labels are 0 to {count - 1} and {VOID} (void); correct the mask, or list all "
            f"classes in labels.txt, label 0 first"
        )
        raise ValueError(
            Problem(
                path, f"a label outside the classes: {rule}",
                f"label {labels[y, x]} at x {x}, y {y}: {rule}",
            )
        )  # fmt: skip
    return labels, colours


def write(path: Path, labels: Pixels) -> None:
    """Write labels (H, W) as a mask in PASCAL's colours."""
    image = Image.fromarray(labels, mode="P")
    image.putpalette(palette())
    content = io.BytesIO()
    image.save(content, "PNG")
    path.write_bytes(content.getbuffer())


def check_size(path: Path, labels: Pixels, size: tuple[int, ...]) -> None:
    """Raise ValueError where a mask has another size than its image's (H, W)."""
    if labels.shape != size:
        raise ValueError(
            Problem(
                path,
                "a mask whose size differs from its image's: replace one of them",
                f"the mask is {labels.shape[1]}x{labels.shape[0]} px, its image "
                f"{size[1]}x{size[0]}: replace one of them",
            )
        )
