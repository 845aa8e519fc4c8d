"""The jobs that a user names: by key, cell, method or table."""

from collections.abc import Mapping, Sequence

from lewel_bench.harness.board.extra_rows import Extra, extended
from lewel_bench.harness.plan import cells
from lewel_bench.harness.plan.catalog import Catalog
from lewel_bench.harness.status import JobState
from lewel_bench.results.table import Table, load, parse_cell
from lewel_bench.value import unknown


def recipes_of(methods: Sequence[str], tables: Sequence[str], catalog: Catalog) -> set[str]:
    """The recipes of methods and tables. Raises ValueError for unknown names."""
    names = set(cells.recipe_names(methods, catalog))
    for table in cells.tables(tables):
        names |= {name for cell in table.cells() if (name := cells.recipe_name(*cell))}
    return names


def named_keys(states: Mapping[str, JobState], text: str, extras: Mapping[str, Extra]) -> list[str]:
    """The keys that `text` names: a key, or a cell such as table1:lewel_m:200:top1 with its
    evaluations and their pre-trainings. The tables include the rows `extras`, by name. Raises
    ValueError for unknown keys and cells, and for cells without any job."""
    if ":" not in text:
        if text not in states:
            raise ValueError(unknown("key", text, states))
        return [text]

    def evaluated(extra: Extra, protocol: str) -> bool:
        pairs = ((state.recipe, state.protocol) for state in states.values())
        return (extra.name, protocol) in pairs

    def read(table_id: str) -> Table:
        return extended(load(table_id), list(extras.values()), evaluated)

    table_id, row_id, column_id = parse_cell(text, read)
    row, column = read(table_id).row(row_id), load(table_id).column(column_id)
    recipe = name if (name := row.family(column)) in extras else cells.recipe_name(row, column)
    protocols = ("", row.protocols.get(column.eval, ""))
    keys = [
        k
        for k, job_state in states.items()
        if job_state.recipe == recipe and job_state.protocol in protocols
    ]
    if recipe is None or not keys:
        raise ValueError(f"no job of this run root fills {text}: see lewel-bench status")
    return keys
