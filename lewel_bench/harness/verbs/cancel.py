"""`lewel-bench cancel`: cancel jobs on a cluster."""

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
    from lewel_bench.harness import cluster
    from lewel_bench.harness.job_states import selected_keys
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(Where(root=root))
    return cluster.cancel(workspace.root, selected_keys(workspace, keys, chosen), yes)
