"""Figures 3a and 3b of the paper as quotations: whose runs make their points, and what it says.

Neither prints a number, so no curve of the paper is drawn: only what its tables give of the same
runs, and its sentences about the shape.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lewel_bench.results.table import Column, Positive, Row, Table
from lewel_bench.value import Value, unknown

FOLDER = Path(__file__).parent
FIGURES = tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))

X = Annotated[float, Field(allow_inf_nan=False)]


class Point(Value):
    """A place on the horizontal axis, and the family of recipes whose runs are measured there."""

    x: X
    recipe: str


class Quantity(Value):
    """What is measured at every point: a metric, in percent, of a protocol."""

    id: str
    label: str
    metric: str
    protocol: str


class Published(Value):
    """What a table of the paper prints of the run at `x`, by the id of a column."""

    x: X
    values: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    source: str


class Statement(Value):
    """The paper's own words about the shape over a span of the axis."""

    span: tuple[X, X]
    text: str


class Figure(Value):
    """One figure: quantities over points of an axis. The grid of points is ours."""

    id: str
    title: str
    source: str
    axis: str
    scale: Literal["linear", "log2"]
    epochs: Positive
    remarks: tuple[str, ...] = ()
    points: tuple[Point, ...]
    columns: tuple[Quantity, ...]
    published: tuple[Published, ...]
    statements: tuple[Statement, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        places = [point.x for point in self.points]
        if places != sorted(set(places)):
            raise ValueError(f"the x values of figure {self.id} must increase: {places}")
        columns = [column.id for column in self.columns]
        for series in self.published:
            if series.x not in places:
                raise ValueError(f"{series.source}: no run of figure {self.id} is at {series.x:g}")
            for name in series.values:
                if name not in columns:
                    raise ValueError(unknown(f"column of figure {self.id}", name, columns))
        return self

    def table(self) -> Table:
        """The points as rows and the quantities as columns, to be filled from records as a table
        is; the figure prints no value, so the columns are ours."""
        return Table(
            id=self.id,
            title=self.title,
            caption=self.title,
            source=self.source,
            columns=tuple(
                Column(
                    id=column.id,
                    label=column.label,
                    epochs=self.epochs,
                    eval=column.id,
                    metric=column.metric,
                    additional=True,
                )
                for column in self.columns
            ),
            rows=tuple(
                Row(
                    id=f"{point.x:g}",
                    label=f"{point.x:g}",
                    recipe=point.recipe,
                    origin="own",
                    protocols={column.id: column.protocol for column in self.columns},
                    values={},
                )
                for point in self.points
            ),
        )


@cache
def load(id: str) -> Figure:
    """Figure `id` ("3a"). Raises ValueError: no such figure (nearest named), or a bad file."""
    if id not in FIGURES:
        raise ValueError(unknown("figure", id, FIGURES))
    return Figure.of_toml(FOLDER / f"{id}.toml")
