"""The paper's tables as quotations: what each cell says, where the value is from, what it needs."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from lewel_bench.results import noise
from lewel_bench.value import Value, unknown

FOLDER = Path(__file__).parent / "tables"
TABLES = tuple(sorted((file.stem for file in FOLDER.glob("*.toml")), key=lambda id: (len(id), id)))

Positive = Annotated[int, Field(gt=0)]

PRETRAIN = "pretrain"  # the eval of a column that the pre-training itself measures
OVERHEAD = "overhead"  # the metric that sets a row against its baseline

Origin = Literal["cited", "ref9", "repro", "own", "none"]
ORIGINS: dict[Origin, str] = {
    "cited": "cited from the method's own paper or repository",
    "ref9": "cited from SimSiam's paper (the paper's †)",
    "repro": "the LEWEL authors' reproduction (the paper's *)",
    "own": "the LEWEL authors' own method",
    "none": "not in the paper",
}


class Column(Value):
    """One quantity. `noise` names its run-to-run noise in `noise.toml`; a column without any has no
    verdict. `epochs` is the pre-training length where the column, not the row, says it.
    `best` is what the paper prints in bold. An `additional` column is not in the paper; one that
    is not `comparable` depends on the machine, so no verdict holds it against the paper."""

    id: str
    label: str
    epochs: Positive | None = None
    eval: str
    metric: str
    unit: str = "%"
    digits: Annotated[int, Field(ge=0)] = 1
    noise: str | None = None
    best: Literal["highest", "lowest", "none"] = "highest"
    additional: bool = False  # a column that the paper does not have
    comparable: bool = True

    @model_validator(mode="after")
    def _noise_is_known(self) -> Self:
        if self.noise is not None:
            noise.find(self.noise)
        elif self.comparable and not self.additional:
            raise ValueError(f"column {self.id}: set noise, or comparable = false")
        return self


class Row(Value):
    """One line of the paper. `recipe` is the family that fills it (absent: published only), and
    `recipes` names another one for some evals; `protocols` names the protocol of each column's
    `eval`. `values` and `notes` are by column id; a column without a value is blank in the paper.
    `block` is the heading above the row where the paper has some: bold is the best of a block.
    `baseline` is the family that the overhead of this one is over. `more` are columns that a run
    can fill although the paper prints nothing there."""

    id: str
    label: str
    block: str = ""
    recipe: str | None = None
    recipes: dict[str, str] = {}
    baseline: str | None = None
    epochs: Positive | None = None
    origin: Origin
    protocols: dict[str, str] = {}
    values: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    origins: dict[str, Origin] = {}  # of the columns whose value is from elsewhere
    notes: dict[str, str] = {}
    more: tuple[str, ...] = ()

    def origin_of(self, column: str) -> Origin:
        """Where the value of a column is from: one of ORIGINS."""
        return self.origins.get(column, self.origin)

    def family(self, column: Column) -> str | None:
        """The family of recipes that fills a column; None where nothing can."""
        return self.recipes.get(column.eval, self.recipe)

    def measurable(self, column: Column) -> bool:
        """Whether a table asks for a run: for published values and for additional columns."""
        if column.metric == OVERHEAD and self.baseline is None:
            return False
        asked = column.additional or column.id in self.values or column.id in self.more
        return bool(self.family(column)) and asked


class Table(Value):
    """One table of the paper. `remarks` hold for the whole of it."""

    id: str
    title: str
    caption: str
    source: str
    remarks: tuple[str, ...] = ()
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, ids in (("row", _ids(self.rows)), ("column", _ids(self.columns))):
            if len(set(ids)) < len(ids):
                raise ValueError(f"table {self.id} has two {what}s with the same id: {ids}")
        if len({id.count(":") for id in _ids(self.rows)}) > 1:
            raise ValueError(f"row ids of table {self.id} have different numbers of parts")
        evals = {column.eval for column in self.columns}
        for row in self.rows:
            for named in (*row.protocols, *row.recipes):
                if named not in evals:
                    raise ValueError(unknown(f"eval in row {row.id}", named, evals))
            used = {*row.values, *row.origins, *row.notes}
            used |= {column.id for column in self.columns if row.measurable(column)}
            for column in map(self.column, sorted(used)):
                if (row.epochs is None) == (column.epochs is None):
                    raise ValueError(
                        f"{row.id}, {column.id}: give epochs in the row or in the column"
                    )
                if column.additional and column.id in row.values:
                    raise ValueError(
                        f"{row.id}, {column.id}: a value in a column that the paper does not have"
                    )
                if row.family(column) and column.eval not in (PRETRAIN, *row.protocols):
                    raise ValueError(f"row {row.id} has a recipe but no protocol for {column.eval}")
        return self

    def row(self, id: str) -> Row:
        """The row `id`. Raises ValueError naming the nearest one."""
        return _find(self.rows, id, f"row of table {self.id}")

    def column(self, id: str) -> Column:
        """The column `id`. Raises ValueError naming the nearest one."""
        return _find(self.columns, id, f"column of table {self.id}")

    def cells(self) -> Iterator[tuple[Row, Column]]:
        """The cells that a run can fill, in reading order: a recipe, and a value in the paper or a
        additional column."""
        for row in self.rows:
            for column in self.columns:
                if row.measurable(column):
                    yield row, column


Item = TypeVar("Item", Row, Column)


def epochs(row: Row, column: Column) -> int | None:
    """The pre-training epochs of one cell, as the row or the column says; None where it is neither
    known of a row that is not in the paper."""
    return row.epochs or column.epochs


@cache
def load(id: str) -> Table:
    """Table `id` ("1"). Raises ValueError: no such table (nearest named), or a file that is bad."""
    if id not in TABLES:
        raise ValueError(unknown("table", id, TABLES))
    return Table.of_toml(FOLDER / f"{id}.toml")


def parse_cell(text: str, read: Callable[[str], Table] = load) -> tuple[str, str, str]:
    """Table, row and column id of a cell such as "table1:lewel_m:200:top1" or
    "table2:lewel_m:200:1pct:top1", of the tables as `read` has them. Raises ValueError naming what
    is unknown and the nearest."""
    head, *parts = text.split(":")
    if not head.startswith("table") or not parts:
        raise ValueError(
            f"{text!r} is not a cell. Write table:row:column, such as table1:lewel_m:200:top1"
        )
    table = read(head.removeprefix("table"))
    depth = 1 + table.rows[0].id.count(":")
    row = table.row(":".join(parts[:depth]))
    return table.id, row.id, table.column(":".join(parts[depth:])).id


def _ids(items: tuple[Item, ...]) -> list[str]:
    return [element.id for element in items]


def _find(items: tuple[Item, ...], id: str, what: str) -> Item:
    for element in items:
        if element.id == id:
            return element
    raise ValueError(unknown(what, id, _ids(items)))
