"""Masks in files.

Shapes: H, W of a picture. Labels are uint8, 255 where none is given; 0 is the background.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lewel_bench.pretrain.shapes_labels import palette

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

VOID = 255


def mask(path: Path, count: int = 256) -> Pixels:
    """Labels (H, W): the palette's indices or the grey levels. Raises ValueError naming a file that
    cannot be read, is in colour, or has a label beyond `count` classes."""
    try:
        with Image.open(path) as file:
            mode, labels = file.mode, np.array(file)
    except OSError as error:
        raise ValueError(f"{path}: mask cannot be read: {error.strerror or error}") from None
    # Pillow's plugins raise SyntaxError, ValueError, struct.error, …
    except Exception as error:
        raise ValueError(f"{path}: is no readable mask ({error}): replace the file") from None
    if mode not in ("P", "L", "1"):
        raise ValueError(
            f"{path}: a mask of mode {mode}: allowed are 8-bit PNGs with a palette or in grey, "
            f"whose values are labels"
        )
    labels = labels.astype(np.uint8)
    wrong = (labels >= count) & (labels != VOID)
    if wrong.any():
        y, x = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{path}: label {labels[y, x]} at x {x}, y {y}: allowed are 0 to {count - 1} and "
            f"{VOID} (void); correct the mask, or name all classes in labels.txt"
        )
    return labels


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
            f"{path}: the mask is {labels.shape[1]}x{labels.shape[0]} px, its image "
            f"{size[1]}x{size[0]}: replace one of them"
        )
