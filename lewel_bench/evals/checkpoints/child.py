"""The process in which foreign files are read: `python child.py` with limits, see `limited`.

It answers requests, a line of JSON each, by a line of JSON. Before it opens anything foreign it
gives up whatever reading does not need: processor time and memory beyond what a file of that size
takes, threads and processes, files to write. So a file that would hang or fill the machine ends
this process and nothing else, whatever the reader overlooked.
"""

import codecs
import json
import os
import re
import resource
import signal
import struct
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lewel_bench.evals.checkpoints import files
from lewel_bench.evals.checkpoints.content import Content, why
from lewel_bench.evals.checkpoints.plain import Array

TOML = 1 << 20  # bytes of a layout
CODINGS = ("ascii", "latin-1", "cp437", "raw-unicode-escape")  # of names in zips, and of pickles


def main() -> None:
    """Answer the requests on standard input until it ends."""
    limits = json.loads(sys.argv[1])
    output = os.fdopen(limits["output"], "wb")  # while a file may still be opened for writing
    for coding in CODINGS:  # and a module imported
        codecs.lookup(coding)
    confine(limits)
    content: Content | None = None
    reply: Any
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "read" in request:
                content = files.read(Path(request["read"]), request["allowed"])
                reply = _described(content)
            elif "tensors" in request:
                assert content is not None
                reply = _written(content, request["tensors"], output)
            elif "layout" in request:
                reply = _layout(Path(request["layout"]))
            else:
                reply = _renamed(request["rename"], request["names"])
            answer = json.dumps({"reply": reply}, default=str)
        except (OSError, zipfile.BadZipFile, UnicodeError) as error:
            answer = json.dumps({"error": why(error)})
        except MemoryError:
            answer = json.dumps({"error": "needs more memory than a file of its size may take"})
        except RecursionError:
            answer = json.dumps({"error": "is nested too deeply"})
        except ValueError as error:
            answer = json.dumps({"error": str(error)})
        except Exception as error:  # whatever a broken file makes Python's readers raise
            answer = json.dumps({"error": f"is broken ({type(error).__name__})"})
        print(answer, flush=True)
    os._exit(0)


def confine(limits: Mapping[str, int]) -> None:
    """Limit this process for good: seconds of processor time and of the clock, bytes of memory
    beyond what it has now and of a file that it writes; no process, no thread, nothing to open but
    files to read."""
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[0])
    for what, most in (
        (resource.RLIMIT_CPU, limits["cpu"]),
        (resource.RLIMIT_AS, pages * resource.getpagesize() + limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["size"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),  # does not bind root, whom the hook below does
    ):
        hard = resource.getrlimit(what)[1]
        # a second more until the processor's limit kills without saying why
        last = most + 1 if what == resource.RLIMIT_CPU else most
        last = last if hard == resource.RLIM_INFINITY else min(last, hard)
        resource.setrlimit(what, (min(most, last), last))
    signal.alarm(limits["wall"])
    sys.addaudithook(_reading_only)


def _reading_only(event: str, arguments: tuple[Any, ...]) -> None:
    reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if reads or event == "builtins.id":
        return
    raise PermissionError(f"{event} is not allowed while a foreign file is read")


def _described(content: Content) -> dict[str, Any]:
    return {
        "shapes": {name: tensor.shape for name, tensor in content.tensors.items()},
        "tops": sorted(content.tops),
        "texts": dict(content.texts),
        "globals": sorted(content.globals),
    }


def _written(content: Content, names: list[str], output: BinaryIO) -> dict[str, Any]:
    """Write the numbers of some tensors as safetensors, each storage once as bytes; for each tensor
    what of them it is."""
    first: dict[int, str] = {}  # of the tensors that share numbers, by what has them
    header: dict[str, Any] = {}
    views: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = content.tensors[name]
        if isinstance(tensor, Array):
            size, place = len(tensor.data), first.setdefault(id(tensor), name)
            views[name] = [place, tensor.dtype, tensor.shape, tensor.fortran]
        else:
            size = tensor.storage.count * tensor.storage.itemsize
            place = first.setdefault(id(tensor.storage), name)
            views[name] = [place, tensor.storage.dtype, tensor.shape, tensor.strides, tensor.offset]
        if place not in header:
            header[place] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    output.seek(0)
    output.truncate()
    _put(output, struct.pack("<Q", len(text)) + text)
    for name, entry in header.items():
        tensor = content.tensors[name]
        try:
            numbers = tensor.data if isinstance(tensor, Array) else content.numbers(tensor.storage)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if [len(numbers)] != entry["shape"]:
            raise ValueError(f"the tensor {name} is cut off")
        _put(output, numbers)
    return views


def _put(output: BinaryIO, content: bytes) -> None:
    try:
        output.write(content)
        output.flush()
    except OSError as error:
        raise ValueError(
            f"its tensors do not fit into a temporary file: {why(error)}. TMPDIR names the folder"
        ) from None


def _layout(path: Path) -> dict[str, Any]:
    """A layout of a user's as TOML has it, its patterns tried."""
    if (size := files.regular(path)) > TOML:
        raise ValueError(f"has {size:,} bytes: a layout has some hundred")
    layout = tomllib.loads(path.read_text(encoding="utf-8"))
    rename = layout.get("rename")
    for pair in rename if isinstance(rename, list) else ():
        if (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            try:
                re.compile(pair[0]).sub(pair[1], "")
            except (re.error, IndexError):
                break  # which the layout's type will say better
    return layout


def _renamed(rename: list[list[str]], names: list[str]) -> list[str]:
    patterns = [(re.compile(pattern), becomes) for pattern, becomes in rename]
    renamed = []
    for name in names:
        for pattern, becomes in patterns:
            name = pattern.sub(becomes, name)
        renamed.append(name)
    return renamed
