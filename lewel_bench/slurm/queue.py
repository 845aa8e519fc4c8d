"""What SLURM says: one call for all jobs, and what a cluster allows.

`squeue` says what lives. `sacct` lags, and shows a job that the controller has lost as pending for
ever, so it only explains how a job ended (rule 3); everything works without it.
"""

import os
import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

TIMEOUT_S = 20.0  # a controller that is down answers after 9 s
MOST = 500  # ids in one command: an argument is at most 128 KiB
# Variables that are options of SLURM's commands: with SQUEUE_PARTITION living jobs are not shown,
# and would be submitted again.
OPTIONS = ("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_")
KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})  # how SLURM is reached
ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
# A job that waits for one of these waits for ever (rule 4).
NEVER = {
    "PartitionConfig": "it asks for more than a node of the partition has",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionTimeLimit": "its time limit is over the partition's",
    "BadConstraints": "no node has what it asks for",
    "DependencyNeverSatisfied": "what it waits for has failed",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "it is held; scontrol release lets it go",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its qos is not valid",
    "AccountNotAllowed": "the partition does not allow its account",
    "QOSNotAllowed": "the partition does not allow its qos",
}


class Unreachable(Exception):
    """SLURM cannot be asked, so nothing may be submitted: its jobs may live."""


@dataclass(frozen=True)
class Task:
    """One line of `squeue`: a job, or one task of an array."""

    id: str  # `12` or `12_3`
    name: str
    state: str
    reason: str = ""
    priority: float = 0.0
    elapsed: str = ""
    nodes: str = ""
    user: int = -1
    partition: str = ""  # several with commas between them while it waits

    @property
    def mine(self) -> bool:
        """Whether this user submitted it: only such jobs count against this user's limits, and only
        such can this user cancel."""
        return self.user == os.getuid()

    @property
    def lives(self) -> bool:
        """Whether a process of it may exist or start; COMPLETING is alive."""
        return self.state not in ENDED

    @property
    def stuck(self) -> str:
        """Why it will never start, or nothing."""
        if self.state != "PENDING":
            return ""
        if self.reason.startswith("launch failed requeued held"):
            return f"{self.reason}: scontrol release lets it go"
        return NEVER.get(self.reason, "") and f"{self.reason}: {NEVER[self.reason]}"

    @property
    def index(self) -> int:
        """Its number in its array; a job of one task is number 0."""
        tail = self.id.partition("_")[2]
        return int(tail) if tail.isdecimal() else 0


def tasks(users: Collection[int] = ()) -> list[Task]:
    """Every job of this user, and of `users`, that SLURM knows, ended ones too while it remembers
    them.

    Raises Unreachable when it does not answer: that is not an empty queue (rule 1).
    """
    asked = ",".join(map(str, sorted({os.getuid(), *users})))
    out = ask(["squeue", "-h", "-r", "-a", "-t", "all", "-u", asked, "-o", _FORMAT])
    found = []
    for line in out.splitlines():
        parts = [part.strip() for part in line.split("|", 8)]
        if len(parts) != 9 or not parts[6].isdecimal():
            raise Unreachable(f"squeue answered with a line that cannot be read: {line!r}")
        id, state, priority, elapsed, nodes, reason, user, where, name = parts
        order = float(priority or 0)
        found.append(Task(id, name, state, reason, order, elapsed, nodes, int(user), where))
    return found


_FORMAT = "%i|%T|%p|%M|%N|%r|%U|%P|%j"  # the name last: those of other jobs may have a | in them


