"""Attempts at a job: which one may write, and how each ended.

    KEY/claim.json           the attempt that may write: the last one to start
    KEY/attempts/NAME.json   one attempt; touched while it runs, rewritten when it ends

Two copies of a job can run at once: a node's daemon dies, its task survives, and SLURM starts the
job again elsewhere. The copy that lost its claim stops and never commits.
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
CLAIM_VARIABLE = "LEWEL_BENCH_CLAIM"  # FOLDER:ATTEMPT, for the process that computes


@dataclass(frozen=True)
class Attempt:
    """One start of one job. `mark` is the newest checkpoint at its start, `seen` the time of its
    last heartbeat or of its end, `ready` that of its first finished step (0.0: none), and `outcome`
    stays empty if it was killed."""

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
        """Its run time, accurate to one heartbeat if it was killed."""
        return round(max(0.0, self.seen - self.started), 1)


def begin(folder: Path, uid: str, task: int, processes: int, halvings: int, marks: str) -> Attempt:
    """Claim the job and record the attempt."""
    now = time.time()
    job = slurm_job_id()
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempt = Attempt(
        name=f"{time.time_ns()}-{job}.{restart}-{secrets.token_hex(3)}",
        uid=uid,
        task=task,
        job=job,
        restart=restart,
        node=node_name(),
        processes=processes,
        halvings=halvings,
        started=now,
        mark=newest_match(folder, marks),
        seen=now,
    )
    create_json(_path(folder, attempt.name), asdict(attempt))
    write_json(folder / CLAIM, {"attempt": attempt.name})
    return attempt


def node_name() -> str:
    """SLURM's name of the node that this process runs on."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def slurm_job_id() -> str:
    """The id of the SLURM job or array task that this process runs in, as squeue writes it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "0")


def end(folder: Path, attempt: Attempt, outcome: str, message: str = "") -> None:
    """Record how an attempt ended."""
    ended = replace(attempt, outcome=outcome, message=message, seen=time.time())
    _write(_path(folder, attempt.name), asdict(ended))


def record_first_step(folder: Path, attempt: Attempt) -> Attempt:
    """Record that the first step of an attempt is done; the attempt with its time."""
    begun = replace(attempt, ready=time.time())
    write_json(_path(folder, attempt.name), asdict(begun))
    return begun


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file; on a full disk overwrite it in place, which needs no space."""
    try:
        write_json(path, content)
    except OSError as error:
        if error.errno not in FULL:
            raise
        with open(path, "r+", encoding="utf-8") as file:
            file.write(json.dumps(content))
            file.truncate()


def heartbeat(folder: Path, attempt: Attempt) -> None:
    """Record that an attempt is alive."""
    os.utime(_path(folder, attempt.name))


def has_claim(folder: Path, name: str) -> bool:
    """Whether an attempt has the claim. A claim that is unreadable three times is lost."""
    for _ in range(3):
        claim = read_json(folder / CLAIM)
        if claim is not None:
            return claim.get("attempt") == name
        time.sleep(0.1)
    return False


def check_claim() -> None:
    """Raise ClaimLost if the attempt of this process has lost its claim. Does nothing outside a
    SLURM job. Call it before every commit."""
    where, _, name = os.environ.get(CLAIM_VARIABLE, "").rpartition(":")
    if where and not has_claim(Path(where), name):
        raise ClaimLost(f"another attempt has taken over job {Path(where).name}")


def history(folder: Path) -> list[Attempt]:
    """The attempts at a job, in the order of their starts. Damaged files are ignored."""
    try:
        names = sorted(name for name in os.listdir(folder / ATTEMPTS) if name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    attempts = []
    for name in names:
        path = folder / ATTEMPTS / name
        content = read_json(path)
        if content is None:
            continue
        fields = {k: v for k, v in content.items() if k in Attempt.__dataclass_fields__}
        if not fields.get("outcome"):
            fields["seen"] = path.stat().st_mtime
        with suppress(TypeError):  # a field is missing
            attempts.append(Attempt(**fields))
    return attempts


def reset(folder: Path) -> None:
    """Discard the failures of a job so far: the next pass submits it again."""
    now = time.time()
    name = f"{time.time_ns()}-retry-{secrets.token_hex(3)}"
    create_json(
        _path(folder, name),
        asdict(Attempt(name, "", 0, "", 0, "", 0, 0, now, "", "retry", "", now)),
    )


def summary(folder: Path) -> list[Mapping[str, Any]]:
    """Every attempt and its cost, for the record that the newest attempt is about to commit. Host
    names are left out: records are shared."""
    now = os.environ.get(CLAIM_VARIABLE, "").rpartition(":")[2]
    tried = [
        replace(attempt, outcome="done", seen=time.time()) if attempt.name == now else attempt
        for attempt in history(folder)
    ]
    return [
        {
            "job": attempt.job,
            "restart": attempt.restart,
            "outcome": attempt.outcome or "killed",
            "seconds": attempt.seconds,
            "processes": attempt.processes,
            **({"halvings": attempt.halvings} if attempt.halvings else {}),
        }
        for attempt in tried
        if attempt.outcome != "retry"
    ]


def device_hours(folder: Path) -> float:
    """The device-hours of all attempts at a job."""
    return sum(attempt.seconds * attempt.processes for attempt in history(folder)) / 3600


def _path(folder: Path, name: str) -> Path:
    return folder / ATTEMPTS / f"{name}.json"
