"""Attempts at a cell: who works on it now, and how each attempt ended.

    KEY/claim.json           the attempt that may write; the last one to start wins
    KEY/attempts/NAME.json   one attempt; touched while it lives, rewritten when it ends

Two copies of one job do happen: a node's daemon dies, its task lives on, SLURM starts the job
again elsewhere. The copy that lost its claim stops and never commits.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lewel_bench.files import (
    ATTEMPTS,
    FULL,
    ClaimLost,
    create_json,
    newest_match,
    read_json,
    write_json,
)

CLAIM = "claim.json"
VARIABLE = "LEWEL_BENCH_CLAIM"  # FOLDER:ATTEMPT, for the process that computes


@dataclass(frozen=True)
class Attempt:
    """One start of one cell. `mark` is the newest checkpoint that it found, `seen` when it was last
    known to live, `ready` when its first step was done (0.0: never), and `outcome` stays empty when
    it was killed."""

    name: str
    uid: str
    task: int
    job: str
    restart: int
    node: str
    processes: int
    halvings: int
    started: float
    mark: str = ""
    outcome: str = ""
    message: str = ""
    seen: float = 0.0
    ready: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it ran, to a heartbeat's exactness when it was killed."""
        return round(max(0.0, self.seen - self.started), 1)


def begin(folder: Path, uid: str, task: int, processes: int, halvings: int, marks: str) -> Attempt:
    """Take the claim of a cell and write the attempt down."""
    now = time.time()
    job = this_job()
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempt = Attempt(
        name=f"{time.time_ns()}-{job}.{restart}-{secrets.token_hex(3)}",
        uid=uid,
        task=task,
        job=job,
        restart=restart,
        node=node(),
        processes=processes,
        halvings=halvings,
        started=now,
        mark=newest_match(folder, marks),
        seen=now,
    )
    create_json(_path(folder, attempt.name), asdict(attempt))
    write_json(folder / CLAIM, {"attempt": attempt.name})
    return attempt


def node() -> str:
    """The node that this process runs on, by SLURM's name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def this_job() -> str:
    """The id of the job that this process runs in, as squeue writes it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "0")


def end(folder: Path, attempt: Attempt, outcome: str, message: str = "") -> None:
    """Write down how an attempt ended."""
    ended = replace(attempt, outcome=outcome, message=message, seen=time.time())
    _write(_path(folder, attempt.name), asdict(ended))


def has_begun(folder: Path, attempt: Attempt) -> Attempt:
    """Write down that the first step of an attempt is done."""
    begun = replace(attempt, ready=time.time())
    write_json(_path(folder, attempt.name), asdict(begun))
    return begun


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file; on a full disk in its place, which takes no room."""
    try:
        write_json(path, content)
    except OSError as error:
        if error.errno not in FULL:
            raise
        with open(path, "r+", encoding="utf-8") as file:
            file.write(json.dumps(content))
            file.truncate()


def beat(folder: Path, attempt: Attempt) -> None:
    """Show that an attempt lives."""
    os.utime(_path(folder, attempt.name))


def holds(folder: Path, name: str) -> bool:
    """Whether an attempt still has the claim; a claim that cannot be read three times is lost."""
    for _ in range(3):
        claim = read_json(folder / CLAIM)
        if claim is not None:
            return claim.get("attempt") == name
        time.sleep(0.1)
    return False


def check() -> None:
    """Raise ClaimLost when this process computes for an attempt that lost its claim; outside of a
    cluster's job there is nothing to lose. To be called before every commit."""
    where, _, name = os.environ.get(VARIABLE, "").rpartition(":")
    if where and not holds(Path(where), name):
        raise ClaimLost(f"another attempt at {Path(where).name} has taken over")


def history(folder: Path) -> list[Attempt]:
    """The attempts at a cell, in the order of their starts; a damaged file is as if not there."""
    try:
        names = sorted(name for name in os.listdir(folder / ATTEMPTS) if name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for name in names:
        path = folder / ATTEMPTS / name
        content = read_json(path)
        if content is None:
            continue
        fields = {k: v for k, v in content.items() if k in Attempt.__dataclass_fields__}
        if not fields.get("outcome"):
            fields["seen"] = path.stat().st_mtime
        with suppress(TypeError):  # it lacks a field
            found.append(Attempt(**fields))
    return found


def forgive(folder: Path) -> None:
    """Let a cell be tried anew whatever happened before."""
    now = time.time()
    name = f"{time.time_ns()}-retry-{secrets.token_hex(3)}"
    create_json(
        _path(folder, name),
        asdict(Attempt(name, "", 0, "", 0, "", 0, 0, now, "", "retry", "", now)),
    )


def summary(folder: Path) -> list[Mapping[str, Any]]:
    """Every attempt and its cost, for the record that the newest one is about to commit. No name of
    a host: a record may go round."""
    now = os.environ.get(VARIABLE, "").rpartition(":")[2]
    tried = [
        replace(one, outcome="done", seen=time.time()) if one.name == now else one
        for one in history(folder)
    ]
    return [
        {
            "job": one.job,
            "restart": one.restart,
            "outcome": one.outcome or "killed",
            "seconds": one.seconds,
            "processes": one.processes,
            **({"halvings": one.halvings} if one.halvings else {}),
        }
        for one in tried
        if one.outcome != "retry"
    ]


def device_hours(folder: Path) -> float:
    """The hours of devices that all attempts at a cell have taken."""
    return sum(one.seconds * one.processes for one in history(folder)) / 3600


def _path(folder: Path, name: str) -> Path:
    return folder / ATTEMPTS / f"{name}.json"
