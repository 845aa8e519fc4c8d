"""What a job writes while it runs: its events, and why it failed."""

import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lewel_bench.files import FAILURE, described, naming, read_json, write_atomically
from lewel_bench.harness.rundir import CRASH, EVENTS, JobDir
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.report import Report


class Log:
    """Writes every event to `events.jsonl` and passes it on; other ranks than 0 are silent."""

    def __init__(self, folder: Path, onward: Report) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.onward = folder / EVENTS, onward
        self.tensorboard = _tensorboard(folder)
        if distributed.rank() == 0:
            _end_cut_line(self.path)

    def __call__(self, event: str, /, **fields: Any) -> None:
        if distributed.rank() != 0:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields})
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self.tensorboard and "step" in fields:
            for name, value in fields.items():
                if isinstance(value, int | float) and name not in ("step", "steps"):
                    self.tensorboard.add_scalar(f"{event}/{name}", value, fields["step"])
        with suppress(OSError):  # a terminal or pipe that was closed: the event is in the file
            self.onward(event, **fields)

    def close(self) -> None:
        """Write what TensorBoard still holds."""
        if self.tensorboard:
            self.tensorboard.close()


def _end_cut_line(path: Path) -> None:
    """A kill may have cut the last event: the next one needs a line of its own."""
    with naming(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # it is optional; events.jsonl holds the same
        return None
    return SummaryWriter(str(folder / "tensorboard")) if distributed.rank() == 0 else None


class Failed(Exception):
    """How another process failed at a job, in words that are complete."""


def describe_error(error: Exception) -> str:
    """An error in one line; one that is nobody's mistake in what was asked with its type."""
    kind = "" if isinstance(error, ValueError | OSError | Failed) else f"{type(error).__name__}: "
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{kind}{described(error)}{notes}"


def write_failure(folder: Path, error: Exception) -> None:
    """Write why a job failed; of several ranks the first says it, the others follow from it."""
    content = {
        "message": describe_error(error),
        "mistake": isinstance(error, ValueError | OSError),
        "time": datetime.now(UTC).isoformat(),
        "traceback": traceback.format_exc(),
    }
    try:
        if distributed.world() == 1 or not (folder / FAILURE).exists():
            write_atomically(folder / FAILURE, json.dumps(content, indent=1))
    except OSError:
        print(f"cannot write {folder / FAILURE}: {content['message']}", file=sys.stderr)


@contextmanager
def crashes(folder: Path) -> Iterator[None]:
    """Within this, a signal of a native library that ends the process, such as SIGSEGV, leaves the
    Python stack in a file of the job's folder (`JobDir.crash_message` reads it)."""
    path = folder / CRASH.replace("*", str(distributed.rank()))
    with open(path, "wb") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            path.unlink(missing_ok=True)


def clear_failure(folder: Path) -> None:
    """Remove what an earlier attempt at a job said of its failure."""
    for path in (folder / FAILURE, *folder.glob(CRASH)):
        path.unlink(missing_ok=True)


def failure(folder: Path, since: float = 0.0) -> Exception | None:
    """Why the last attempt at a job failed, where it did so after the time `since`."""
    path = folder / FAILURE
    try:
        if path.stat().st_mtime < since:
            return None
    except FileNotFoundError:
        return Failed(message) if (message := JobDir(folder).crash_message(since)) else None
    content = read_json(path)
    if content is None:
        return None
    return (ValueError if content["mistake"] else Failed)(content["message"])
