"""`lewel-bench cancel`: cancel jobs on a cluster."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import KEYS_HELP, JobFilter, Root, Where


def command(
    *keys: Annotated[str, Parameter(metavar="KEY", help=KEYS_HELP)],
    chosen: JobFilter = JobFilter(),
    yes: Annotated[bool, Parameter(help="Do not ask for confirmation.")] = False,
    root: Root = None,
) -> int:
    """Cancel jobs on a cluster, after asking.

    For example:
      lewel-bench cancel --method lewel_m --state running
      lewel-bench cancel --table all --yes
    """
    from lewel_bench.harness.job_states import selected_keys
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(Where(root=root))
    return cancel(workspace.root, selected_keys(workspace, keys, chosen), yes=yes)


def cancel(root: Path, keys: Sequence[str], *, yes: bool) -> int:
    """Cancel the queued and running jobs of `keys`, after asking unless `yes`; the exit code."""
    from lewel_bench.slurm import actions, queue, survey

    try:
        live = survey.live_jobs(root)
        wanted = [key for key in keys if key in live]
        count = f"{len(wanted)} job{'s' * (len(wanted) != 1)}"
        if not wanted:
            print("nothing to cancel: none of these jobs is queued or running")
            return 0
        if not yes and not _is_confirmed(f"cancel {count}? [y/N] "):
            print(f"not cancelled: {count}; add --yes to cancel without confirmation")
            return 1
        cancelled = actions.cancel(root, wanted)
    except queue.SlurmUnreachable as error:
        raise ValueError(f"{error}. Nothing was cancelled") from None
    keys_cancelled = {key for keys in cancelled.values() for key in keys}
    wanted_count = len(keys_cancelled.intersection(wanted))
    print(
        f"cancelled {len(cancelled)} task{'s' * (len(cancelled) != 1)} "
        f"with {wanted_count} of these jobs"
    )
    if others := keys_cancelled.difference(wanted):
        print(f"also cancelled, because they share a task: {', '.join(sorted(others))}")
    if rest := len(wanted) - wanted_count:
        print(
            f"{rest} job{'s' * (rest != 1)} ended meanwhile, or sbatch has not answered yet: see "
            "lewel-bench status"
        )
    return 0


def _is_confirmed(question: str) -> bool:
    """Whether the user answers yes; False without a terminal."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
