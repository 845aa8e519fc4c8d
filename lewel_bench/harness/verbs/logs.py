"""`lewel-bench logs`: what the cluster jobs of a key or cell printed."""

from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import KEYS_HELP, Root, Where


def command(
    key: Annotated[str, Parameter(help=KEYS_HELP)],
    /,
    *,
    follow: Annotated[bool, Parameter(alias="-f", help="Keep printing as the log grows.")] = False,
    root: Root = None,
) -> int:
    """Print the logs of the cluster jobs of a key or cell.

    For example:
      lewel-bench logs table1:lewel_m:200:top1 --follow
    """
    from lewel_bench.harness import cluster
    from lewel_bench.harness.job_states import named_keys
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(Where(root=root))
    return cluster.logs(workspace.root, named_keys(workspace, key), key, follow)
