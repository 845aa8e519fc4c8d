"""Files that want to be executed, to fill the memory, or that are broken; and how each is made.

Whatever would be executed writes the file that $HOSTILE_MARK names.
"""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from tests.evals.checkpoints import layouts

MARK = os.environ.get("HOSTILE_MARK", "/nonexistent/mark")
COMMAND = f"touch {MARK}"
HUGE = 1 << 40


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


def system(protocol: int) -> bytes:
    return pickle.dumps({"state_dict": Calls(os.system, COMMAND)}, protocol)


def torch_zip(pickled: bytes, **members: bytes) -> bytes:
    """A file of PyTorch with this data.pkl."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def saved(new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(layouts.state(1), file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def flipped(content: bytes) -> bytes:
    """One bit of the weights is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


def tensor_pickle(count: int, shape: tuple[int, ...], stride: int = 1) -> bytes:
    """A file of PyTorch whose only tensor says that it has `shape` over `count` numbers."""
    text = b"\x80\x02}X\x01\x00\x00\x00w" + b"ctorch._utils\n_rebuild_tensor_v2\n(("
    text += b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    text += b"L%dL\ntQK\x00(" % count + b"".join(b"L%dL\n" % n for n in shape) + b"t("
    text += b"K%c" % stride * len(shape) + b"t\x89ccollections\nOrderedDict\n)RtRs."
    return torch_zip(text, archive__data__0=b"\0" * 16)


def legacy(pickled: bytes) -> bytes:
    """The format of PyTorch before 1.6 around a pickle."""
    begin = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return begin + pickle.dumps({"little_endian": True}, 2) + pickled + pickle.dumps([], 2)


