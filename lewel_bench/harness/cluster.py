"""`--cluster NAME`: submit jobs to SLURM now, and what becomes ready later in planning jobs."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lewel_bench.files import LEDGER, is_held, read_json
from lewel_bench.harness.jobs.variables import COMMAND
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.harness.request import Command, typed_command
from lewel_bench.harness.rundir import CHECKPOINTS, LOCK, RunDir
from lewel_bench.results.record import NAME
from lewel_bench.slurm import check, executor, in_job, ledger, queue, survey, sweep
from lewel_bench.slurm.plan import JobArray, PlannedJob
from lewel_bench.slurm.profile import Profile, load_profile
from lewel_bench.slurm.sweep import PlanningPass, Sweep

# between the tries of a planning job, whose time limit may be 10 minutes; each try may also wait
# for the lock
PAUSES_S = (10.0, 30.0, 120.0)
STATES = {  # of a planning pass, as they are printed
    "live": "queued or running",
    "submit": "submitted now",
    "held": "held back",
    "local": "in a run without the cluster",
    "waiting": "waiting for other jobs",
    "given_up": "failed",
    "blocked": "blocked by failed or cancelled jobs",
}


def profile(site: Site, name: str) -> Profile:
    """The profile `name` of the site file, else of the examples; in a planning job as it was when
    the user started the sweep. Raises ValueError."""
    if woken := os.environ.get(in_job.WAKE):
        kept = (read_json(Path(woken)) or {}).get("profile")
        if kept and kept["name"] == name:
            return Profile.model_validate(kept)
    return load_profile(name, site.clusters, str(site.path or ""))


def submit(
    root: Path,
    used: Profile,
    jobs: Sequence[Job],
    todo: Sequence[Job],
    settings: MachineSettings,
    prepare: Callable[[], None],
    *,
    command: Command,
    dry_run: bool,
) -> int:
    """Submit the jobs that are ready, print the states of all, and return the exit code.

    `todo` are those of `jobs` without a record; `prepare` checks their data before the first
    submission. Planning jobs run `command`.
    """
    planned = [_planned(job) for job in jobs]
    attended = in_job.WAKE not in os.environ  # else a user started the sweep before
    work = _sweep(root, used, settings, command)
    # the command line in records; jobs inherit the environment
    os.environ.setdefault(COMMAND, typed_command())
    try:
        check.check_path(root)
        if dry_run:
            return _print_preview(work, planned)
        if attended:
            kinds = {job.kind for job in planned}
            check.require_possible(used, kinds | ({"light"} if used.wake else set()))
            check.require_writable(root)
            ledger.Ledger(root).bind_cluster(used.name, queue.limits())
            prepare()
        for job in todo:
            RunDir(root).job(job.key).write_spec(job)
        done = _advance(work, planned, attended)
    except queue.SlurmUnreachable as error:
        raise ValueError(f"{error}. Nothing was submitted; repeat this command later") from None
    return _print_pass(done, todo, used)


def refuse_submitted(root: Path, todo: Sequence[Job]) -> None:
    """Raise ValueError if some of `todo` may be queued or running on a cluster."""
    unfinished = survey.unfinished_keys(root)
    busy, unknown = [job for job in todo if job.key in unfinished], ""
    if busy:
        try:
            live = survey.live_jobs(root)
            busy = [job for job in busy if job.key in live]
        except ledger.ForeignCluster as error:  # the message tells what to remove
            unknown = f" ({error})"
        except (queue.SlurmUnreachable, ValueError) as error:  # this machine has no SLURM
            unknown = f" ({error}; remove {root / LEDGER} if none of its jobs is running)"
    if busy:
        raise ValueError(
            f"{len(busy)} of these jobs are queued or running on a cluster, such as "
            f"{busy[0].name} ({busy[0].key}): wait, or cancel them with lewel-bench "
            f"cancel{unknown}"
        )


def kind(job: Job) -> str:
    """The kind of a job in a profile."""
    if job.recipe:
        return "pretrain"
    assert job.protocol is not None
    if job.is_selection:
        return "light"
    return job.protocol.job_class


def doctor(site: Site, root: Path, name: str) -> list[check.Check]:
    """The checks of a cluster, with a test job on it."""
    data = [site.resolve(text) for text in site.data.values()]
    return list(check.doctor(profile(site, name), root, data))


def _planned(job: Job) -> PlannedJob:
    needs = dict.fromkeys(filter(None, (job.upstream, *job.needs)))
    return PlannedJob(job.key, kind(job), tuple(needs))


def _sweep(root: Path, used: Profile, settings: MachineSettings, command: Command) -> Sweep:
    entry = "lewel_bench.harness.jobs.cluster_entry"
    compute = ("-m", entry, "{folder}", settings.model_dump_json())
    wake = ("-m", "lewel_bench.harness.cli", *command.argv())
    busy = partial(_local_keys, root)
    return Sweep(root, used, compute, wake, record=NAME, marks=CHECKPOINTS, busy=busy)


def _local_keys(root: Path, keys: Collection[str]) -> set[str]:
    """Those of `keys` that a `run` without the cluster computes or has queued. Cluster jobs hold
    the lock WORK instead, possibly on a lost node."""
    queued = RunDir(root).queued_keys()
    return {key for key in keys if key in queued or is_held(root / key / LOCK)}


def _advance(work: Sweep, jobs: Sequence[PlannedJob], attended: bool) -> PlanningPass:
    """One planning pass; without a user several while SLURM does not answer or rejects jobs."""
    submitted: dict[str, JobArray] = {}
    failures = (queue.SlurmUnreachable, ledger.PlannerBusy, executor.SubmissionRejected)
    for pause in () if attended else PAUSES_S:
        try:
            done = sweep.advance(work, jobs, attended=False)
        except failures as error:
            message = str(error)
        else:
            submitted |= done.submitted
            if done.wake or not done.error:
                return replace(done, submitted=submitted)
            message = done.error
        print(f"{message}; trying again in {pause:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)
    try:
        done = sweep.advance(work, jobs, attended=attended)
    except failures as error:
        if not submitted:
            raise
        return PlanningPass({}, submitted, error=f"no planning job was submitted: {error}")
    return replace(done, submitted=submitted | done.submitted)


def _print_pass(done: PlanningPass, todo: Sequence[Job], used: Profile) -> int:
    names = {job.key: f"{job.name} ({job.key})" for job in todo}
    for id, array in done.submitted.items():
        count = sum(map(len, array.tasks))
        half = ", with half the micro-batch" if array.halvings else ""
        print(f"submitted {id}: {count} {array.kind} jobs in {len(array.tasks)} tasks{half}")
    counts = Counter(state for state, _ in done.states.values())
    print(", ".join(f"{n} {STATES.get(state, state)}" for state, n in counts.items()))
    if done.error:
        print(f"{done.error}. Repeat this command later", file=sys.stderr)
    if done.warning:
        print(f"warning: {done.warning}", file=sys.stderr)
    _warn_of_repeats(done, names)
    for key, reason in done.stuck.items():
        print(f"stuck: {names.get(key, key)}: {reason}", file=sys.stderr)
    failed = {key: reason for key, (state, reason) in done.states.items() if state == "given_up"}
    for key, reason in failed.items():
        print(f"failed: {names.get(key, key)}: {reason}", file=sys.stderr)
    if failed:
        print("Fix the cause, run `lewel-bench retry`, then repeat this command.", file=sys.stderr)
    running = counts["live"] + counts["submit"] + counts["local"]
    if done.wake:
        print(
            f"planning job {done.wake} will submit jobs as they become ready; see lewel-bench "
            f"status --cluster {used.name}"
        )
    elif running and counts["waiting"] + counts["held"]:
        print("repeat this command when these jobs have ended, to submit those that wait for them")
    return 1 if failed or done.error else 0


def _warn_of_repeats(done: PlanningPass, names: Mapping[str, str]) -> None:
    """Print how many jobs were submitted again after a failure, with the log of the first."""
    repeats = {
        key: reason
        for key, (state, reason) in done.states.items()
        if state == "submit" and "; see " in reason
    }
    if repeats:
        key, reason = next(iter(repeats.items()))
        print(
            f"warning: {len(repeats)} job{'s' * (len(repeats) != 1)} submitted again after a "
            f"failure, such as {names.get(key, key)}: {reason}",
            file=sys.stderr,
        )


def _print_preview(work: Sweep, jobs: Sequence[PlannedJob]) -> int:
    preview = sweep.preview(work, jobs)
    states = preview.decision.states
    counts = Counter((job.kind, states[job.key][0]) for job in jobs)
    for (kind, state), n in counts.items():
        print(f"{kind}: {n} {'ready' if state == 'submit' else STATES.get(state, state)}")
    for array in preview.decision.arrays:
        print(f"array of {len(array.tasks)} {array.kind} tasks, {sum(map(len, array.tasks))} jobs")
    for shape, script in preview.scripts.items():
        print(f"\n# {shape}\n{script}")
    return 0
