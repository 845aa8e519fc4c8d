"""Image files: the pixels of every kind, and what is refused without decoding it."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from photos import drawn
from PIL import Image

from lewel_bench.files import read_regular
from lewel_bench.pretrain.decode import MAX_PIXELS, decode, decode_with_kind, open_image


def test_a_regular_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 3) == b"abc"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.touch() or os.truncate(path, 2**40), "1,099,511,627,776 bytes, at most"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make, reason: str) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(OSError, match=reason):
        read_regular(path, 100)
    with pytest.raises(ValueError, match=rf"file: cannot be read: .*{reason}"):
        decode(path)


def test_an_image_that_would_fill_the_memory_is_not_decoded(tmp_path: Path) -> None:
    """A PNG of a few bytes whose header announces more than MAX_PIXELS."""
    path = tmp_path / "large.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", MAX_PIXELS, 2, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT\0\0\0\0")
    with pytest.raises(
        ValueError, match=r"large\.png: is not a readable image \(89478485x2 px, at"
    ):
        decode(path)
    with pytest.raises(ValueError, match="89478485x2 px, at most"), open_image(path):
        pass


LEVELS = np.linspace(0, 65535, 40 * 48).astype(np.uint16).reshape(40, 48)


def _pgm(path: Path, maximum: int) -> None:
    values = (LEVELS.astype(np.int64) * maximum // 65535).astype(">u2")
    path.write_bytes(b"P5 48 40 %d\n" % maximum + values.tobytes())


def _tiff_of_12_bits(path: Path) -> None:
    """Two pixels of 12 bits in three bytes, most significant first."""
    pairs = (LEVELS >> 4).reshape(-1, 2).astype(np.int64)
    a, b = pairs[:, 0], pairs[:, 1]
    pixels = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    tags = [(256, 48), (257, 40), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 40)]
    tags.append((279, len(pixels)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    path.write_bytes(head + pixels + struct.pack("<H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("16.png", lambda path: Image.fromarray(LEVELS).save(path)),
        ("16.tif", lambda path: Image.fromarray(LEVELS).save(path)),
        ("big-endian.tif", lambda path: Image.fromarray(LEVELS.astype(">u2")).save(path)),
        ("12.tif", _tiff_of_12_bits),
        ("16.jp2", lambda path: Image.fromarray(LEVELS).save(path)),
        ("16.pgm", lambda path: _pgm(path, 65535)),
        ("12.pgm", lambda path: _pgm(path, 4095)),
        ("named.jpg", lambda path: Image.fromarray(LEVELS).save(path, "PNG")),
    ],
)
def test_greyscale_of_more_than_8_bits_is_scaled(tmp_path: Path, name: str, write) -> None:
    """0 is black, the largest value white; Pillow's own conversion gives white from 255 on."""
    write(tmp_path / name)
    pixels = decode(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == (40, 48, 3) and pixels.flags.c_contiguous
    step = 65535 / 4095 if "12" in name else 1  # of values that were rounded to 12 bits
    assert np.abs(pixels - (LEVELS / 257)[..., None]).max() <= 0.5 + step / 257
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[-1, -1].tolist() == [255, 255, 255]
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_defined_white_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(LEVELS.astype(kind)).save(tmp_path / "depth.tif")
    with pytest.raises(
        ValueError, match=r"depth\.tif: .* the value of white is not defined: save it with 8 or"
    ):
        decode(tmp_path / "depth.tif")


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("strip", [2**22, 100])  # whole images, and a few rows at a time
def test_what_has_8_bits_is_as_pillow_converts_it(
    tmp_path: Path, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transparency is dropped, as torchvision's loader does: what hides below it shows."""
    monkeypatch.setattr("lewel_bench.pretrain.decode._STRIP", strip)
    rgba = drawn(25, 30, 3)
    rgba = np.dstack([rgba, rgba[..., 0]])  # transparent, half and opaque pixels
    images = {
        "rgba.png": Image.fromarray(rgba),
        "la.png": Image.fromarray(rgba).convert("LA"),
        "palette.png": Image.fromarray(rgba[..., :3]).quantize(16),
        "cmyk.tif": Image.fromarray(rgba[..., :3]).convert("CMYK"),
        "bits.png": Image.fromarray(rgba[..., 0]).convert("1"),
        "grey.gif": Image.fromarray(rgba[..., 0]),
        "rgb.avif": Image.fromarray(rgba[..., :3]),
        "rgb.jp2": Image.fromarray(rgba[..., :3]),
        "rgb.ppm": Image.fromarray(rgba[..., :3]),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    images["palette.png"].save(tmp_path / "clear.png", transparency=b"\0\x80\xff")
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert np.array_equal(decode(path), np.array(image.convert("RGB"))), path.name
    assert np.array_equal(decode(tmp_path / "rgba.png"), rgba[..., :3])
    assert set(np.unique(decode(tmp_path / "bits.png"))) == {0, 255}
    _, kind = decode_with_kind(tmp_path / "clear.png")
    assert kind == ("PNG", "P", True)


def test_a_jpeg_of_ten_thousand_scans_is_refused_at_once(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(drawn(1024, 1024, 0)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    (tmp_path / "video.jpg").write_bytes(data + bytes(10_000) + b"\xff\xda" * 20)
    assert decode(tmp_path / "video.jpg").shape == (1024, 1024, 3)
    at = data.rindex(b"\xff\xda")
    (tmp_path / "slow.jpg").write_bytes(data[:at] + (data[at:-2][:40]) * 10_000 + data[-2:])
    with pytest.raises(ValueError, match=r"slow\.jpg: .*more than 200 scans"):
        decode(tmp_path / "slow.jpg")


def test_a_format_that_would_run_a_program_is_not_read(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript."""
    (tmp_path / "page.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match=r"page\.jpg: is not a readable image \(unknown format\)"):
        decode(tmp_path / "page.jpg")
