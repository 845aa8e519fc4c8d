"""`lewel-bench retry`: let the next run try failed jobs again."""

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
    from lewel_bench.harness import cluster
    from lewel_bench.harness.job_states import selected_keys
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(Where(root=root))
    return cluster.again(workspace.root, selected_keys(workspace, keys, chosen))
