"""A foreign file, read in a child process with limits (see `child`): its tensors come back in a
file of safetensors, everything else as JSON.

The limits grow with the file, so that a small one cannot ask for much time or memory: SECONDS of
processor time, SPARE bytes of memory beyond three times the file (a storage, its copy, and the text
that a pickle of NumPy's has it in), PATIENCE seconds of the clock, the file's size for its tensors.
"""

import glob
import json
import math
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import lewel_bench
from lewel_bench.value import printable

SECONDS = 2  # a ResNet-101 with its optimizer's state takes 0.5
SPARE = 256 << 20
PATIENCE = 60
SPEED = 4 << 20  # bytes a second of a slow disk
REPLY = 64 << 20  # bytes; 20,000 names of 500 characters are 10 MB
INDEX = ".index.json"
START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from lewel_bench.evals.checkpoints import child; child.main()"
)


@dataclass(frozen=True)
class Content:
    """`shapes` of the tensors by name, the names at the top (`tops`) and some texts there, and the
    foreign `globals` that were passed over; `tensors(names)` raises ValueError where the file does
    not hold what it says."""

    shapes: Mapping[str, tuple[int, ...]]
    tops: frozenset[str]
    texts: Mapping[str, str]
    globals: frozenset[str]
    tensors: Callable[[Collection[str]], dict[str, Tensor]]


class Reader:
    """The child that reads `path`. Every method raises ValueError, one line that names the file and
    what is wrong with it."""

    def __init__(
        self,
        parts: Sequence[Path],
        size: int,
        process: "subprocess.Popen[str]",
        output: int,
        cpu: int,
    ) -> None:
        self.path, self.parts, self.size = parts[0], parts, size
        self.process, self.output, self.cpu = process, output, cpu

    def content(self, allowed: Collection[str] = ()) -> Content:
        """What the file holds; `allowed` are globals that may be in it, and are passed over."""
        reply = self._ask(self.path, read=str(self.path), allowed=sorted(allowed))
        return Content(
            shapes={name: tuple(shape) for name, shape in reply["shapes"].items()},
            tops=frozenset(reply["tops"]),
            texts=reply["texts"],
            globals=frozenset(reply["globals"]),
            tensors=self._tensors,
        )

    def layout(self, path: Path) -> Any:
        """A layout of a user's own as its TOML has it."""
        return self._ask(path, layout=str(path))

    def renamed(self, rename: Sequence[tuple[str, str]], names: Sequence[str]) -> list[str]:
        """The names after a layout's patterns, one after another."""
        renamed: list[str] = self._ask(self.path, rename=list(rename), names=list(names))
        return renamed

    def _tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        views = self._ask(self.path, tensors=list(names))
        needed = sum(_size(*view) for _, *view in views.values())
        if needed > 2 * self.size:  # views of one storage
            raise ValueError(
                f"{self.path}: its tensors need {needed:,} bytes, the file has {self.size:,}"
            )
        try:
            with safe_open(f"/proc/self/fd/{self.output}", framework="pt") as file:
                storages = {place: file.get_tensor(place).clone() for place, *_ in views.values()}
            return {name: _tensor(storages[place], *view) for name, (place, *view) in views.items()}
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{self.path}: its tensors cannot be read: {error}") from None

    def _ask(self, about: Path, **request: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline(REPLY)
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):
            raise ValueError(f"{about}: {self._ended()}")
        reply = json.loads(answer)
        if "error" in reply:
            raise ValueError(f"{about}: {' '.join(printable(reply['error']).split())}")
        return reply["reply"]

    def _ended(self) -> str:
        """Why there is no answer."""
        code = self.process.poll()
        if code is None:  # what it says has no end
            self.process.kill()
        code = self.process.wait()
        if code == -signal.SIGXCPU:
            return f"takes more than {self.cpu} s to read, as no checkpoint of its size does"
        if code == -signal.SIGALRM:
            return "takes too long to read: copy it to a local disk, if it lies on a slow one"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"cannot be read: the process that reads it ended by {name}"


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """The reader of a file; a folder stands for the index that lies in it. Raises ValueError naming
    what is no file."""
    parts = _parts(path)
    size = sum(part.stat().st_size for part in parts)
    cpu = SECONDS + (size >> 28)
    with tempfile.TemporaryFile(prefix="lewel-bench-") as output:
        limits = {
            "cpu": cpu,
            "memory": SPARE + 3 * size,
            "size": size + (1 << 20),
            "wall": PATIENCE + size // SPEED,
            "output": output.fileno(),
        }
        root = Path(lewel_bench.__file__).parents[1]
        loader = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}  # of Python itself
        process = subprocess.Popen(
            [sys.executable, "-ISB", "-W", "ignore", "-c", START, root, json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=loader,
            pass_fds=(output.fileno(),),
        )
        try:
            yield Reader(parts, size, process, output.fileno(), cpu)
        finally:
            process.kill()
            process.communicate()


def _parts(path: Path) -> list[Path]:
    """A file, or an index and the files that belong to it. Raises ValueError for what is none."""
    try:
        if path.is_dir():
            indexes = sorted(path.glob(f"*{INDEX}"))
            if len(indexes) != 1:
                raise ValueError(f"{path}: is a folder: give the file in it")
            path = indexes[0]
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path}: is no regular file")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if not path.name.endswith(INDEX):
        return [path]
    shards = path.parent.glob(f"{glob.escape(path.name.split('.')[0])}-*-of-*")
    return [path, *sorted(shard for shard in shards if shard.is_file())]


def _size(dtype: str, shape: Sequence[int], order: bool | Sequence[int], *_: int) -> int:
    """Bytes of what `_tensor` returns."""
    code = np.dtype(dtype) if isinstance(order, bool) else getattr(torch, dtype)
    return math.prod(shape) * int(code.itemsize)


def _tensor(
    content: Tensor,
    dtype: str,
    shape: Sequence[int],
    order: bool | Sequence[int],
    offset: int = 0,
) -> Tensor:
    """A NumPy array by its dtype such as "<f4" and whether Fortran's order is its own; a tensor of
    PyTorch by the name of its dtype, its strides and offset."""
    if isinstance(order, bool):
        array = content.numpy().view(dtype).reshape(shape, order="F" if order else "C")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    whole = content.view(getattr(torch, dtype))
    return whole.as_strided(tuple(shape), tuple(order), offset).clone().contiguous()
