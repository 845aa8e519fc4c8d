"""A foreign file as named tensors: PyTorch's two formats, safetensors, pickles of NumPy arrays.

Nothing is unpacked to disk and nothing is executed (see `pickles`). What a file says of itself is
held against its size before any memory is taken.
"""

import io
import os
import stat
import struct
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lewel_bench.evals.checkpoints import pickles
from lewel_bench.evals.checkpoints.pickles import Bounded
from lewel_bench.evals.checkpoints.plain import Array, Inert, Refused, Storage, Strided

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of PyTorch's older format
PICKLE = 64 << 20  # bytes of a pickle in a zip; the tensors lie beside it
DIRECTORY = 32 << 20  # bytes of a zip's list of members
HEADER = 100 << 20  # bytes of safetensors' header, as its own reader allows
NAMED = 200_000  # tensors and dictionaries
DEPTH = 16
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


@dataclass(frozen=True)
class Content:
    """What a file holds: `kind` of file, tensors by dotted name with their shapes, the names at
    its top and the texts there, the foreign globals that were passed over, and each tensor on
    demand."""

    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    tops: frozenset[str]
    texts: Mapping[str, str]
    globals: frozenset[str]
    _get: Any

    def tensor(self, name: str) -> Tensor:
        """One tensor. Raises ValueError where the file does not hold what it says."""
        try:
            found: Tensor = self._get(name)
        except (OSError, RuntimeError, zipfile.BadZipFile, SafetensorError) as error:
            raise ValueError(f"the tensor {name} cannot be read: {_why(error)}") from None
        return found


