"""JSON files that several machines share: whole or absent, and never two writers of one name."""

import json
from pathlib import Path
from typing import Any

from lewel_bench import files


def replace(path: Path, content: Any) -> None:
    """Write JSON; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(content))


def create(path: Path, content: Any) -> bool:
    """Write JSON unless the file exists; whether this writer was the first."""
    return files.create(path, json.dumps(content))


def read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is none, or something else."""
    try:
        content = json.loads(files.read_regular(path, files.LARGEST_JSON))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
