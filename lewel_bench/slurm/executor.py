"""Submitting job arrays through submitit, and completing the submissions of a killed planner."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewel_bench.slurm import in_job, queue
from lewel_bench.slurm.attempt import CLAIM_VARIABLE
from lewel_bench.slurm.ledger import Ledger, Submission
from lewel_bench.slurm.profile import Profile, Resources

# A job that inherits these from the job that submitted it takes itself for that job: the child of
# an array task loaded its parent's pickle and submitted again, without end (rule 9).
REMOVED_PREFIXES = (*queue.OPTION_PREFIXES, "SRUN_", "SUBMITIT_", "PMI_", "PMIX_", "TORCHELASTIC_")
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
ROLES = ("ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
DEVICES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES")
REMOVED_VARIABLES = frozenset(
    (*RANKS, *ROLES, *DEVICES, CLAIM_VARIABLE, in_job.HALVINGS, in_job.WAKE)
)


class SubmissionRejected(ValueError):
    """sbatch rejected a submission; the message is SLURM's."""


@dataclass(frozen=True)
class SbatchOptions:
    """The resources of one sbatch, its dependency and its delay."""

    resources: Resources
    dependency: str = ""
    delay_s: int = 0


def submit(profile: Profile, ledger: Ledger, submission: Submission, options: SbatchOptions) -> str:
    """Submit a recorded submission; the job id. Raises SubmissionRejected with SLURM's message.

    The caller updates the ledger, also after an error: SLURM may have accepted an sbatch that
    reports an error, which only a search for its job name shows.
    """
    with submission_environment(Path(submission.code)):
        executor = _executor(profile, ledger, submission, options)
        arguments = (str(ledger.root), submission.uid)
        count = len(submission.tasks)
        with _rejecting(f"{count} {submission.kind} job{'s' * (count != 1)}", profile):
            if count > 1:
                job = executor.map_array(in_job.start, *([arg] * count for arg in arguments))[0]
            else:
                job = executor.submit(in_job.start, *arguments)
    return str(job.job_id).partition("_")[0]


def script(profile: Profile, ledger: Ledger, submission: Submission, options: SbatchOptions) -> str:
    """The sbatch script of a submission, as `submit` would write it."""
    executor = _executor(profile, ledger, submission, options)
    if len(submission.tasks) > 1:
        executor.parameters["map_count"] = len(submission.tasks)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, submission.uid)
    return text


def probe(profile: Profile, ledger: Ledger, submission: Submission) -> str:
    """Submit the test job of `doctor`; its id."""
    options = SbatchOptions(profile.kinds["light"])
    with submission_environment(Path(submission.code)):
        executor = _executor(profile, ledger, submission, options)
        with _rejecting("the test job", profile):
            job = executor.submit(in_job.probe, str(ledger.folder / "doctor"), submission.uid)
    return str(job.job_id)


@contextmanager
def _rejecting(what: str, profile: Profile) -> Iterator[None]:
    """Raise SubmissionRejected if submitit reports that sbatch failed."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        message = " ".join(str(error).split())
        if re.search(r"Max\w*Submit|Grp\w*Submit|job submit limit", message):
            message += (
                f". If this is a limit on queued jobs, set max_queued of cluster "
                f"{profile.name} (now {profile.max_queued}) below it"
            )
        raise SubmissionRejected(f"SLURM rejected {what}: {message}") from None


def write_missing_pickles(ledger: Ledger, submission: Submission, id: str) -> None:
    """Write the pickles of a submission whose planner was killed right after its sbatch: the tasks
    wait for them for a minute, then fail."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    folder = ledger.logs(submission.uid)
    for index in range(len(submission.tasks)):
        name = f"{id}_{index}" if len(submission.tasks) > 1 else id
        path = JobPaths(folder, job_id=name).submitted_pickle
        if not path.exists():
            call = DelayedSubmission(in_job.start, str(ledger.root), submission.uid)
            call.set_timeout(1, 0)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            call.dump(temporary)
            os.replace(temporary, path)


def clean_environment(inherited: Mapping[str, str], code: Path) -> dict[str, str]:
    """The environment of a submission: without the variables of a job that this process may run in,
    and with the code snapshot first in PYTHONPATH.

    PYTHONSAFEPATH keeps a folder `pretrain/` in the working directory out of `python -m`.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if name in queue.KEPT_VARIABLES
        or not (name.startswith(REMOVED_PREFIXES) or name in REMOVED_VARIABLES)
    }
    return {**kept, "PYTHONSAFEPATH": "1", "PYTHONPATH": _python_path(inherited, code)}


def _python_path(inherited: Mapping[str, str], code: Path) -> str:
    entries = [entry for entry in inherited.get("PYTHONPATH", "").split(os.pathsep) if entry]
    others = [
        entry
        for entry in entries
        # a checkout after the snapshot would be harmless, but could hide a mistake
        if Path(entry).is_absolute() and not (Path(entry) / "lewel_bench").exists()
    ]
    return os.pathsep.join([str(code), *others])


@contextmanager
def submission_environment(code: Path) -> Iterator[None]:
    """Replace the environment of this process while it submits; submitit passes it on."""
    before = dict(os.environ)
    clean = clean_environment(before, code)
    os.environ.clear()
    os.environ.update(clean)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _executor(
    profile: Profile, ledger: Ledger, submission: Submission, options: SbatchOptions
) -> Any:
    from submitit.slurm.slurm import SlurmExecutor

    # max_num_timeout: the planner owns the budget, submitit's would count preemptions (rule 8)
    executor = SlurmExecutor(
        ledger.logs(submission.uid), max_num_timeout=10**6, python=profile.interpreter()
    )
    executor._throttling = 0  # 0.2 s between submissions, which arrays make few of
    parameters = options.resources.parameters()
    more = dict(parameters.pop("additional_parameters", {}))
    more["requeue" if submission.requeue else "no-requeue"] = True
    if options.delay_s:
        more["begin"] = f"now+{options.delay_s}"
    executor.update_parameters(
        **parameters,
        job_name=submission.name,
        setup=_setup(profile, options.resources, Path(submission.code)),
        # without it the ranks that survive another wait until the time limit; and since SLURM 22.05
        # srun does not inherit the number of CPUs from sbatch
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={options.resources.cpus_per_task}"],
        dependency=options.dependency or None,
        additional_parameters=more,
    )
    return executor


def _setup(profile: Profile, resources: Resources, code: Path) -> list[str]:
    # last, so that no `module load python` overrides it
    path = shlex.quote(_python_path(os.environ, code))
    lines = ["set -e", *resources.setup, f"export PYTHONSAFEPATH=1 PYTHONPATH={path}"]
    if profile.scratch:
        lines += [f'export TMPDIR="{profile.scratch}"', 'mkdir -p "$TMPDIR"']
    return lines


def package_folder() -> Path:
    """The folder of the package that this code belongs to."""
    return Path(sys.modules[__name__].__file__ or "").resolve().parent.parent
