"""`lewel-bench report`: everything as one HTML file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import Rows, Where


def command(
    out: Annotated[
        Path, Parameter(help="HTML file to write; an older report of this name is replaced.")
    ],
    /,
    *,
    force: Annotated[bool, Parameter(help="Replace the file whatever it is.")] = False,
    rows: Rows = Rows(),
    where: Where = Where(),
) -> int:
    """Write tables, claims, figures, coverage and cost as one HTML file.

    For example:
      lewel-bench report report.html --suite shapes
    """
    from lewel_bench.harness.board.reader import open_board, warn
    from lewel_bench.harness.report import write

    board = open_board(where, rows)
    write(board, out, force=force)
    warn(board.store)
    print(out)
    return 0
