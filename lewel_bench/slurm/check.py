"""Whether a cluster can do what its profile asks, found out before anything waits in a queue."""

import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lewel_bench.files import create_json, read_json
from lewel_bench.slurm import executor, queue, snapshot
from lewel_bench.slurm.cluster import Cluster, Resources
from lewel_bench.slurm.ledger import PREFIX, Ledger, Submission
from lewel_bench.slurm.queue import Nodes, Unreachable
from lewel_bench.value import unknown

NEEDED = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
# what a job calls itself, maybe in a container
OF_A_JOB = ("scontrol",)  # to be started again
OF_A_PLANNER = (*OF_A_JOB, "sbatch", "squeue", "scancel", "srun")  # submitit looks for srun
PACKAGES = ("submitit", "pydantic", "torch")  # what every job imports
Check = tuple[str, str, str]  # what, "ok" | "warning" | "problem", finding


def present() -> None:
    """Raise ValueError when this machine has no SLURM."""
    for command in NEEDED:
        if shutil.which(command) is None:
            raise ValueError(
                f"{command} is not on this machine: run this on a login node of the cluster"
            )


def possible(cluster: Cluster, kinds: Collection[str]) -> None:
    """Raise ValueError naming every setting that this cluster can never satisfy.

    SLURM accepts more CPUs or nodes than it has, and the job waits for ever. Raises Unreachable.
    """
    present()
    if cluster.max_queued >= (jobs := queue.limits().max_jobs):
        raise ValueError(
            f"cluster {cluster.name}: max_queued {cluster.max_queued} is not below the "
            f"controller's MaxJobCount {jobs}: sbatch would hang"
        )
    nodes = queue.nodes()
    kinds = [kind for kind in cluster.kinds if kind in kinds]  # in one order
    found = {kind: wrong for kind in kinds if (wrong := misfit(cluster.kinds[kind], nodes))}
    for kind in kinds:
        if kind not in found and (wrong := _refused(cluster, kind)):
            found[kind] = wrong
    if found:
        alike: dict[str, list[str]] = {}
        for kind, wrong in found.items():
            alike.setdefault(wrong, []).append(kind)
        lines = "; ".join(f"kinds.{', '.join(kinds)}: {wrong}" for wrong, kinds in alike.items())
        raise ValueError(f"cluster {cluster.name} ({cluster.source}): {lines}")
    if wrong := lacks(cluster, kinds):
        raise ValueError(f"cluster {cluster.name} ({cluster.source}): {wrong}")


def lacks(cluster: Cluster, kinds: Collection[str]) -> str:
    """Which of our packages the profile's Python has not, as far as this machine can tell.

    Empty where only a node knows: in a container, after set-up lines, or when it is not here.
    """
    prepared = any(cluster.kinds[kind].setup for kind in kinds)
    if not cluster.python or cluster.container or prepared or not Path(cluster.python).is_file():
        return ""
    find = (
        "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if not u.find_spec(n)))"
    )
    done = subprocess.run([cluster.python, "-c", find, *PACKAGES], capture_output=True, text=True)
    said = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
    if not said:
        return ""
    return f"python {cluster.python} lacks {said}: install lewel-bench there, or name another"


def misfit(asked: Resources, nodes: Sequence[Nodes]) -> str:
    """Why no nodes can ever run what is asked for; empty when some can."""
    names = (asked.partition or "").split(",")  # SLURM takes a list, and uses the first that can
    for name in names:
        if name not in {group.partition for group in nodes}:
            if not name:
                return "this cluster has no default partition: set partition"
            return unknown("partition", name, {group.partition for group in nodes} - {""})
    reasons = [_misfit(asked, [g for g in nodes if g.partition == name], name) for name in names]
    return "" if not all(reasons) else reasons[0]


def _misfit(asked: Resources, groups: Sequence[Nodes], name: str) -> str:
    where = f"partition {name}" if name else "the default partition"
    limit = max(group.timeout_min for group in groups)
    if asked.timeout_min > limit:
        return f"timeout_min {asked.timeout_min} is over the limit of {where}, {limit:g} min"
    cpus = asked.tasks * asked.cpus_per_task
    wanted = (
        ("cpus", cpus, f"{asked.tasks} tasks with {asked.cpus_per_task} CPUs need {cpus} a node"),
        ("gpus", asked.gpus_per_node, f"gpus_per_node {asked.gpus_per_node}"),
        ("memory_mb", (asked.mem_gb or 0) * 1024, f"mem_gb {asked.mem_gb or 0:g}"),
    )
    for field, need, words in wanted:
        most = max(getattr(group, field) for group in groups)
        if need > most:
            most = most / 1024 if field == "memory_mb" else most
            return f"{words}, but no node of {where} has more than {most:g}"
    enough = [g for g in groups if all(getattr(g, field) >= need for field, need, _ in wanted)]
    count = sum(group.nodes for group in enough)
    if asked.nodes > count:
        return f"nodes {asked.nodes}, but {where} has {count} such nodes"
    return ""


def _refused(cluster: Cluster, kind: str) -> str:
    """What sbatch says against the options of a kind's script: an account, a qos, anything passed
    through."""
    one, how = Submission("test", kind, ((),)), executor.Task(cluster.kinds[kind])
    lines = executor.script(cluster, Ledger(Path.cwd()), one, how).splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    flags = [word for option in options for word in shlex.split(option)]
    try:
        queue.ask(["sbatch", "--test-only", *flags, "--wrap", "true"])
    except Unreachable as refused:
        said = str(refused)
        # busy or broken nodes are no mistake of the profile's
        return said if "nvalid" in said or "nrecognized" in said else ""
    return ""


