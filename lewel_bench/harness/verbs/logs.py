"""`lewel-bench logs`: what the cluster jobs of a key or cell printed."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
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
    from lewel_bench.harness.job_states import keys_of
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(Where(root=root))
    return logs(workspace.root, keys_of(workspace, key), key, follow=follow)


def logs(root: Path, keys: Iterable[str], asked: str, *, follow: bool) -> int:
    """Print the logs of `keys`, which the user named as `asked`; the exit code."""
    from lewel_bench.files import open_regular
    from lewel_bench.slurm import survey

    paths = [path for key in keys for path in survey.log_paths(root, key)]
    if not paths:
        raise ValueError(
            f"{asked} has no logs of cluster jobs under {root}: see lewel-bench status"
        )
    if follow:
        command = ["tail", "-n", "50", "-F", *map(str, paths)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
            assert tail.stdout
            for line in tail.stdout:  # printed here, which escapes control characters
                print(line.decode(errors="replace"), end="", flush=True)
        return tail.returncode
    for path in paths:
        print(f"==> {path}")
        with open_regular(path) as file:
            sys.stdout.write(file.read().decode(errors="replace"))
    return 0
