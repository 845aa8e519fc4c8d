"""`lewel-bench gc`: remove what no cell needs."""

from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import Root, Where


def command(
    *, yes: Annotated[bool, Parameter(help="Remove the files.")] = False, root: Root = None
) -> int:
    """List checkpoints and weights that no cell needs, or remove them.

    For example:
      lewel-bench gc --yes
    """
    from lewel_bench.harness import garbage
    from lewel_bench.harness.job_states import job_states
    from lewel_bench.harness.plan.workspace import open_workspace
    from lewel_bench.results.store import Store
    from lewel_bench.value import format_bytes

    workspace = open_workspace(Where(root=root))
    unneeded = garbage.waste(workspace.root, job_states(workspace, Store(workspace.root)))
    if not unneeded:
        print(f"{workspace.root}: nothing to remove")
    elif yes:
        print(f"{len(unneeded)} files removed, {format_bytes(garbage.clear(unneeded))} freed")
    else:
        garbage.show(unneeded, workspace.root)
        total = format_bytes(sum(file.size for file in unneeded))
        print(f"{len(unneeded)} files, {total}: remove them with --yes")
    return 0
