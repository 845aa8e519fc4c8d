"""Writing a file so that a reader sees the old one or the new one, never a half."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes | memoryview | str) -> None:
    """Write beside, flush to disk, rename; on failure nothing is left and `path` is as before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
