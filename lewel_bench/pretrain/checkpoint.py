"""Checkpoints that survive a kill at any moment, and the backbone file that evaluations read."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from lewel_bench.files import FULL, write_atomically
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.pretrain.report import Report
from lewel_bench.value import explain

PROJECTOR = "projector.safetensors"  # next to its backbone, whose hash its header has
HEADER = 1 << 20  # bytes of a backbone's header; a ResNet-101's has 70,000
KEPT = 2  # if the newest is corrupt, the one before is used


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `state` for `step`, atomically, and keep the newest two.

    The file's name carries the SHA-256 of its content, so a reader can verify it without a second
    file. Raises OSError (disk full, quota, permission) that names the folder and the last
    good checkpoint; earlier checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(dict(state), content)
    data = content.getbuffer()
    path = folder / f"checkpoint-{step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    try:
        write_atomically(path, data)
    except OSError as error:
        last = newest(folder)
        raise OSError(
            error.errno,
            f"cannot save the checkpoint of step {step} in {folder}: {error.strerror}. "
            + (f"Last good checkpoint: {last.name}. " if last else "No earlier checkpoint exists. ")
            + ("Make room" if error.errno in FULL else "Make the folder writable")
            + ", then run the same command again",
        ) from error
    for old in (*_files(folder)[:-KEPT], *_torn(folder)):
        old.unlink(missing_ok=True)
    return path


def load(folder: Path, report: Report, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest intact state in `folder`, or None; corrupt files are reported as warnings."""
    for path in reversed(_files(folder)):
        data = path.read_bytes()
        if not _intact(path, data):
            path.rename(path.with_suffix(".corrupt"))
            before = newest(folder)
            then = (
                f"using the one before, {before.name}" if before else "none is left, starting over"
            )
            report("warning", message=f"checkpoint {path} is corrupt (hash mismatch): {then}")
            continue
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        return state
    return None


def is_ours(path: Path) -> bool:
    """Whether the file's name is that of a checkpoint."""
    return path.name.startswith("checkpoint-") and path.suffix == ".pt"


def open_file(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file. Raises ValueError if it is corrupt."""
    data = path.read_bytes()
    if not _intact(path, data):
        raise ValueError(f"{path} is corrupt (hash mismatch)")
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _intact(path: Path, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest()[:16] == path.stem.rsplit("-", 1)[-1]


def newest(folder: Path) -> Path | None:
    """The last checkpoint file in `folder`, not read."""
    files = _files(folder)
    return files[-1] if files else None


def clear(folder: Path) -> None:
    """Remove the checkpoints of a finished job, and incomplete writes."""
    for path in (*_files(folder), *folder.glob("checkpoint-*.corrupt"), *_torn(folder)):
        path.unlink(missing_ok=True)


def _torn(folder: Path) -> list[Path]:
    return list(folder.glob(".checkpoint-*.pt.*"))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*-*.pt"))


def header_of(spec: Backbone) -> dict[str, Any]:
    """The architecture entries of a backbone file's header."""
    header = spec.model_dump(mode="json")
    return {k: v if isinstance(v, list) else str(v) for k, v in header.items() if v is not None}


def write_backbone(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write weights and a small header, atomically; a backbone by torchvision's keys.

    Equal weights make equal bytes: safetensors writes several metadata entries in random order, so
    the header is one entry of JSON.
    """
    metadata = {"backbone": json.dumps(dict(header), sort_keys=True)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    write_atomically(path, serialise(tensors, metadata=metadata))


def read_backbone(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a backbone file. Raises ValueError naming a broken file, or one
    whose header is larger than that of any backbone: it may have come in a bundle."""
    try:
        with open(path, "rb") as head:
            length = int.from_bytes(head.read(8), "little")
        if length > HEADER:
            raise ValueError(f"its header is too large ({length:,} bytes)")
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["backbone"])
            if not isinstance(header, dict):
                raise ValueError("its header is not a JSON object")
            return {k: file.get_tensor(k) for k in file.keys()}, header  # noqa: SIM118 (no dict)
    except KeyError:
        raise ValueError(
            f"{path} has no lewel-bench header: it was not written by lewel-bench"
        ) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read the backbone {path}: {error}") from None


def read_network(path: Path) -> tuple[dict[str, Tensor], Backbone]:
    """The weights of a backbone's file and what its header calls them. Raises ValueError naming a
    file that is broken or has another header, in one line."""
    state, header = read_backbone(path)
    try:
        return state, Backbone.model_validate(header)
    except ValidationError as error:
        raise ValueError(f"{path} has no valid backbone in its header: {explain(error)}") from None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
