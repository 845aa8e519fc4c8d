"""`lewel-bench table`: a table of the paper with what was measured."""

from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import Rows, Where


def command(
    table: Annotated[str, Parameter(help="Number of the table, or `all`.")],
    /,
    *,
    format: Annotated[
        str,
        Parameter(
            help="text (default), long (every line of a cell), md, csv, latex, html or json."
        ),
    ] = "text",
    all_: Annotated[
        bool, Parameter(name="--all", help="Also show rows and columns without a measurement.")
    ] = False,
    missing: Annotated[
        bool, Parameter(help="List missing cells and the commands that compute them.")
    ] = False,
    rows: Rows = Rows(),
    where: Where = Where(),
) -> int:
    """Print a table of the paper: measured and published value and verdict of each cell.

    For example:
      lewel-bench table 1 --suite shapes
      lewel-bench table 1 --suite shapes --format long
      lewel-bench table all --format md
      lewel-bench table 4 --missing
    """
    from lewel_bench.harness.board.reader import open_board, warn
    from lewel_bench.harness.plan import cells
    from lewel_bench.results import formats
    from lewel_bench.value import unknown

    known = ["text", "long", *formats.FORMATS]
    if format not in known:
        raise ValueError(unknown("format", format, known))
    if missing and format not in ("text", "json"):
        raise ValueError(f"--format {format}: --missing has the formats text and json")
    names = [quoted.id for quoted in cells.tables([table])]
    board = open_board(where, rows)
    filled = [board.filled(name) for name in names]
    warn(board.store)
    if missing:
        from lewel_bench.harness.board.missing import show

        show(board, filled, format)
    elif format in ("text", "long"):
        from lewel_bench.harness import view
        from lewel_bench.results.layout import compact, sheet

        for measured in filled:
            view.show_table(sheet(measured) if format == "long" else compact(measured, all_))
    else:
        print(formats.render(filled, format), end="")
    return 0
