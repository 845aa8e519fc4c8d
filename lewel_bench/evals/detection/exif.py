"""Image files turned as their EXIF tag says, as detectron2 and mmseg read them."""

from pathlib import Path

import numpy as np
from PIL import Image

from lewel_bench.pretrain.decode import Pixels, decode, open_image

_ORIENTATION = 274  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(path: Path) -> Pixels:
    """The pixels of an image file, uint8 (h, w, 3); raises as `decode`."""
    image = decode(path)
    with open_image(path) as header:
        turn = _TURNS.get(_orientation(header))
    return image if turn is None else np.asarray(Image.fromarray(image).transpose(turn))


def is_turned(path: Path) -> bool:
    """Whether the EXIF tag of an image file exchanges its height and width; raises what Pillow
    raises."""
    with open_image(path) as header:
        return _orientation(header) >= 5


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, turned as its EXIF tag says; raises what Pillow raises."""
    with open_image(path) as header:
        return header.size if _orientation(header) >= 5 else header.size[::-1]


def _orientation(header: Image.Image) -> int:
    """The EXIF tag, 1 where there is none or it cannot be read, as in detectron2."""
    try:
        orientation = header.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises SyntaxError, struct.error, …
        return 1
    return orientation if isinstance(orientation, int) else 1


STORED = (
    "is turned by its EXIF tag, but labelled as its pixels are stored: remove the tag (exiftool "
    "-Orientation= FILE), or label the image as it is shown"
)  # of a file whose labels fit only without the turn
