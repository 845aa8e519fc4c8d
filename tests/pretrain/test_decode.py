"""Files of a user: what is no regular file, or too large, is refused without reading it."""

import os
import struct
import zlib
from pathlib import Path

import pytest

from lewel_bench.files import read_regular
from lewel_bench.pretrain.decode import MAX_PIXELS, decode, open_image


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
    with pytest.raises(ValueError, match=r"large\.png: is no readable image \(89478485x2 px, at"):
        decode(path)
    with pytest.raises(ValueError, match="89478485x2 px, at most"), open_image(path):
        pass
