"""Image files as RGB pixels: the one decoder of pre-training, every evaluation and the figures.

Images of 8 bits a channel get the pixels of Pillow's `convert("RGB")`, as in the papers' code:
transparency is dropped. 16-bit greyscale, which Pillow would clip to white, is scaled.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from lewel_bench.files import open_regular, read_regular
from lewel_bench.pretrain.problems import Problem

MAX_BYTES = 2**28  # of an image file
MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB as RGB
Image.MAX_IMAGE_PIXELS = None  # it would only warn up to twice the limit
MIN_SIDE = 8  # px; a view enlarged from less has no texture
MAX_SCANS = 200  # of a progressive JPEG, each decoded over all pixels; encoders write about 10
# Pillow reads more: EPS by running Ghostscript, others without a signature that tells them apart
FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp", ".dib"),
    "DIB": (),
    "GIF": (".gif",),  # of animations, the first frame
    "JPEG": (".jpeg", ".jpg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
_STRIP = 2**22  # pixels that are converted at once
_NO_WHITE = ("I", "F")  # 32 bits and signed; no file says which value is white
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Kind(NamedTuple):
    """What an image file is, as Pillow names it."""

    format: str  # "JPEG"
    mode: str  # "RGB", "L", "I;16"
    transparent: bool = False  # has an alpha channel or a transparent colour


def decode(path: str | os.PathLike[str]) -> Pixels:
    """The image as uint8 (H, W, 3), RGB, C-contiguous.

    Plain JPEG goes through libjpeg-turbo directly, bit for bit as Pillow; everything else (grey,
    CMYK, PNG whatever its name) through Pillow. EXIF rotation is not applied, as the papers' code
    does not. Raises ValueError naming the file if it is missing, not a regular file,
    truncated, not an image, of 32 bits a channel, below MIN_SIDE or above MAX_PIXELS.
    """
    return decode_with_kind(path)[0]


def decode_with_kind(path: str | os.PathLike[str]) -> tuple[Pixels, Kind]:
    """The image as `decode` returns it, and what the file is."""
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise ValueError(
            Problem(path, f"cannot be read: {error.strerror or type(error).__name__}")
        ) from None
    pixels = _by_turbo(data)
    if pixels is not None:
        kind = Kind("JPEG", "RGB")
    else:
        pixels, kind = _by_pillow(data, path)
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
    return pixels, kind


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image of which only the header is read yet. Raises OSError if it is not a regular
    file, ValueError if it has more than MAX_PIXELS, and whatever Pillow raises."""
    with open_regular(path, MAX_BYTES) as file, _opened(file) as image:
        yield image


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    with Image.open(file, formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{image.width}x{image.height} px, at most {MAX_PIXELS:,} pixels are decoded"
            )
        yield image


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # an older Pillow knows no AVIF


def _by_turbo(data: bytes) -> Pixels | None:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        # CMYK would differ from Pillow by a level
        if colours == "YCbCr" and height * width <= MAX_PIXELS and not _slow(data):
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
            return pixels
    except ValueError:
        pass  # not a JPEG, or damaged: Pillow decides
    return None


def _by_pillow(data: bytes, path: str | os.PathLike[str]) -> tuple[Pixels, Kind]:
    try:
        with _opened(io.BytesIO(data)) as image:
            if image.format in ("JPEG", "MPO") and _slow(data):
                raise ValueError(f"more than {MAX_SCANS} scans, each over all pixels")
            mode, transparent = image.mode, image.has_transparency_data
            return _rgb(image), Kind(image.format or "", mode, transparent)
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
    except Exception as error:
        what = "is not a readable image" if data else "is empty"
        reason = f" ({unreadable(error)})" if data else ""
        advice = "replace the file with an intact copy or remove it"
        raise ValueError(Problem(path, f"{what}: {advice}", f"{what}{reason}: {advice}")) from None


def _slow(data: bytes) -> bool:
    """Whether a JPEG has more than MAX_SCANS. The marker never occurs in compressed pixels, but
    by chance, once in 2^16 bytes, in a video that a phone appended to them."""
    return data.count(b"\xff\xda") > MAX_SCANS + len(data) / 2**14


def _rgb(image: Image.Image) -> Pixels:
    white = _white(image)
    if white:
        scale = (np.arange(white + 1) * 255 + white // 2) // white  # to the nearest of 0..255
        grey = scale.astype(np.uint8)[np.asarray(image)]
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in _NO_WHITE:
        raise ValueError(
            f"{image.format} in mode {image.mode}, in which the value of white is not "
            f"defined: save it with 8 or 16 bits"
        )
    image.info.pop("transparency", None)  # dropped; Pillow would warn
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)  # not all at once: three copies of it would be in memory
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _white(image: Image.Image) -> int:
    """The value of white in greyscale of more than 8 bits, 0 for other images."""
    if image.mode.startswith("I;16"):
        bits = image.tag_v2.get(258, (16,)) if isinstance(image, TiffImageFile) else (16,)
        return int(2 ** bits[0] - 1)
    # older versions of Pillow open a PNG of 16 bits so; a PGM's values are scaled to 16 bits
    return 2**16 - 1 if image.mode == "I" and image.format in ("PNG", "PPM") else 0


def unreadable(error: Exception) -> str:
    # Pillow's message for an unknown format names a BytesIO object
    """Why an image cannot be read, in words for a user."""
    return "unknown format" if "cannot identify" in str(error) else str(error) or repr(error)
