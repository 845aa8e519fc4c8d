"""Checks before anything is queued: can the cluster satisfy the profile, can jobs use the run root,
and the cluster part of `doctor`."""

import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lewel_bench.files import check_folder, create_json, described, read_json
from lewel_bench.slurm import executor, queue, snapshot
from lewel_bench.slurm.ledger import PREFIX, Ledger, Submission
from lewel_bench.slurm.profile import Profile, Resources
from lewel_bench.slurm.queue import NodeGroup, SlurmUnreachable
from lewel_bench.value import unknown

NEEDED = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
# commands that run inside a SLURM job, perhaps in a container
JOB_COMMANDS = ("scontrol",)  # to requeue itself
PLANNER_COMMANDS = (*JOB_COMMANDS, "sbatch", "squeue", "scancel", "srun")  # submitit needs srun
PACKAGES = ("submitit", "pydantic", "torch")  # that every job imports
Check = tuple[str, str, str]  # subject, "ok" | "warning" | "problem", finding


def require_commands() -> None:
    """Raise ValueError if a command of SLURM is missing on this machine."""
    for command in NEEDED:
        if shutil.which(command) is None:
            raise ValueError(f"{command} not found: run this on a login node of the cluster")


def require_possible(profile: Profile, kinds: Collection[str]) -> None:
    """Raise ValueError that names every setting of `kinds` that this cluster can never satisfy.

    SLURM accepts requests for more CPUs or nodes than it has, and the job is pending for ever.
    Raises SlurmUnreachable.
    """
    require_commands()
    if profile.max_queued >= (jobs := queue.limits().max_jobs):
        raise ValueError(
            f"cluster {profile.name}: max_queued ({profile.max_queued}) must be less than the "
            f"controller's MaxJobCount ({jobs}): sbatch would hang"
        )
    nodes = queue.nodes()
    kinds = [kind for kind in profile.kinds if kind in kinds]  # in the order of the profile
    problems: dict[str, list[str]] = {}  # kinds by problem
    for kind in kinds:
        resources = profile.kinds[kind]
        if problem := misfit_message(resources, nodes) or _rejection_message(profile, kind):
            problems.setdefault(problem, []).append(kind)
    if problems:
        lines = "; ".join(f"kinds.{', '.join(kinds)}: {text}" for text, kinds in problems.items())
        raise ValueError(f"cluster {profile.name} ({profile.source}): {lines}")
    if problem := missing_packages_message(profile, kinds):
        raise ValueError(f"cluster {profile.name} ({profile.source}): {problem}")


def missing_packages_message(profile: Profile, kinds: Collection[str]) -> str:
    """Which required packages the profile's Python lacks, as far as this machine can tell.

    Empty where only a node can tell: in a container, with set-up lines, or if this machine does not
    have that interpreter.
    """
    prepared = any(profile.kinds[kind].setup for kind in kinds)
    if not profile.python or profile.container or prepared or not Path(profile.python).is_file():
        return ""
    find = (
        "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if not u.find_spec(n)))"
    )
    done = subprocess.run([profile.python, "-c", find, *PACKAGES], capture_output=True, text=True)
    missing = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
    if not missing:
        return ""
    return f"python {profile.python} lacks {missing}: install lewel-bench there, or change python"


def misfit_message(request: Resources, nodes: Sequence[NodeGroup]) -> str:
    """Why no nodes can ever satisfy a request; empty if some can."""
    names = (request.partition or "").split(",")  # SLURM uses the first that can
    for name in names:
        if name not in {group.partition for group in nodes}:
            if not name:
                return "this cluster has no default partition: set partition"
            return unknown("partition", name, {group.partition for group in nodes} - {""})
    reasons = [_misfit(request, [g for g in nodes if g.partition == name], name) for name in names]
    return "" if not all(reasons) else reasons[0]


def _misfit(request: Resources, groups: Sequence[NodeGroup], name: str) -> str:
    where = f"partition {name}" if name else "the default partition"
    limit = max(group.timeout_min for group in groups)
    if request.timeout_min > limit:
        return f"timeout_min {request.timeout_min} exceeds the limit of {where}, {limit:g} min"
    cpus = request.tasks * request.cpus_per_task
    wanted = (
        (
            "cpus",
            cpus,
            f"{request.tasks} tasks of {request.cpus_per_task} CPUs need {cpus} per node",
        ),
        ("gpus", request.gpus_per_node, f"gpus_per_node {request.gpus_per_node}"),
        ("memory_mb", (request.mem_gb or 0) * 1024, f"mem_gb {request.mem_gb or 0:g}"),
    )
    for field, need, words in wanted:
        most = max(getattr(group, field) for group in groups)
        if need > most:
            most = most / 1024 if field == "memory_mb" else most
            return f"{words}, but no node of {where} has more than {most:g}"
    enough = [g for g in groups if all(getattr(g, field) >= need for field, need, _ in wanted)]
    count = sum(group.nodes for group in enough)
    if request.nodes > count:
        return f"nodes {request.nodes}, but {where} has {count} such nodes"
    return ""


def _rejection_message(profile: Profile, kind: str) -> str:
    """Why `sbatch --test-only` rejects the options of a kind's script, such as an invalid account;
    empty if it accepts them."""
    options = executor.SbatchOptions(profile.kinds[kind])
    submission = Submission("test", kind, ((),))
    lines = executor.script(profile, Ledger(Path.cwd()), submission, options).splitlines()
    given = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    flags = [flag for line in given for flag in shlex.split(line)]
    try:
        queue.ask(["sbatch", "--test-only", *flags, "--wrap", "true"])
    except SlurmUnreachable as error:
        message = str(error)
        # busy or broken nodes are no mistake in the profile
        return message if "nvalid" in message or "nrecognized" in message else ""
    return ""


