"""Submitting batches through submitit, and mending what a planner that died left half done."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewel_bench.slurm import inside, queue
from lewel_bench.slurm.attempt import VARIABLE
from lewel_bench.slurm.cluster import Cluster, Resources
from lewel_bench.slurm.ledger import Ledger, Submission

# Left in the environment of a job these make a job that it submits believe to be its parent: the
# child of an array task loaded its parent's pickle and submitted again, without end (rule 9).
PREFIXES = (*queue.OPTIONS, "SRUN_", "SUBMITIT_", "PMI_", "PMIX_", "TORCHELASTIC_")
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
ROLES = ("ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
DEVICES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES")
NAMES = frozenset((*RANKS, *ROLES, *DEVICES, VARIABLE, inside.HALVINGS, inside.WAKE))


class Rejected(ValueError):
    """sbatch refused; the message is SLURM's."""


@dataclass(frozen=True)
class Task:
    """What to submit: everything that shapes one sbatch."""

    resources: Resources
    dependency: str = ""
    delay_s: int = 0


def submit(cluster: Cluster, ledger: Ledger, submission: Submission, how: Task) -> str:
    """Submit what the intent says; the job id. Raises Rejected with what SLURM said.

    Whatever goes wrong, the ledger is left to the caller: an sbatch that reports an error may have
    been heard, which only a look for its name tells.
    """
    with environment(Path(submission.code)):
        executor = _executor(cluster, ledger, submission, how)
        arguments = (str(ledger.root), submission.uid)
        count = len(submission.tasks)
        with _rejecting(f"{count} {submission.kind} jobs", cluster):
            if count > 1:
                job = executor.map_array(inside.start, *([one] * count for one in arguments))[0]
            else:
                job = executor.submit(inside.start, *arguments)
    return str(job.job_id).partition("_")[0]


def script(cluster: Cluster, ledger: Ledger, submission: Submission, how: Task) -> str:
    """The sbatch script of a submission, as `submit` would write it."""
    executor = _executor(cluster, ledger, submission, how)
    if len(submission.tasks) > 1:
        executor.parameters["map_count"] = len(submission.tasks)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, submission.uid)
    return text


def probe(cluster: Cluster, ledger: Ledger, submission: Submission) -> str:
    """Submit the tiny job of `doctor`; its id."""
    how = Task(cluster.kinds["light"])
    with environment(Path(submission.code)):
        executor = _executor(cluster, ledger, submission, how)
        with _rejecting("the job of doctor", cluster):
            job = executor.submit(inside.probe, str(ledger.folder / "doctor"), submission.uid)
    return str(job.job_id)


@contextmanager
def _rejecting(what: str, cluster: Cluster) -> Iterator[None]:
    """Raise Rejected where submitit says that sbatch failed."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        said = " ".join(str(error).split())
        if re.search(r"Max\w*Submit|Grp\w*Submit|job submit limit", said):
            said += (
                f". If this is a limit on the jobs in the queue, set max_queued of cluster "
                f"{cluster.name} (now {cluster.max_queued}) below it"
            )
        raise Rejected(f"SLURM refused {what}: {said}") from None


def mend(ledger: Ledger, submission: Submission, id: str) -> None:
    """Put in place the pickles that a planner killed right after its sbatch did not: the tasks wait
    a minute for them and then fail."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    folder = ledger.logs(submission.uid)
    for index in range(len(submission.tasks)):
        name = f"{id}_{index}" if len(submission.tasks) > 1 else id
        path = JobPaths(folder, job_id=name).submitted_pickle
        if not path.exists():
            call = DelayedSubmission(inside.start, str(ledger.root), submission.uid)
            call.set_timeout(1, 0)
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            call.dump(beside)
            os.replace(beside, path)


def scrubbed(inherited: Mapping[str, str], code: Path) -> dict[str, str]:
    """The environment that a job is submitted with: nothing of a job that this may run in, and the
    code of the snapshot before any other.

    PYTHONSAFEPATH keeps a folder `pretrain/` in the working directory out of `python -m`.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if name in queue.KEPT or not (name.startswith(PREFIXES) or name in NAMES)
    }
    return {**kept, "PYTHONSAFEPATH": "1", "PYTHONPATH": _path(inherited, code)}


def _path(inherited: Mapping[str, str], code: Path) -> str:
    entries = [one for one in inherited.get("PYTHONPATH", "").split(os.pathsep) if one]
    others = [
        one
        for one in entries
        # the checkout's own entry would do no harm after the snapshot, but hides a mistake
        if Path(one).is_absolute() and not (Path(one) / "lewel_bench").exists()
    ]
    return os.pathsep.join([str(code), *others])


@contextmanager
def environment(code: Path) -> Iterator[None]:
    """Have this process submit from a clean environment; submitit hands on its own."""
    before = dict(os.environ)
    clean = scrubbed(before, code)
    os.environ.clear()
    os.environ.update(clean)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _executor(cluster: Cluster, ledger: Ledger, submission: Submission, how: Task) -> Any:
    from submitit.slurm.slurm import SlurmExecutor

    # max_num_timeout: the planner owns the budget, submitit's would count preemptions (rule 8)
    executor = SlurmExecutor(
        ledger.logs(submission.uid), max_num_timeout=10**6, python=cluster.interpreter()
    )
    executor._throttling = 0  # its 0.2 s between submissions; arrays make few of them
    parameters = how.resources.parameters()
    more = dict(parameters.pop("additional_parameters", {}))
    more["requeue" if submission.requeue else "no-requeue"] = True
    if how.delay_s:
        more["begin"] = f"now+{how.delay_s}"
    executor.update_parameters(
        **parameters,
        job_name=submission.name,
        setup=_setup(cluster, how.resources, Path(submission.code)),
        # without it the other ranks of a dead one wait until the time limit; and since 22.05 srun
        # does not take the number of CPUs over from sbatch
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={how.resources.cpus_per_task}"],
        dependency=how.dependency or None,
        additional_parameters=more,
    )
    return executor


def _setup(cluster: Cluster, resources: Resources, code: Path) -> list[str]:
    # last, so that no `module load python` is stronger
    path = shlex.quote(_path(os.environ, code))
    lines = ["set -e", *resources.setup, f"export PYTHONSAFEPATH=1 PYTHONPATH={path}"]
    if cluster.scratch:
        lines += [f'export TMPDIR="{cluster.scratch}"', 'mkdir -p "$TMPDIR"']
    return lines


def package() -> Path:
    """The package that this code belongs to."""
    return Path(sys.modules[__name__].__file__ or "").resolve().parent.parent
