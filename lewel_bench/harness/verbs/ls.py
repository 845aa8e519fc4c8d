"""`lewel-bench ls`: methods, recipes, protocols, tables and the like as lists."""

import json
from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import FORM_HELP, Form, Root, Where


def command(
    what: Annotated[
        str,
        Parameter(
            help="methods, recipes, protocols, tables, claims, suites, checkpoints, conflicts or "
            "runs."
        ),
    ],
    /,
    *,
    format: Annotated[Form, Parameter(help=FORM_HELP)] = "text",
    root: Root = None,
) -> int:
    """List methods, recipes, protocols, tables, claims, suites, checkpoints, conflicts or runs.

    For example:
      lewel-bench ls methods
      lewel-bench ls runs --format json
    """
    from lewel_bench.harness import lists
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(Where(root=root))
    columns, rows = lists.listing(what, workspace.site, workspace.root, workspace.catalog)
    if format == "json":
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
        return 0
    from lewel_bench.harness import view

    view.show_list(columns, rows)
    return 0
