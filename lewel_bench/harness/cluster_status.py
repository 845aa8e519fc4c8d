"""The states of jobs with what SLURM knows about them, for `status` and the choice of jobs."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lewel_bench.files import FAILURE, LEDGER
from lewel_bench.harness.status import JobState
from lewel_bench.results.record import NAME
from lewel_bench.slurm import in_job, ledger, queue, survey
from lewel_bench.slurm.attempt import history
from lewel_bench.slurm.state import has_failed


def with_cluster(
    root: Path, states: dict[str, JobState], asked: str | None, notes: list[str] | None = None
) -> dict[str, JobState]:
    """`states` updated from SLURM and the ledger; to `notes` is added whether the missing jobs will
    be submitted. If SLURM does not answer: with a warning, and submitted jobs shown as queued.

    Raises ValueError if the user named the cluster `asked` and this machine has no SLURM.
    """
    if not (root / LEDGER).exists():
        return states
    if shutil.which("squeue") is None and not asked:
        print(
            "warning: this run root has jobs on a cluster; run this on its login node to see them",
            file=sys.stderr,
        )
        return states
    try:
        current = survey.survey(root)
    except (queue.SlurmUnreachable, ledger.ForeignCluster) as error:
        print(f"warning: {error}; job states are unknown", file=sys.stderr)
        unfinished = survey.unfinished_keys(root)
        return {
            key: replace(job, state="queued", reason="submitted; SLURM does not answer")
            if key in unfinished and job.state == "missing"
            else job
            for key, job in states.items()
        }
    merged = dict(states)
    for key, live in current.live.items():
        if key in states and states[key].state != "done":
            merged[key] = replace(states[key], state=live.state, reason=_reason(live, states[key]))
    idle = [k for k in states if k not in current.live and not (root / k / NAME).exists()]
    for key, verdict in survey.verdicts_on(root, idle, current.entries).items():
        now = merged[key]
        if now.state not in ("missing", "failed") or _failed_without_cluster(root / key):
            continue
        if not verdict.again:
            merged[key] = replace(now, state="failed", reason=verdict.reason)
        elif verdict.cancelled:
            merged[key] = replace(now, state="missing", reason="cancelled; run again to resume")
        elif now.state == "failed" or has_failed(verdict):
            cause = now.reason if now.state == "failed" else verdict.reason
            again = f"{cause}; the next run submits it again"
            merged[key] = replace(now, state="missing", reason=again)
    if notes is not None:
        notes += _notes(current, merged)
    return merged


def _notes(current: survey.Survey, states: Mapping[str, JobState]) -> list[str]:
    """Partitions that start no jobs, and whether a planning job will submit the missing jobs."""
    notes = [
        f"partition {name}: {why}; its jobs are pending" for name, why in current.closed.items()
    ]
    alive = [job for job in current.planning_jobs if job.is_alive]
    for job in alive:
        reason = f" ({job.reason})" if job.reason else ""
        then = "" if job.state == "stuck" else "; it will submit jobs as they become ready"
        notes.append(f"planning job {job.job} is {job.state}{reason}{then}")
    missing = sum(job.state == "missing" for job in states.values())
    if not missing or any(job.state != "stuck" for job in alive):
        return notes
    last = next((job for job in current.planning_jobs if not job.is_alive), None)
    ended = f" (the last one, {last.job}, ended as {last.state}" if last else ""
    if last and last.log:
        ended += f", see {last.log}" + (f": {last.line}" if last.line else "")
    ended += ")" if last else ""
    count = f"{missing} missing job{'s' * (missing != 1)}"
    notes.append(f"no planning job will submit the {count}{ended}: run the same command again")
    return notes


def _failed_without_cluster(folder: Path) -> bool:
    """Whether a run without the cluster failed after the cluster's last attempt. The failure of a
    killed attempt may itself be as much as a heartbeat newer than the attempt."""
    last = max((attempt.seen for attempt in history(folder)), default=0.0)
    try:
        return bool(last) and (folder / FAILURE).stat().st_mtime > last + 2 * in_job.HEARTBEAT_S
    except FileNotFoundError:
        return False


def _reason(live: survey.LiveJob, before: JobState) -> str:
    warning = f"; {live.warning}" if live.warning else ""
    if live.state == "running":
        progress = before.progress
        more = (str(progress), progress.left) if progress else ()
        parts = filter(None, (f"job {live.job} on {live.nodes} for {live.elapsed}", *more))
        return ", ".join(parts) + warning
    position = f", position {live.position} of your pending tasks" if live.position else ""
    reason = f": {live.reason}" if live.reason else ""
    return f"job {live.job}{position}{reason}{warning}"
