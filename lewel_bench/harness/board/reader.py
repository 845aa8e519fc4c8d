"""From the options of a command to a board, and the warnings about its records."""

import sys

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.plan.workspace import open_workspace
from lewel_bench.harness.request import Rows, Where
from lewel_bench.results.store import Store, conflict_messages


def open_board(where: Where, rows: Rows = Rows()) -> Board:
    """The records under a run root as the tables of one suite see them."""
    workspace = open_workspace(where)
    settings = workspace.settings(workspace.catalog.protocols)
    return Board(
        workspace.root,
        workspace.suite,
        workspace.datasets,
        settings,
        rows.with_,
        workspace.catalog,
    )


def warn(store: Store) -> None:
    """Print that there is no run root yet, and which records are corrupt or conflicting."""
    if not store.root.is_dir():
        print(f"note: there is no run root {store.root} yet", file=sys.stderr)
    for bad in store.bad:
        print(
            f"warning: corrupt record {bad}; run with --replace-corrupt to compute it again",
            file=sys.stderr,
        )
    for bad in store.bad_others:
        print(f"warning: corrupt record {bad}; merge its bundle again", file=sys.stderr)
    for text in conflict_messages(store):
        print(f"warning: {text}", file=sys.stderr)
