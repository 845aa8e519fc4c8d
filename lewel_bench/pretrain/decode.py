"""Image files as RGB pixels, as Pillow's `Image.open(path).convert("RGB")` gives them."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image

from lewel_bench.files import open_regular, read_regular
from lewel_bench.pretrain.problems import Problem

MAX_BYTES = 2**29  # of an image file
MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB as RGB
Image.MAX_IMAGE_PIXELS = None  # it would only warn up to twice the limit
MIN_SIDE = 8  # px; a view stretched from less holds no texture
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode(path: str | os.PathLike[str]) -> Pixels:
    """The image as uint8 (H, W, 3), RGB, C-contiguous.

    Plain JPEG goes through libjpeg-turbo directly, bit for bit as Pillow; everything else (grey,
    CMYK, PNG whatever its name) through Pillow. EXIF rotation is not applied, as the papers' code
    does not. Raises ValueError naming the file if it is missing, no regular file, truncated, no
    image, below MIN_SIDE or above MAX_PIXELS.
    """
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise ValueError(
            Problem(path, f"cannot be read: {error.strerror or type(error).__name__}")
        ) from None
    pixels = _by_turbo(data)
    if pixels is None:
        pixels = _by_pillow(data, path)
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        advice = f"replace it with one of at least {MIN_SIDE} px a side or remove it"
        raise ValueError(
            Problem(
                path,
                f"the image is too small: {advice}",
                f"an image of {width}x{height} px is too small: {advice}",
            )
        )
    return pixels


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image of which only the header is read yet. Raises OSError where it is no regular file,
    ValueError where it has more than MAX_PIXELS, and whatever Pillow raises."""
    with open_regular(path, MAX_BYTES) as file, _opened(file) as image:
        yield image


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    with Image.open(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{image.width}x{image.height} px, at most {MAX_PIXELS:,} pixels are decoded"
            )
        yield image


def _by_turbo(data: bytes) -> Pixels | None:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        # CMYK would differ from Pillow by a level
        if colours == "YCbCr" and height * width <= MAX_PIXELS:
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
            return pixels
    except ValueError:
        pass  # no JPEG, or a damaged one: Pillow decides which
    return None


def _by_pillow(data: bytes, path: str | os.PathLike[str]) -> Pixels:
    try:
        with _opened(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
    except Exception as error:
        what = "is no readable image" if data else "is empty"
        reason = f" ({_reason(error)})" if data else ""
        advice = "replace the file with an intact copy or remove it"
        raise ValueError(Problem(path, f"{what}: {advice}", f"{what}{reason}: {advice}")) from None


def _reason(error: Exception) -> str:
    # Pillow's message for an unknown format names a BytesIO object
    return "unknown format" if "cannot identify" in str(error) else str(error) or repr(error)