def read(path: Path, allowed: Collection[str] = ()) -> Content:
    """The content of a file; `allowed` are globals that may be in it, and are passed over.

    Raises ValueError, one line that names the file and what is wrong with it.
    """
    try:
        size = _size(path)
        with open(path, "rb") as file:
            head = file.read(512)
        if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
            return _zip(path, size, allowed)
        if _is_safetensors(path, head, size):
            return _safetensors(path, head, size)
        if head[257:262] == b"ustar":
            raise ValueError(
                "a tar archive: what lies in it is not unpacked here. PyTorch before 0.1.10 wrote "
                "such checkpoints: load and save it again with a later one"
            )
        for begin, what in OTHERS.items():
            if head.startswith(begin):
                raise ValueError(f"{what}; a checkpoint of PyTorch, safetensors or .pkl is needed")
        return _pickled(path, size, allowed)
    except (OSError, zipfile.BadZipFile, SafetensorError, UnicodeError) as error:
        raise ValueError(f"{path}: {_why(error)}") from None
    except (MemoryError, RecursionError, NotImplementedError, struct.error) as error:
        raise ValueError(f"{path}: is broken ({type(error).__name__})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _size(path: Path) -> int:
    found = os.stat(path)  # what a link leads to
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is no regular file")
    if found.st_size < 16:
        raise ValueError(f"has {found.st_size} bytes: the download or the copy was cut off")
    return found.st_size


def _is_safetensors(path: Path, head: bytes, size: int) -> bool:
    return path.suffix == ".safetensors" or (head[8:9] == b"{" and head[:1] != b"\x80")


def _safetensors(path: Path, head: bytes, size: int) -> Content:
    (length,) = struct.unpack("<Q", head[:8])
    if length > min(HEADER, size - 8):
        raise ValueError(f"its header says that it has {length:,} bytes, the file has {size:,}")
    with safe_open(path, framework="pt") as file:  # checks every offset against the size
        shapes = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        texts = {str(key): str(value) for key, value in (file.metadata() or {}).items()}

    def get(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_tensor(name)
            return found

    tops = frozenset(name.split(".")[0] for name in shapes)
    return Content("safetensors", shapes, tops, texts, frozenset(), get)


def _zip(path: Path, size: int, allowed: Collection[str]) -> Content:
    _directory(path, size)
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: one for one in archive.infolist()}
        _members(archive.infolist(), size)
        mains = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(mains) != 1:
            raise ValueError("a zip archive without one data.pkl: PyTorch did not write it")
        folder = mains[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members or any("/code/" in name for name in members):
            raise ValueError(
                "a TorchScript archive, which holds code: save model.state_dict() instead"
            )
        if f"{folder}byteorder" in members and members[f"{folder}byteorder"].file_size > 16:
            raise ValueError("its byteorder is no byte order")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian: save it again on a usual machine")
        if members[mains[0]].file_size > PICKLE:
            raise ValueError(f"its data.pkl has {members[mains[0]].file_size:,} bytes")
        text = archive.read(mains[0])
    globals_: set[str] = set()
    tree = _loaded(Bounded(io.BytesIO(text), len(text)), allowed, globals_)
    places: dict[str, Storage] = {}

    def check(storage: Storage) -> None:
        name = f"{folder}data/{storage.key}"
        if name not in members:
            raise ValueError(f"the storage {storage.key[:60]} is not in it")
        held, wanted = members[name].file_size, storage.count * storage.itemsize
        if held != wanted:
            raise ValueError(
                f"the storage {storage.key[:60]} has {held:,} bytes, but its tensors say {wanted:,}"
            )
        places[storage.key] = storage

    def get(storage: Storage) -> bytes:
        with zipfile.ZipFile(path) as archive:  # compares the checksum too
            return archive.read(f"{folder}data/{storage.key}")

    return _content("torch", tree, globals_, check, get)


def _directory(path: Path, size: int) -> None:
    """Raise ValueError for a list of members that is no checkpoint's, before it is read."""
    with open(path, "rb") as file:
        file.seek(max(0, size - 65_600))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise ValueError("a zip archive without an end: the download or the copy was cut off")
    (length,) = struct.unpack_from("<I", tail, end + 12)
    long = tail.rfind(b"PK\x06\x06", 0, end)
    if length == 0xFFFFFFFF and long >= 0 and len(tail) >= long + 48:
        (length,) = struct.unpack_from("<Q", tail, long + 40)
    if length > min(size, DIRECTORY):
        raise ValueError(f"a zip archive whose list of members has {length:,} bytes")


def _members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [one.filename for one in members]
    if len(set(names)) < len(names):
        raise ValueError("a zip archive with two members of one name")
    for one in members:
        parts = one.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise ValueError(f"a zip archive with the member {one.filename[:80]!r}")
        if stat.S_ISLNK(one.external_attr >> 16):
            raise ValueError(f"a zip archive with the link {one.filename[:80]!r}")
        if one.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"a zip archive with the compressed member {one.filename[:80]!r}: PyTorch "
                "compresses nothing"
            )
    if sum(one.file_size for one in members) > size:
        raise ValueError(f"a zip archive whose members are larger than its {size:,} bytes")


def _pickled(path: Path, size: int, allowed: Collection[str]) -> Content:
    globals_: set[str] = set()
    with open(path, "rb") as file:
        source = Bounded(file, size)
        first = _loaded(source, allowed, globals_)
        if first != MAGIC:
            return _content("pickle", first, globals_, _nowhere, lambda storage: b"")
        version, system = _loaded(source), _loaded(source)
        if version != 1001 or not (isinstance(system, dict) and system.get("little_endian", True)):
            raise ValueError("is a checkpoint of an unknown version or of a big-endian machine")
        tree = _loaded(source, allowed, globals_)
        keys = _loaded(source)
        begin = file.tell()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is broken")
    storages: dict[str, Storage] = {}

    def note(storage: Storage) -> None:
        known = storages.setdefault(storage.key, storage)
        if (known.count, known.dtype) != (storage.count, storage.dtype):
            raise ValueError(f"the storage {storage.key[:60]} has two sizes")

    places: dict[str, int] = {}

    def get(storage: Storage) -> bytes:
        with open(path, "rb") as file:
            file.seek(places[storage.key])
            return file.read(storage.count * storage.itemsize)

    found = _content("torch, before 1.6", tree, globals_, note, get)
    with open(path, "rb") as file:
        for key in keys:  # a count, then the numbers, one storage after another
            file.seek(begin)
            (count,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
            if key not in storages:
                raise ValueError(f"the storage {key[:60]} belongs to no tensor")
            if count != storages[key].count:
                raise ValueError(
                    f"the storage {key[:60]} has {count} numbers, but its tensors say "
                    f"{storages[key].count}"
                )
            places[key] = begin + 8
            begin += 8 + count * storages[key].itemsize
            if begin > size:
                raise ValueError("it ends before its tensors do: it was cut off")
    if missing := set(storages) - set(places):
        raise ValueError(f"the storage {min(missing)[:60]} is not in it")
    return found


def _loaded(
    source: Bounded, allowed: Collection[str] = (), globals_: set[str] | None = None
) -> Any:
    try:
        return pickles.load(source, allowed, globals_)
    except Refused:
        raise
    except ValueError as error:
        raise ValueError(
            "is no checkpoint of PyTorch, no safetensors and no pickle, or is cut off or broken "
            f"({_why(error)})"
        ) from None


def _nowhere(storage: Storage) -> None:
    raise ValueError("it refers to storages of PyTorch outside of PyTorch's format")


def _content(kind: str, tree: Any, globals_: set[str], check: Any, get: Any) -> Content:
    """Dictionaries within dictionaries as dotted names."""
    found: dict[str, Strided | Array] = {}
    texts: dict[str, str] = {}
    left = NAMED
    todo: list[tuple[str, Any, int]] = [("", tree, 0)]
    if not isinstance(tree, dict):
        raise ValueError(f"holds a {_called(tree)} instead of weights by name")
    while todo:
        prefix, value, depth = todo.pop()
        left -= 1
        if left < 0 or depth > DEPTH:
            raise ValueError("its dictionaries are too many or too deep for a checkpoint")
        if isinstance(value, Inert):
            value = {**value.items, **(value.state if isinstance(value.state, dict) else {})}
        if isinstance(value, dict):
            left -= len(value)
            begin = f"{prefix}." if prefix else ""
            inside = [(f"{begin}{key}", inner, depth + 1) for key, inner in value.items()]
            todo += reversed(inside)
        elif isinstance(value, Strided | Array):
            if isinstance(value, Strided):
                check(value.storage)
            if prefix in found:
                raise ValueError(f"two tensors have the name {prefix[:80]}")
            found[prefix] = value
        elif isinstance(value, str) and depth == 1:
            texts[prefix] = value

    last: dict[str, bytes] = {}

    def tensor(name: str) -> Tensor:
        one = found[name]
        if isinstance(one, Array):
            numbers = np.frombuffer(one.data, np.dtype(one.dtype))
            shaped = numbers.reshape(one.shape, order="F" if one.fortran else "C")
            return torch.from_numpy(shaped.astype(shaped.dtype.newbyteorder("="), order="C"))
        dtype = getattr(torch, one.storage.dtype)
        if one.storage.key not in last:
            last.clear()  # many tensors may be views of one storage
            last[one.storage.key] = get(one.storage)
        content = bytearray(last[one.storage.key])
        if len(content) != one.storage.count * one.storage.itemsize:
            raise ValueError(f"the tensor {name} is cut off")
        if not content:
            return torch.empty(one.shape, dtype=dtype)
        whole = torch.frombuffer(content, dtype=dtype)
        return whole.as_strided(one.shape, one.strides, one.offset).clone().contiguous()

    shapes = {name: tuple(one.shape) for name, one in found.items()}
    tops = frozenset(str(key) for key in tree)
    return Content(kind, shapes, tops, texts, frozenset(globals_), tensor)


def _called(value: Any) -> str:
    return {"Strided": "single tensor", "Array": "single array"}.get(
        type(value).__name__, type(value).__name__
    )
