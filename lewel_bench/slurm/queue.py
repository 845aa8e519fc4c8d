"""Calls of SLURM's commands: the queue, the limits and nodes of a cluster, cancelling.

`squeue` decides which jobs are queued or running. `sacct` lags, and shows a job that the controller
has lost as pending for ever, so it only explains how a job ended (rule 3), and is optional.
"""

import os
import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

TIMEOUT_S = 20.0  # SLURM's commands give up on a controller that is down after 9 s
MAX_IDS = 500  # ids in one command: an argument is at most 128 KiB
# Environment variables that are options of SLURM's commands: SQUEUE_PARTITION hides running jobs,
# which would be submitted again.
OPTION_PREFIXES = ("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_")
KEPT_VARIABLES = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})  # name the controller
FINAL_STATES = frozenset(
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
# A job that is pending for one of these reasons never starts (rule 4).
STUCK_REASONS = {
    "PartitionConfig": "it requests more than a node of the partition has",
    "PartitionNodeLimit": "it requests more nodes than the partition allows",
    "PartitionTimeLimit": "its time limit exceeds the partition's",
    "BadConstraints": "no node has the requested features",
    "DependencyNeverSatisfied": "a job that it depends on has failed",
    "JobHeldAdmin": "held by an administrator",
    "JobHeldUser": "held; release it with scontrol release",
    "InvalidAccount": "invalid account",
    "InvalidQOS": "invalid QOS",
    "AccountNotAllowed": "the partition does not allow its account",
    "QOSNotAllowed": "the partition does not allow its QOS",
}


class SlurmUnreachable(Exception):
    """SLURM does not answer, so nothing may be submitted: jobs may be running."""


@dataclass(frozen=True)
class QueuedTask:
    """One line of `squeue`: a SLURM job, or one task of an array."""

    id: str  # `12` or `12_3`
    name: str
    state: str
    reason: str = ""
    priority: float = 0.0
    elapsed: str = ""
    nodes: str = ""
    user: int = -1
    partition: str = ""  # comma-separated if several, while it is pending

    @property
    def is_own(self) -> bool:
        """Whether this user submitted it: only those tasks count against the user's limits, and
        only those can the user cancel."""
        return self.user == os.getuid()

    @property
    def is_alive(self) -> bool:
        """Whether a process of it may be running or start; COMPLETING counts as alive."""
        return self.state not in FINAL_STATES

    @property
    def stuck(self) -> str:
        """Why it will never start; empty if it may."""
        if self.state != "PENDING":
            return ""
        if self.reason.startswith("launch failed requeued held"):
            return f"{self.reason}: release it with scontrol release"
        return STUCK_REASONS.get(self.reason, "") and f"{self.reason}: {STUCK_REASONS[self.reason]}"

    @property
    def index(self) -> int:
        """Its index in its array; 0 for a job of one task."""
        tail = self.id.partition("_")[2]
        return int(tail) if tail.isdecimal() else 0


def tasks(users: Collection[int] = ()) -> list[QueuedTask]:
    """Every job of this user and of `users` that the controller knows, including ended jobs that it
    still remembers.

    Raises SlurmUnreachable if squeue fails: that is not an empty queue (rule 1).
    """
    asked = ",".join(map(str, sorted({os.getuid(), *users})))
    out = ask(["squeue", "-h", "-r", "-a", "-t", "all", "-u", asked, "-o", _FORMAT])
    tasks = []
    for line in out.splitlines():
        parts = [part.strip() for part in line.split("|", 8)]
        if len(parts) != 9 or not parts[6].isdecimal():
            raise SlurmUnreachable(f"cannot parse this line of squeue: {line!r}")
        id, state, priority, elapsed, nodes, reason, user, where, name = parts
        order = float(priority or 0)
        tasks.append(QueuedTask(id, name, state, reason, order, elapsed, nodes, int(user), where))
    return tasks


_FORMAT = "%i|%T|%p|%M|%N|%r|%U|%P|%j"  # the name last: other jobs' names may contain |


def ask(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> str:
    """The output of a SLURM command, run without the options in the environment. Raises
    SlurmUnreachable if it fails or does not answer, ValueError if the command does not exist."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or not name.startswith(OPTION_PREFIXES)
    }
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, timeout=timeout_s, env=plain
        )
    except FileNotFoundError:
        raise ValueError(
            f"{command[0]} not found: run this on a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmUnreachable(f"{command[0]} did not answer within {timeout_s:g} s") from None
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split())
        raise SlurmUnreachable(f"{command[0]} failed: {message or f'exit code {done.returncode}'}")
    return done.stdout


def final_states(names: Mapping[str, str]) -> dict[str, str]:
    """The final states of jobs, by id, from the accounting database; empty without one. `names` are
    the jobs' names by id: an id may have been assigned again."""
    wanted, ended = sorted(names), dict[str, str]()
    for begin in range(0, len(wanted), MAX_IDS):
        ids = ",".join(wanted[begin : begin + MAX_IDS])
        try:
            out = ask(["sacct", "-n", "-X", "-P", "-o", "JobID,State,JobName", "-j", ids])
        except (SlurmUnreachable, ValueError, OSError):
            break
        for line in out.splitlines():
            id, state, name = (*line.split("|", 2), "", "")[:3]
            words = state.split()  # `CANCELLED by 0`
            if words and words[0] in FINAL_STATES and names.get(id) == name:
                ended[id] = words[0]
    return ended


@dataclass(frozen=True)
class Limits:
    """What the controller allows."""

    cluster: str
    max_array: int
    max_jobs: int
    private: bool = False  # whether jobs are hidden from other users


def limits() -> Limits:
    """The limits of this machine's cluster. Raises SlurmUnreachable."""
    out = ask(["scontrol", "show", "config"])
    settings = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", out, re.MULTILINE))
    return Limits(
        settings.get("ClusterName", "?"),
        int(settings.get("MaxArraySize", 1001)),
        int(settings.get("MaxJobCount", 10000)),
        "jobs" in settings.get("PrivateData", "").split(","),
    )


@dataclass(frozen=True)
class NodeGroup:
    """A group of identical nodes of a partition."""

    partition: str
    timeout_min: float  # infinity without a limit
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int
    features: frozenset[str]


def nodes() -> list[NodeGroup]:
    """The node groups of every partition, those of the default partition also as partition "".
    Raises SlurmUnreachable."""
    groups = []
    for line in ask(["sinfo", "-h", "-e", "-o", "%P|%l|%D|%c|%m|%G|%f"]).splitlines():
        name, limit, count, cpus, memory, gres, features = line.strip().split("|")
        group = NodeGroup(
            name.rstrip("*"),
            _minutes(limit),
            int(count),
            int(cpus.rstrip("+")),
            int(memory.rstrip("+")),
            sum(int(n) for n in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", gres)),
            frozenset(features.split(",")),
        )
        groups.append(group)
        if name.endswith("*"):
            groups.append(NodeGroup("", *list(vars(group).values())[1:]))
    return groups


# states of a node that can start a job now, or once a job on it has ended
USABLE = frozenset({"allocated", "completing", "idle", "mixed", "planned", "power_up", "reserved"})


def closed_partitions(partitions: Collection[str]) -> dict[str, str]:
    """Why no job can start now in those of `partitions`, by name. Raises SlurmUnreachable."""
    states: dict[str, list[tuple[str, str, int]]] = {}
    asked = ",".join(sorted(partitions))
    for line in ask(["sinfo", "-h", "-p", asked, "-o", "%R|%a|%T|%D"]).splitlines():
        name, up, state, count = line.strip().split("|")
        states.setdefault(name, []).append((up, state, int(count)))
    reasons = {}
    for name, nodes in states.items():
        up = nodes[0][0]
        if up != "up":
            reasons[name] = f"the partition is {up}"
        elif not any(state.rstrip("+") in USABLE for _, state, _ in nodes):  # *: not responding
            counts = ", ".join(f"{count} {state}" for _, state, count in nodes)
            reasons[name] = f"none of its nodes can start a job ({counts})"
    return reasons


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
    """Cancel jobs or array tasks. Raises SlurmUnreachable."""
    for begin in range(0, len(ids), MAX_IDS):
        ask(["scancel", *ids[begin : begin + MAX_IDS]])
