"""Files that several machines share: whole or not there, and never two writers of one name."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def _beside(path: Path, data: str) -> Iterator[Path]:
    # a name of its own for every write: submitit's fixed one is refused for ever after a kill
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{_token()}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def _token() -> str:
    return secrets.token_hex(4)


def replace(path: Path, content: Any) -> None:
    """Write JSON; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path, json.dumps(content)) as temporary:
        os.replace(temporary, path)


def create(path: Path, content: Any) -> bool:
    """Write JSON unless the file is there; whether this writer was the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path, json.dumps(content)) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            # NFS may lose the answer to a link that it made (rule 7)
            if os.stat(temporary).st_nlink != 2:
                raise
    return True


def read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is none, or something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