def doctor(
    profile: Profile, root: Path, data: Sequence[Path], timeout_s: float = 120.0
) -> Iterator[Check]:
    """Checks of the controller, the profile, the shared run root, and of a node by a test job."""
    try:
        require_commands()
        limits, nodes = queue.limits(), queue.nodes()
    except (ValueError, SlurmUnreachable) as error:
        yield "cluster", "problem", str(error)
        return
    yield "cluster", "ok", f"{limits.cluster}: arrays of up to {limits.max_array - 1} tasks"
    has_no_light_jobs = False
    for kind, request in profile.kinds.items():
        problem = misfit_message(request, nodes) or _rejection_message(profile, kind)
        has_no_light_jobs = has_no_light_jobs or bool(problem and kind == "light")
        shape = f"{request.nodes} x {request.tasks} processes, {request.gpus_per_node} GPUs a node"
        yield f"kind {kind}", "problem" if problem else "ok", problem or f"{shape}: accepted"
    findings = list(_check_run_root(root))
    yield from findings
    if has_no_light_jobs or any(state == "problem" for _, state, _ in findings):
        return
    yield from _check_node(profile, root, data, timeout_s)


def check_path(root: Path) -> None:
    """Raise ValueError if SLURM or a job would misread the path of a run root: sbatch replaces %j
    by the job id and reads a backslash as an escape, a colon separates folders in PYTHONPATH."""
    for sign in "%\\:":
        if sign in str(root):
            raise ValueError(
                f"the path of the run root {root} contains {sign}, which has a special meaning in "
                "SLURM jobs: choose another --root"
            )
    if not str(root).isprintable():
        raise ValueError(
            f"the path of the run root contains a control character, {str(root)!r}: "
            "choose another --root"
        )


def require_writable(root: Path) -> None:
    """Raise ValueError if jobs cannot write their results under `root`."""
    check_path(root)
    for what, state, finding in _check_run_root(root):
        if state == "problem":
            raise ValueError(f"{what}: {finding}")


def _check_run_root(root: Path) -> Iterator[Check]:
    try:
        check_path(root)
    except ValueError as error:
        yield "run root", "problem", str(error)
        return
    folder = Ledger(root).folder / "doctor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_folder(folder)
    except OSError as error:
        advice = "choose another --root, on a file system that all nodes share"
        yield "run root", "problem", f"{described(error)}: {advice}"
    else:
        yield "run root", "ok", f"{root}: files can be written, created once and locked"


def _check_node(
    profile: Profile, root: Path, data: Sequence[Path], timeout_s: float
) -> Iterator[Check]:
    books = Ledger(root)
    uid = f"doctor{secrets.token_hex(4)}"
    folder = books.folder / "doctor"
    questions = {
        "paths": [str(path) for path in data],
        "commands": PLANNER_COMMANDS if profile.wake else JOB_COMMANDS,
    }
    create_json(folder / f"{uid}.asked.json", questions)
    code = str(snapshot.take(executor.package_folder(), books.folder / "code"))
    submission = Submission(uid, "light", ((),), code=code, requeue=False)
    try:
        id = executor.probe(profile, books, submission)
    except executor.SubmissionRejected as rejection:
        yield "test job", "problem", str(rejection)
        return
    answer, why = _answer(folder / f"{uid}.answer.json", id, timeout_s)
    if answer is None:
        written = [p.read_text(errors="replace") for p in books.logs(uid).glob(f"{id}_*log.err")]
        lines = "\n".join(written).splitlines()
        lines = [line for line in lines if line and not line.startswith(("srun:", "slurmstepd:"))]
        last = lines[-1] if lines else ""
        if why == "ended" and not last:
            why = f"the nodes do not share {root}, or {profile.interpreter()} does not start there"
        yield "test job", "problem", f"SLURM job {id} ({PREFIX}{uid}): {last or why}"
        return
    yield "test job", "ok", f"ran on {answer['node']} with Python {answer['python']}"
    if lacks := ", ".join(answer["lacks"]):
        effect = "jobs cannot requeue themselves"
        if profile.wake:
            effect = "planning jobs cannot submit what becomes ready"
        advice = "install them on the nodes"
        if profile.container:
            advice = "bind them, SLURM's configuration and munge's socket into the container"
        yield "test job", "warning", f"{answer['node']} lacks {lacks}: {effect}; {advice}"
    for path in data:
        is_missing = str(path) in answer["missing"]
        finding = f"{path} is not visible from {answer['node']}" if is_missing else str(path)
        yield "data", "problem" if is_missing else "ok", finding


def _answer(path: Path, id: str, timeout_s: float) -> tuple[dict[str, Any] | None, str]:
    """The answer of the test job, or None and why it gave none."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if (answer := read_json(path)) is not None:
            return answer, ""
        try:
            task = next((task for task in queue.tasks() if task.id == id), None)
        except SlurmUnreachable as error:
            return None, str(error)
        if task is None or not task.is_alive:
            time.sleep(1)  # a shared file system may lag
            return read_json(path), "ended"
        if task.stuck:
            return None, task.stuck + _cancel(id)
        time.sleep(0.5)
    busy = f"not started within {timeout_s:g} s: the cluster may be busy, try again later"
    return None, busy + _cancel(id)


def _cancel(id: str) -> str:
    """Cancel the test job; a message if that fails, else empty."""
    try:
        queue.cancel([id])
    except SlurmUnreachable as error:
        return f" ({error}: run scancel {id})"
    return ""
