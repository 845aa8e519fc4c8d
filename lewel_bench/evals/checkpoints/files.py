"""A foreign file as named tensors: PyTorch's two formats, safetensors, pickles of NumPy arrays.

Nothing is unpacked to disk and nothing is executed (see `pickles`). What a file says of itself is
held against its size before any memory is taken, which torch.load does not do. This runs in the
child process (see `child`).
"""

import json
import math
import os
import stat
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lewel_bench.evals.checkpoints import pickled, zipped
from lewel_bench.evals.checkpoints.content import Content, nameable, usable
from lewel_bench.evals.checkpoints.plain import DIMENSIONS, Array, Storage, Strided

HEADER = 4 << 20  # bytes of safetensors' header, or of an index; that of a ResNet-101 has 70,000
LEAST = 16  # bytes of a file
INDEX = ".index.json"  # of a checkpoint in several files, as Hugging Face writes them
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
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
    """The content of a file, or of those that an index names; `allowed` are globals that may be in
    it, and are passed over. Raises ValueError for what is wrong with it, in one line, and whatever
    a broken file makes Python's own readers raise."""
    if path.name.endswith(INDEX):
        return _sharded(path, allowed)
    size = regular(path)
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


def regular(path: Path) -> int:
    """The size of a file. Raises ValueError for what is none, OSError for what is not there."""
    status = os.stat(path)  # what a link leads to
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no regular file")
    if status.st_size < LEAST:
        raise ValueError(f"has {status.st_size} bytes: the download or the copy was cut off")
    return status.st_size


def _sharded(path: Path, allowed: Collection[str]) -> Content:
    """The content of all files that an index names, each of which lies beside it."""
    if (size := regular(path)) > HEADER:
        raise ValueError(f"an index of {size:,} bytes")
    index = json.loads(path.read_bytes(), object_pairs_hook=_once)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError('an index without a "weight_map" from names to files')
    contents: dict[str, Content] = {}
    for name in sorted(set(shards.values())):
        if Path(name).name != name or not name.isprintable() or name.endswith(INDEX):
            raise ValueError(f"it names the file {ascii(name)[:80]}, which cannot lie beside it")
        try:
            contents[name] = read(path.parent / name, allowed)
        except FileNotFoundError:
            raise ValueError(f"its part {name} is not beside it") from None
        except ValueError as error:
            raise ValueError(f"its part {name}: {error}") from None
    tensors: dict[str, Strided | Array] = {}
    where: dict[int, Content] = {}  # by the identity of a storage: keys of two files may be equal
    for name, file in shards.items():
        if (tensor := contents[file].tensors.get(name)) is None:
            raise ValueError(f"the tensor {name[:80]} is not in {file}, where its index has it")
        tensors[name] = tensor
        if isinstance(tensor, Strided):
            where[id(tensor.storage)] = contents[file]
    nameable(tensors)
    return Content(
        tensors=tensors,
        tops=frozenset(name.split(".")[0] for name in tensors),
        texts={key: text for content in contents.values() for key, text in content.texts.items()},
        globals=frozenset().union(*(content.globals for content in contents.values())),
        numbers=lambda storage: where[id(storage)].numbers(storage),
    )


def _safetensors(path: Path, head: bytes, size: int) -> Content:
    (length,) = struct.unpack("<Q", head[:8])
    if length > min(HEADER, size - 8):
        raise ValueError(f"its header says that it has {length:,} bytes, the file has {size:,}")
    with open(path, "rb") as file:
        file.seek(8)
        header = json.loads(file.read(length), object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("its metadata are no texts by name")
    nameable(header)
    tensors, places = {}, {}
    for name, entry in header.items():
        tensors[name], places[name] = _entry(name, entry)
    end = 0
    for begin, stop in sorted(places.values()):
        if begin != end:
            raise ValueError("its tensors overlap, or leave a gap between them")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"its tensors need {8 + length + end:,} bytes, the file has {size:,}")

    def numbers(storage: Storage) -> bytes:
        with open(path, "rb") as file:
            file.seek(8 + length + places[storage.key][0])
            return file.read(storage.count * storage.itemsize)

    tops = frozenset(name.split(".")[0] for name in tensors)
    return Content(tensors, tops, usable(texts), frozenset(), numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("it has the same name twice")
    return entries


def _entry(name: str, entry: Any) -> tuple[Strided, tuple[int, int]]:
    """A tensor of safetensors' header, and where its bytes begin and end."""
    shape, place = entry["shape"], entry["data_offsets"]
    whole = all(type(n) is int and 0 <= n < 1 << 60 for n in (*shape, *place))
    if entry["dtype"] not in DTYPES or not whole or len(shape) > DIMENSIONS:
        raise ValueError(f"the entry of {name[:80]} in its header is broken, or of another dtype")
    dtype, itemsize = DTYPES[entry["dtype"]]
    (begin, end), count = place, math.prod(shape)
    if end - begin != count * itemsize:
        raise ValueError(f"the tensor {name[:80]} of {tuple(shape)} has {end - begin:,} bytes")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = Storage(dtype, itemsize, name, count)
    return Strided(storage, 0, tuple(shape), strides), (begin, end)
