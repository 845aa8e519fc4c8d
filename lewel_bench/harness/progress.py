"""How far methods and tables have come, in jobs and in device-hours."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lewel_bench.harness.plan import cells
from lewel_bench.harness.status import JobState
from lewel_bench.results.table import TABLES, load


@dataclass(frozen=True)
class Share:
    """The jobs of a recipe or of a table in a suite; `unknown` of them have no estimate yet."""

    name: str
    suite: str
    done: int = 0
    jobs: int = 0
    spent_hours: float = 0.0
    hours_to_go: float = 0.0
    unknown: int = 0

    def plus(self, job: JobState) -> "Share":
        """With one job more."""
        to_go = job.hours_to_go
        return replace(
            self,
            done=self.done + (job.state == "done"),
            jobs=self.jobs + 1,
            spent_hours=self.spent_hours + job.spent_hours,
            hours_to_go=self.hours_to_go + (to_go or 0.0),
            unknown=self.unknown + (to_go is None),
        )


def shares(states: Iterable[JobState]) -> tuple[list[Share], list[Share]]:
    """Of each recipe, and of each table that has jobs; stale jobs are no table's any more."""
    methods: dict[tuple[str, str], Share] = {}
    tables: dict[tuple[str, str], Share] = {}
    of = _tables()
    for job in states:
        if job.state == "stale" or not job.recipe:
            continue
        _add(methods, job.recipe, job)
        for name in of.get((job.recipe, job.protocol), ()):
            _add(tables, f"table {name}", job)
    return list(methods.values()), [tables[key] for key in sorted(tables)]


def _add(into: dict[tuple[str, str], Share], name: str, job: JobState) -> None:
    where = (name, job.suite)
    into[where] = into.get(where, Share(*where)).plus(job)


def _tables() -> Mapping[tuple[str, str], list[str]]:
    """The tables that a recipe under a protocol, or its pre-training (""), fills a cell of."""
    keys_of_cells: dict[tuple[str, str], dict[str, None]] = {}
    for name in TABLES:
        for row, column in load(name).cells():
            recipe = cells.recipe_name(row, column)
            if recipe:
                for protocol in ("", row.protocols.get(column.eval, "")):
                    keys_of_cells.setdefault((recipe, protocol), {})[name] = None
    return {cell: list(names) for cell, names in keys_of_cells.items()}
