"""`lewel-bench explain`: what is behind a cell."""

from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import CELL_HELP, FORM_HELP, Form, Rows, Where


def command(
    cell: Annotated[str, Parameter(help=CELL_HELP)],
    /,
    *,
    format: Annotated[Form, Parameter(help=FORM_HELP)] = "text",
    rows: Rows = Rows(),
    where: Where = Where(),
) -> int:
    """Show what is behind a cell: spec, seeds, commit, data, checkpoint, log and command.

    For example:
      lewel-bench explain table1:lewel_m:200:top1 --suite shapes
      lewel-bench explain table1:lewel_m:200:top1 --format json
    """
    from lewel_bench.harness.board.cell_details import explained, show
    from lewel_bench.harness.board.reader import open_board, warn
    from lewel_bench.value import json_text

    board = open_board(where, rows)
    details = explained(board, cell)
    warn(board.store)
    if format == "json":
        print(json_text(details))
    else:
        show(details)
    return 0