def compressed(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", b"\0" * size)
    return file.getvalue()


def named(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr(name, b"x")
    return file.getvalue()


def linked() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        info = zipfile.ZipInfo("archive/data/0")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return file.getvalue()


def overlapping() -> bytes:
    """A zip bomb without compression: many names for the same bytes."""
    content = torch_zip(pickle.dumps({}, 2), archive__data__0=b"\0" * 100_000)
    end = content.rfind(b"PK\x05\x06")
    start = struct.unpack_from("<I", content, end + 16)[0]
    directory = content[start:end]
    first = len(directory) // 2
    at = directory.index(b"PK\x01\x02", 4) if b"PK\x01\x02" in directory[4:] else first
    entry = directory[at:]
    group = directory[:at] + b"".join(
        entry.replace(b"archive/data/0", b"archive/data/%c" % (97 + n)) for n in range(20)
    )
    fixed = bytearray(content[end:])
    struct.pack_into("<HHI", fixed, 8, 21, 21, len(group))
    return content[:start] + group + bytes(fixed)


def tarred(name: str, link: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        if link:
            info.type, info.linkname = tarfile.SYMTYPE, link
        archive.addfile(info)
    return file.getvalue()


def laughs() -> bytes:
    """Lists of lists of lists: 10 ** 30 once walked through."""
    text = b"\x80\x02]q\x00(" + b"K\x01" * 10 + b"e"
    for n in range(30):
        text += b"]r" + struct.pack("<I", n + 1) + b"(" + (b"j" + struct.pack("<I", n)) * 10 + b"e"
    return text + b"."


def _short(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def told(before: bytes, after: bytes) -> bytes:
    """A message must not print the laughs that lie between these."""
    text = b"]q\x00(" + b"K\x01" * 10 + b"e"
    for n in range(30):
        text += b"0]r" + struct.pack("<I", n + 1) + b"(" + (b"j" + struct.pack("<I", n)) * 10 + b"e"
    return b"\x80\x02}" + before + text + after


_STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
_TENSOR = _short(b"w") + b"ctorch._utils\n_rebuild_tensor_v2\n("
_SHAPED = _STORAGE + _short(b"0") + _short(b"cpu") + b"K\x04tQ"


def prefixed() -> bytes:
    """A megabyte of a name before 60,000 others."""
    inner = b"".join(b"J" + struct.pack("<i", i) + b"K\x01" for i in range(60_000))
    return b"\x80\x02}" + _short(b"k" * (1 << 20)) + b"}(" + inner + b"us."


def patched(place: int, content: bytes) -> bytes:
    """Other bytes in the entry of the only member in a zip's list."""
    whole = bytearray(torch_zip(pickle.dumps({"a": 1}, 2)))
    start = whole.rfind(b"PK\x01\x02") + place
    whole[start : start + len(content)] = content
    return bytes(whole)


def crowded() -> bytes:
    """A header of 25,000 tensors without numbers."""
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return safetensors_with(b"{" + b",".join(b'"%d":' % n + entry for n in range(25_000)) + b"}")


def hashed() -> bytes:
    """A key whose hash would take for ever."""
    text = b"\x80\x02}K\x01\x85q\x00"
    for n in range(60):
        text += b"0" + (b"j" + struct.pack("<I", n)) * 3 + b"\x87r" + struct.pack("<I", n + 1)
    return text + b"K\x01s."


def nested() -> bytes:
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 50_000 + b"K\x01" + b"s" * 50_000 + b"."


def copies(name: bytes, first: bytes, more: bytes = b"") -> bytes:
    """The same large thing copied 100,000 times."""
    call = b"h\x01h\x00" + more + (b"\x86R" if more else b"\x85R")
    return b"\x80\x02]c" + name + b"\nq\x010" + first + b"q\x000" + (call + b"a") * 80_000 + b"."


def safetensors_with(header: bytes, length: int | None = None, tail: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + tail


def stack_global(module: str, name: str) -> bytes:
    def short(text: str) -> bytes:
        return b"\x8c" + bytes([len(text)]) + text.encode()

    return b"\x80\x04" + short(module) + short(name) + b"\x93" + short(COMMAND) + b"\x85R."


FILES: dict[str, Callable[[], bytes]] = {
    **{f"os.system, protocol {n}": (lambda n=n: system(n)) for n in range(6)},  # type: ignore[misc]
    "os.system in a zip": lambda: torch_zip(system(2)),
    "os.system in the older format": lambda: legacy(system(2)),
    "os.system before the magic": lambda: system(2) + saved(False),
    "builtins.eval": lambda: torch_zip(pickle.dumps(Calls(eval, f"open({MARK!r}, 'w')"), 2)),
    "builtins.getattr": lambda: torch_zip(pickle.dumps(Calls(getattr, "a", "upper"), 4)),
    "builtins.exec": lambda: pickle.dumps(Calls(exec, f"open({MARK!r}, 'w')"), 4),
    "builtins.__import__": lambda: pickle.dumps(Calls(__import__, "os"), 4),
    "dotted global": lambda: stack_global("os", "path.os.system"),
    "nested in an allowed class": lambda: stack_global("collections", "OrderedDict.__class__"),
    "torch.hub.load": lambda: torch_zip(stack_global("torch.hub", "load")),
    "torch.load inside": lambda: torch_zip(stack_global("torch.storage", "_load_from_bytes")),
    "numpy.load": lambda: stack_global("numpy", "load"),
    "numpy's testing": lambda: stack_global("numpy.testing._private.utils", "runstring"),
    "subprocess by INST": lambda: b"(S'" + COMMAND.encode() + b"'\nisubprocess\ngetoutput\n.",
    "os.system by OBJ": lambda: b"(cos\nsystem\nS'" + COMMAND.encode() + b"'\no.",
    "os.system by NEWOBJ": lambda: b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00a\x85\x81.",
    "made-up name": lambda: b"\x80\x04K\x01K\x02\x93.",
    "extension code": lambda: b"\x80\x02\x82\x01.",
    "persistent text": lambda: b"Pos.system\n.",
    "call of a text": lambda: b"\x80\x02X\x02\x00\x00\x00os)R.",
    "state of a text": lambda: b"\x80\x02X\x02\x00\x00\x00os}b.",
    "a whole model": lambda: torch_zip(pickle.dumps(torch.nn.Linear(2, 2), 2)),
    "array of objects": lambda: pickle.dumps({"a": np.array([{}], dtype=object)}),
    "TorchScript": lambda: torch_zip(pickle.dumps({}, 2), archive__code__m=b"def forward"),
    "no data.pkl": lambda: named("x").replace(b"data.pkl", b"data.txt"),
    "tar": lambda: tarred("../../evil"),
    "tar with a link": lambda: tarred("a", "/etc/passwd"),
    "tar with an absolute name": lambda: tarred("/etc/evil"),
    "zip with ../": lambda: named("../../evil"),
    "zip with an absolute name": lambda: named("/etc/evil"),
    "zip with a drive": lambda: named("C:\\evil"),
    "zip with a link": linked,
    "zip bomb": lambda: compressed(300 << 20),
    "overlapping zip bomb": overlapping,
    "zip with a huge list": lambda: saved()[:-10] + b"\xf0\xff\xff\x7f" + saved()[-6:],
    "zip without an end": lambda: saved()[:-100],
    "zip with a flipped byte": lambda: flipped(saved()),
    "older format, cut off": lambda: saved(False)[:-100],
    "older format, cut in its pickle": lambda: saved(False)[:300],
    "tensor larger than its storage": lambda: tensor_pickle(4, (5,)),
    "storage larger than the file": lambda: tensor_pickle(HUGE, (HUGE,)),
    "storage smaller than the file": lambda: tensor_pickle(2, (2,)),
    "negative size": lambda: tensor_pickle(4, (-1,)),
    "a million dimensions": lambda: tensor_pickle(4, (1,) * 10_000),
    "expanded bomb": lambda: tensor_pickle(4, (HUGE,), stride=0),
    "billion laughs": lambda: torch_zip(laughs()),
    "laughs as a shape": lambda: torch_zip(
        told(_TENSOR + _SHAPED + b"K\x00", b"K\x01\x85tRs."), archive__data__0=b"\0" * 16
    ),
    "laughs as the name of a storage": lambda: torch_zip(
        told(_TENSOR + _STORAGE, _short(b"cpu") + b"K\x04tQK\x00K\x04\x85K\x01\x85tRs.")
    ),
    "laughs as a dtype": lambda: told(_short(b"w") + b"cnumpy\ndtype\n", b"\x85Rs."),
    "laughs in a key": lambda: told(b"cpathlib\nPath\n)R", b"b" + _short(b"v" * 20) + b"s."),
    "a name of a megabyte": prefixed,
    "a global that writes to the terminal": lambda: stack_global("os\x1b[2J\nall is well", "x"),
    "a name that writes to the terminal": lambda: save({"\x1b]0;a\nb": torch.ones(1)}),
    "zip with an encrypted member": lambda: patched(8, b"\x01\x00"),
    "zip with a member beyond the end": lambda: patched(20, struct.pack("<II", 130, 130)),
    "safetensors of too many tensors": crowded,
    "copies of a text": lambda: copies(
        b"_codecs\nencode", b"X\x40\x42\x0f\x00" + b"a" * 1_000_000, b"X\x06\x00\x00\x00latin1"
    ),
    "copies of a list": lambda: copies(b"__builtin__\nlist", b"](" + b"K\x01" * 50_000 + b"e"),
    "endless hash": hashed,
    "nested dictionaries": nested,
    "memo far out": lambda: b"\x80\x02}r\xff\xff\xff\x7f.",
    "long text that is not there": lambda: b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"abc.....",
    "long frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"}.".ljust(20),
    "million instructions": lambda: b"\x80\x02]" + b"K\x01a" * 600_000 + b".",
    "endless line": lambda: b"I" + b"1" * 5_000_000 + b"\n.",
    "no end": lambda: b"\x80\x02" + b"}" * 1000,
    "pickle of a list": lambda: pickle.dumps([1, 2, 3] * 10),
    "single tensor": lambda: _one_tensor(),
    "no tensors": lambda: pickle.dumps({"epoch": 1, "state_dict": {}, "padding": "x" * 20}),
    "safetensors, huge header": lambda: safetensors_with(b"{}", HUGE, b" " * 20),
    "safetensors, no JSON": lambda: safetensors_with(b'{"a": nothing at all}   '),
    "safetensors, beyond the end": lambda: safetensors_with(
        b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', tail=b"\0" * 8
    ),
    "safetensors, another size": lambda: safetensors_with(
        b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}', tail=b"\0" * 8
    ),
    "safetensors, cut off": lambda: save({"conv1.weight": torch.ones(64, 3, 7, 7)})[:-50],
    "empty": lambda: b"",
    "noise": lambda: bytes(range(256)) * 8,
    "web page": lambda: b"<!DOCTYPE html><html>404 not found</html>",
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
    "gzip": lambda: b"\x1f\x8b\x08" + b"\0" * 100,
    "Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n",
    "BYOL's own": lambda: stack_global("haiku._src.data_structures", "FlatMapping"),
}


def _one_tensor() -> bytes:
    file = io.BytesIO()
    torch.save(torch.ones(3), file)
    return file.getvalue()


def padded(content: bytes) -> bytes:
    """Long enough to be looked into; what follows a pickle is not read."""
    return content.ljust(32, b"\0") if content else content


def write(folder: Path) -> None:
    """All of them, and what is no file."""
    folder.mkdir()
    for name, make in FILES.items():
        suffix = "safetensors" if name.startswith("safetensors") else "pth"
        (folder / f"{name.replace('/', ' slash ')}.{suffix}").write_bytes(padded(make()))
    (folder / "link to nothing.pth").symlink_to("not there")
    (folder / "link to itself.pth").symlink_to("link to itself.pth")
    (folder / "link to a device.pth").symlink_to("/dev/zero")
    (folder / "folder.pth").mkdir()
    os.mkfifo(folder / "pipe.pth")
