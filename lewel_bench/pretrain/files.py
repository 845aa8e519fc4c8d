"""Writing a file so that a reader sees the old one or the new one, never a half."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write, beside `path`; what is there at the end is flushed to disk and renamed to it.
    On failure nothing is left and `path` is as before. Raises OSError where `path` cannot be."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        with open(beside, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def write_atomically(path: Path, data: bytes | memoryview | str) -> None:
    """Replace `path` by `data`, as `replacing` does."""
    with replacing(path) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)
