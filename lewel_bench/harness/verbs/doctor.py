"""`lewel-bench doctor`: check what works here."""

from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import Root, Where


def command(
    *,
    cluster: Annotated[
        str | None,
        Parameter(metavar="NAME", help="Check this cluster too, with a tiny job on it."),
    ] = None,
    root: Root = None,
) -> int:
    """Check the installation, this machine and the site file.

    For example:
      lewel-bench doctor --cluster slurm
    """
    from lewel_bench.harness.installation import doctor
    from lewel_bench.harness.plan.workspace import open_workspace

    return doctor(open_workspace(Where(root=root), needs_data=True), cluster)
