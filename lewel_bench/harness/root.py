"""A run root for notebooks and scripts: its records, curves and tables as DataFrames."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lewel_bench.results.store import Store

if TYPE_CHECKING:
    from pandas import DataFrame


class Root:
    """A run root as it was when it was first read; open it again for what is new."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _store(self) -> Store:
        return Store(self.path)

    def records(self) -> "DataFrame":
        """The records, a row a record; see `results.store.Store.frame` for the columns."""
        return self._store.frame()

    def curves(self, key: str) -> "DataFrame":
        """What the log of a job says over time, a row a point; see `results.curves.frame` for the
        columns. Raises ValueError for a key that has no folder."""
        return self._store.curves(key)

    def table(
        self, table: int | str, suite: str = "paper", with_: Sequence[str] = ()
    ) -> "DataFrame":
        """A table of the paper with what was measured, a row a cell, by the ids of its row and
        column; see `results.cells.cells` for the columns. `with_` names further rows, as `table
        --with` does. Raises ValueError for an unknown table, suite or row."""
        from lewel_bench.harness.board.reader import open_board
        from lewel_bench.harness.request import Rows, Where
        from lewel_bench.results.cells import frame

        board = open_board(Where(suite=suite, root=self.path), Rows(with_=tuple(with_)))
        return frame([board.filled(str(table))]).set_index(["row", "column"])


def open_root(path: str | Path = "runs") -> Root:
    """The run root at `path`, to be read as DataFrames:

    >>> root = lewel_bench.open_root("runs")
    >>> root.records().query("kind == 'final'").groupby("name").top1.mean()
    >>> root.table(1, suite="shapes").dropna(subset="mean")[["published", "mean", "std", "n"]]

    A root that does not exist is empty. Raises ValueError if it is a file.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"the run root {path} is a file: name a folder")
    return Root(path)
