"""`lewel-bench claims`: whether the measured numbers support the paper's claims."""

from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import Command, Where


def command(
    *claims: Annotated[str, Parameter(metavar="CLAIM", help="See `ls claims` (default: all).")],
    format: Annotated[str, Parameter(help="text (default), md or json.")] = "text",
    where: Where = Where(),
) -> int:
    """Judge the paper's claims by the measured numbers.

    Exit code 0: all of them are supported; 1: at least one is contradicted; 2: neither, as some
    are inconclusive or missing.

    For example:
      lewel-bench claims --suite shapes
      lewel-bench claims --format md
    """
    from lewel_bench.harness.board.claims import judged
    from lewel_bench.harness.board.reader import open_board, warn
    from lewel_bench.results.claims import judge
    from lewel_bench.results.claims.output import as_json, markdown, missing_tables, text
    from lewel_bench.value import unknown

    writers = {"text": text, "md": markdown, "json": as_json}
    if format not in writers:
        raise ValueError(unknown("format", format, writers))
    board = open_board(where)
    verdicts = judged(board, claims)
    warn(board.store)
    print(writers[format](verdicts, board.suite.name))
    for name in missing_tables(verdicts) if format == "text" else ():
        print(f"what is missing: {Command('table', board.options(), (name,))} --missing")
    return judge.exit_code(verdicts)