def doctor(
    cluster: Cluster, root: Path, data: Sequence[Path], timeout_s: float = 120.0
) -> Iterator[Check]:
    """Reach, profile, the shared folder, and one tiny job that looks from a node."""
    try:
        present()
        limits, nodes = queue.limits(), queue.nodes()
    except (ValueError, Unreachable) as error:
        yield "cluster", "problem", str(error)
        return
    yield "cluster", "ok", f"{limits.cluster}: arrays of up to {limits.max_array - 1} tasks"
    broken = False
    for kind, asked in cluster.kinds.items():
        wrong = misfit(asked, nodes) or _refused(cluster, kind)
        broken = broken or bool(wrong and kind == "light")
        shape = f"{asked.nodes} x {asked.tasks} processes, {asked.gpus_per_node} GPUs a node"
        yield f"kind {kind}", "problem" if wrong else "ok", wrong or f"{shape}, fits"
    found = list(_shared(root))
    yield from found
    if broken or any(state == "problem" for _, state, _ in found):
        return
    yield from _from_a_node(cluster, root, data, timeout_s)


def nameable(root: Path) -> None:
    """Raise ValueError where SLURM or a job would take the path of a run root for something else:
    sbatch puts job numbers in the place of %j and reads a backslash as an escape, and a colon parts
    the folders of PYTHONPATH."""
    for sign in "%\\:":
        if sign in str(root):
            raise ValueError(
                f"the run root {root} has a {sign} in its path, which SLURM's jobs read as more "
                "than a letter: choose another --root"
            )
    if not str(root).isprintable():
        raise ValueError(f"the run root {root!r} has a control character: choose another --root")


def writable(root: Path) -> None:
    """Raise ValueError when jobs cannot keep their results under `root`."""
    nameable(root)
    for what, state, finding in _shared(root):
        if state == "problem":
            raise ValueError(f"{what}: {finding}")


def _shared(root: Path) -> Iterator[Check]:
    try:
        nameable(root)
    except ValueError as error:
        yield "run root", "problem", str(error)
        return
    folder = root / ".slurm" / "doctor"
    name = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        first, second = folder / name, folder / f"{name}.2"
        try:
            first.write_text("")
            os.rename(first, second)
            os.link(second, first)
            counted = os.stat(first).st_nlink
        finally:
            first.unlink(missing_ok=True)
            second.unlink(missing_ok=True)
    except OSError as error:
        advice = "choose another --root, on a file system that all nodes share"
        yield "run root", "problem", f"{root}: {error.strerror} ({error.filename}): {advice}"
        return
    if counted != 2:
        yield "run root", "problem", f"{root}: hard links do not work there"
    else:
        yield "run root", "ok", f"{root}: write, rename and hard link work"


def _from_a_node(
    cluster: Cluster, root: Path, data: Sequence[Path], timeout_s: float
) -> Iterator[Check]:
    books = Ledger(root)
    uid = f"doctor{secrets.token_hex(4)}"
    folder = books.folder / "doctor"
    asked = {
        "paths": [str(path) for path in data],
        "commands": OF_A_PLANNER if cluster.wake else OF_A_JOB,
    }
    create_json(folder / f"{uid}.asked.json", asked)
    code = str(snapshot.take(executor.package(), books.folder / "code"))
    submission = Submission(uid, "light", ((),), code=code, requeue=False)
    try:
        id = executor.probe(cluster, books, submission)
    except executor.Rejected as refused:
        yield "a job", "problem", str(refused)
        return
    answer, why = _answer(folder / f"{uid}.answer.json", id, timeout_s)
    if answer is None:
        written = [p.read_text(errors="replace") for p in books.logs(uid).glob(f"{id}_*log.err")]
        said = "\n".join(written).splitlines()
        said = [line for line in said if line and not line.startswith(("srun:", "slurmstepd:"))]
        last = said[-1] if said else ""
        if why == "ended" and not last:
            why = f"{root} is not shared with the nodes, or {cluster.interpreter()} does not start"
        yield "a job", "problem", f"job {id} {PREFIX}{uid}: {last or why}"
        return
    yield "a job", "ok", f"ran on {answer['node']} with Python {answer['python']}"
    if lacks := ", ".join(answer["lacks"]):
        effect = "no job plans what comes next" if cluster.wake else "none asks for more time"
        advice = "install them there"
        if cluster.container:
            advice = "bind them, SLURM's configuration and munge's socket into the image"
        yield "a job", "warning", f"{answer['node']} lacks {lacks}, so {effect}: {advice}"
    for path in data:
        gone = str(path) in answer["missing"]
        finding = f"{path} is not visible from {answer['node']}" if gone else str(path)
        yield "data", "problem" if gone else "ok", finding


def _answer(path: Path, id: str, timeout_s: float) -> tuple[dict[str, Any] | None, str]:
    """What the job wrote, or why there is nothing."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if (found := read_json(path)) is not None:
            return found, ""
        try:
            task = next((task for task in queue.tasks() if task.id == id), None)
        except Unreachable as error:
            return None, str(error)
        if task is None or not task.lives:
            time.sleep(1)  # a shared file system may be late
            return read_json(path), "ended"
        if task.stuck:
            return None, task.stuck + _end(id)
        time.sleep(0.5)
    busy = f"did not start within {timeout_s:g} s: the cluster may be busy, try again later"
    return None, busy + _end(id)


def _end(id: str) -> str:
    """Cancel the job of doctor; what to say when that fails."""
    try:
        queue.cancel([id])
    except Unreachable as error:
        return f" ({error}: scancel {id} yourself)"
    return ""
