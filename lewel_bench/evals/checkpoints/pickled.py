"""Files that begin with a pickle: of NumPy arrays, as detectron2's, and PyTorch's before 1.6, where
several pickles come before the numbers of the storages, one storage after another."""

import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from lewel_bench.evals.checkpoints.content import Content, Source, loaded, of_tree
from lewel_bench.evals.checkpoints.pickles import Bounded
from lewel_bench.evals.checkpoints.plain import Storage

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of PyTorch's
VERSION = 1001


def read(path: Path, size: int, allowed: Collection[str]) -> Content:
    """The content of a file of `size` bytes. Raises ValueError or OSError."""
    globals_: set[str] = set()
    with open(path, "rb") as file:
        source = Bounded(file, size)
        first = loaded(source, allowed, globals_)
        if first != MAGIC:
            return of_tree(first, globals_, Source(_nowhere, lambda storage: b""))
        version, system = loaded(source), loaded(source)
        storages: dict[str, Storage] = {}
        if version != VERSION or not isinstance(system, dict) or not system.get("little_endian"):
            raise ValueError("is a checkpoint of an unknown version or of a big-endian machine")
        tree, keys = loaded(source, allowed, globals_, storages), loaded(source)
        return _of_storages(path, file, size, tree, keys, globals_, storages)


def _nowhere(storage: Storage) -> None:
    raise ValueError("it refers to storages of PyTorch outside of PyTorch's format")


def _of_storages(
    path: Path,
    file: BinaryIO,
    size: int,
    tree: Any,
    keys: Any,
    globals_: set[str],
    storages: dict[str, Storage],
) -> Content:
    begin = file.tell()
    places: dict[str, int] = {}

    def get(storage: Storage) -> bytes:
        with open(path, "rb") as file:
            file.seek(places[storage.key])
            return file.read(storage.count * storage.itemsize)

    content = of_tree(tree, globals_, Source(lambda storage: None, get))
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise ValueError("the storages that it lists are not those of its tensors")
    for key in keys:
        file.seek(begin)
        (count,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
        if count != storages[key].count:
            raise ValueError(
                f"the storage {key[:60]} has {count} numbers, but its tensors say "
                f"{storages[key].count}"
            )
        places[key] = begin + 8
        begin += 8 + count * storages[key].itemsize
        if begin > size:
            raise ValueError("it ends before its tensors do: it was cut off")
    return content
