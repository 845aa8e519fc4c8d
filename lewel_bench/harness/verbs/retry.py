"""`lewel-bench retry`: let the next run try failed jobs again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import KEYS_HELP, JobFilter, Root, Where


def command(
    *keys: Annotated[str, Parameter(metavar="KEY", help=KEYS_HELP)],
    chosen: JobFilter = JobFilter(),
    root: Root = None,
) -> int:
    """Let the next run try failed cluster jobs again.

    For example:
      lewel-bench retry --state failed
    """
    from lewel_bench.harness.job_states import selected_keys
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(Where(root=root))
    return retry(workspace.root, selected_keys(workspace, keys, chosen))


def retry(root: Path, keys: Sequence[str]) -> int:
    """Discard the failures of those of `keys` that failed on a cluster; the exit code."""
    from lewel_bench.files import FAILURE
    from lewel_bench.results.record import NAME
    from lewel_bench.slurm import actions, survey

    verdicts = survey.verdicts_on(root, keys)
    failed = [
        key
        for key, verdict in verdicts.items()
        if not verdict.again and not (root / key / NAME).exists()
    ]
    actions.retry(root, failed)
    for key in failed:
        (root / key / FAILURE).unlink(missing_ok=True)
    print(f"the next run will submit {len(failed)} failed job{'s' * (len(failed) != 1)} again")
    return 0
