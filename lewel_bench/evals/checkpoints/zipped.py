"""PyTorch's format since 1.6: an uncompressed zip archive of one pickle and a member a storage."""

import io
import stat
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

from lewel_bench.evals.checkpoints.content import Content, Source, loaded, of_tree, why
from lewel_bench.evals.checkpoints.pickles import Bounded
from lewel_bench.evals.checkpoints.plain import Storage

PICKLE = 64 << 20  # bytes of the pickle
DIRECTORY = 4 << 20  # bytes of the list of members
CODE = ("code/", "constants.pkl")
SCRIPT = (
    "a TorchScript archive, which holds code that is not run here: in the software that wrote it, "
    "save the weights alone, torch.save(model.state_dict(), FILE), and give that file"
)
Members = Mapping[str, zipfile.ZipInfo]


def read(path: Path, size: int, allowed: Collection[str]) -> Content:
    """The content of an archive of `size` bytes. Raises ValueError, BadZipFile or OSError."""
    _directory(path, size)
    archive = zipfile.ZipFile(path)  # stays open, so that its list of members is read once
    members = {member.filename: member for member in archive.infolist()}
    if any(f"/{part}" in name for name in members for part in CODE):
        raise ValueError(SCRIPT)
    _members(archive.infolist(), size)
    folder = _folder(members)
    order = f"{folder}byteorder"
    if order in members and (members[order].file_size != 6 or archive.read(order) != b"little"):
        raise ValueError("its numbers are big-endian: save it again on a usual machine")
    text = archive.read(f"{folder}data.pkl")
    globals_: set[str] = set()
    tree = loaded(Bounded(io.BytesIO(text), len(text)), allowed, globals_)

    def check(storage: Storage) -> None:
        name = f"{folder}data/{storage.key}"
        if name not in members:
            raise ValueError(f"the storage {storage.key[:60]} is not in it")
        size, wanted = members[name].file_size, storage.count * storage.itemsize
        if size != wanted:
            raise ValueError(
                f"the storage {storage.key[:60]} has {size:,} bytes, but its tensors say {wanted:,}"
            )

    def get(storage: Storage) -> bytes:
        try:
            return archive.read(f"{folder}data/{storage.key}")  # compares the checksum too
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(why(error)) from None

    return of_tree(tree, globals_, Source(check, get))


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
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a zip archive with two members of one name")
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise ValueError(f"a zip archive with the member {member.filename[:80]!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"a zip archive with the link {member.filename[:80]!r}")
        if member.flag_bits & 1:
            raise ValueError(f"a zip archive with the encrypted member {member.filename[:80]!r}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"a zip archive with the compressed member {member.filename[:80]!r}: PyTorch "
                "compresses nothing"
            )
    if sum(member.file_size for member in members) > size:
        raise ValueError(f"a zip archive whose members are larger than its {size:,} bytes")


def _folder(members: Members) -> str:
    """The folder that everything lies in, with a slash."""
    mains = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(mains) != 1:
        raise ValueError("a zip archive without one data.pkl: PyTorch did not write it")
    folder = mains[0].removesuffix("data.pkl")
    if members[mains[0]].file_size > PICKLE:
        raise ValueError(f"its data.pkl has {members[mains[0]].file_size:,} bytes")
    return folder
