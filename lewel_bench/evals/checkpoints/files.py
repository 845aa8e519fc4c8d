"""A foreign file as named tensors: PyTorch's two formats, safetensors, pickles of NumPy arrays.

Nothing is unpacked to disk and nothing is executed (see `pickles`). What a file says of itself is
held against its size before any memory is taken, which torch.load does not do.
"""

import os
import stat
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lewel_bench.evals.checkpoints import pickled, zipped
from lewel_bench.evals.checkpoints.content import Content, nameable, why

HEADER = 100 << 20  # bytes of safetensors' header, as its own reader allows
LEAST = 16  # bytes of a file
OTHERS = {
    b"\x89HDF": "an HDF5 file (Keras, TensorFlow)",
    b"\x93NUMPY": "a single NumPy array",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"\x7fELF": "a program",
    b"<": "a web page or XML: the download failed",
    b"version https://git-lfs": "a pointer of Git LFS: git lfs pull brings the file",
}


def read(path: Path, allowed: Collection[str] = ()) -> Content:
    """The content of a file; `allowed` are globals that may be in it, and are passed over.

    Raises ValueError, one line that names the file and what is wrong with it.
    """
    try:
        return _read(path, allowed)
    except (OSError, zipfile.BadZipFile, SafetensorError, UnicodeError) as error:
        raise ValueError(f"{path}: {why(error)}") from None
    except (EOFError, MemoryError, RuntimeError, struct.error, TypeError) as error:
        raise ValueError(f"{path}: is broken ({type(error).__name__})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path, allowed: Collection[str]) -> Content:
    size = _size(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return zipped.read(path, size, allowed)
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and head[:1] != b"\x80"):
        return _safetensors(path, head, size)
    if head[257:262] == b"ustar":
        raise ValueError(
            "a tar archive: what lies in it is not unpacked here. PyTorch before 0.1.10 wrote "
            "such checkpoints: load and save it again with a later one"
        )
    for begin, what in OTHERS.items():
        if head.startswith(begin):
            raise ValueError(f"{what}; a checkpoint of PyTorch, safetensors or .pkl is needed")
    return pickled.read(path, size, allowed)


def _size(path: Path) -> int:
    found = os.stat(path)  # what a link leads to
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is no regular file")
    if found.st_size < LEAST:
        raise ValueError(f"has {found.st_size} bytes: the download or the copy was cut off")
    return found.st_size


def _safetensors(path: Path, head: bytes, size: int) -> Content:
    (length,) = struct.unpack("<Q", head[:8])
    if length > min(HEADER, size - 8):
        raise ValueError(f"its header says that it has {length:,} bytes, the file has {size:,}")
    with safe_open(path, framework="pt") as file:  # checks every offset against the size
        names = list(file.keys())
        nameable(names)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        texts = {str(key): str(value) for key, value in (file.metadata() or {}).items()}

    def tensor(name: str) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                found: Tensor = file.get_tensor(name)
                return found
        except (OSError, SafetensorError) as error:
            raise ValueError(why(error)) from None

    tops = frozenset(name.split(".")[0] for name in shapes)
    return Content(shapes, tops, texts, frozenset(), tensor)