def ask(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> str:
    """What a SLURM command prints, whatever options the environment has for it. Raises Unreachable
    when it fails or does not answer, ValueError when there is no such command."""
    plain = {k: v for k, v in os.environ.items() if k in KEPT or not k.startswith(OPTIONS)}
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, timeout=timeout_s, env=plain
        )
    except FileNotFoundError:
        raise ValueError(
            f"{command[0]} is not on this machine: run this on a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} did not answer within {timeout_s:g} s") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise Unreachable(f"{command[0]} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def endings(names: Mapping[str, str]) -> dict[str, str]:
    """How jobs ended, from accounting, by id; nothing where there is none. `names` are the jobs'
    names by id: an id may have been handed out again."""
    wanted, ended = sorted(names), dict[str, str]()
    for begin in range(0, len(wanted), MOST):
        ids = ",".join(wanted[begin : begin + MOST])
        try:
            out = ask(["sacct", "-n", "-X", "-P", "-o", "JobID,State,JobName", "-j", ids])
        except (Unreachable, ValueError, OSError):
            break
        for line in out.splitlines():
            id, state, name = (*line.split("|", 2), "", "")[:3]
            words = state.split()  # `CANCELLED by 0`
            if words and words[0] in ENDED and names.get(id) == name:
                ended[id] = words[0]
    return ended


@dataclass(frozen=True)
class Limits:
    """What the controller allows."""

    cluster: str
    max_array: int
    max_jobs: int
    private: bool = False  # whether a user's jobs are hidden from the others


def limits() -> Limits:
    """The limits of the cluster here. Raises Unreachable."""
    out = ask(["scontrol", "show", "config"])
    found = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", out, re.MULTILINE))
    return Limits(
        found.get("ClusterName", "?"),
        int(found.get("MaxArraySize", 1001)),
        int(found.get("MaxJobCount", 10000)),
        "jobs" in found.get("PrivateData", "").split(","),
    )


@dataclass(frozen=True)
class Nodes:
    """A group of like nodes of a partition."""

    partition: str
    timeout_min: float  # infinite where there is no limit
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int
    features: frozenset[str]


def nodes() -> list[Nodes]:
    """The nodes of every partition, the default partition's also as partition "". Raises
    Unreachable."""
    found = []
    for line in ask(["sinfo", "-h", "-e", "-o", "%P|%l|%D|%c|%m|%G|%f"]).splitlines():
        name, limit, count, cpus, memory, gres, features = line.strip().split("|")
        group = Nodes(
            name.rstrip("*"),
            _minutes(limit),
            int(count),
            int(cpus.rstrip("+")),
            int(memory.rstrip("+")),
            sum(int(n) for n in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", gres)),
            frozenset(features.split(",")),
        )
        found.append(group)
        if name.endswith("*"):
            found.append(Nodes("", *list(vars(group).values())[1:]))
    return found


# states of a node that can start a job, now or when a job on it ends
USABLE = frozenset({"allocated", "completing", "idle", "mixed", "planned", "power_up", "reserved"})


def closed(partitions: Collection[str]) -> dict[str, str]:
    """Why no job can start in some of `partitions` for now, by name. Raises Unreachable."""
    states: dict[str, list[tuple[str, str, int]]] = {}
    asked = ",".join(sorted(partitions))
    for line in ask(["sinfo", "-h", "-p", asked, "-o", "%R|%a|%T|%D"]).splitlines():
        name, up, state, count = line.strip().split("|")
        states.setdefault(name, []).append((up, state, int(count)))
    found = {}
    for name, nodes in states.items():
        up = nodes[0][0]
        if up != "up":
            found[name] = f"the partition is {up}"
        elif not any(state.rstrip("+") in USABLE for _, state, _ in nodes):  # * does not respond
            counts = ", ".join(f"{count} {state}" for _, state, count in nodes)
            found[name] = f"none of its nodes can start a job ({counts})"
    return found


def _minutes(text: str) -> float:
    """`2-12:00:00`, `30:00` or `infinite` in minutes."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in parts):
        return float("inf")
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return int(days or 0) * 1440 + seconds / 60


def cancel(ids: Sequence[str]) -> None:
    """End jobs or tasks of arrays. Raises Unreachable."""
    for begin in range(0, len(ids), MOST):
        ask(["scancel", *ids[begin : begin + MOST]])
