"""The paper's claims as data: which cells each compares, how, and the noise it is judged by."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lewel_bench.results import noise, table
from lewel_bench.results.fill import FilledTable
from lewel_bench.results.noise import Noise
from lewel_bench.value import Value, unique, unknown

FILE = Path(__file__).with_name("claims.toml")

Text = Annotated[str, Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Holds = Literal["better", "no better", "on par", "at most"]
HOLDS: dict[Holds, str] = {
    "better": "the difference exceeds the noise floor",
    "no better": "the difference is not above the noise floor",
    "on par": "the difference is not negative beyond the noise floor",
    "at most": "the value does not exceed the claimed bound by more than the noise floor",
}


class Pairs(Value):
    """Row `of` beside each row of `over`, in each of `columns` of one table; `by` is the difference
    that the text gives, in points. Of "at most" nothing is beside it and `by` is the bound."""

    of: Text
    over: tuple[Text, ...] = ()
    columns: tuple[Text, ...]
    by: Finite | None = None


class Claim(Value):
    """One claim. It holds where all of its comparisons do, each judged by the noise of its column.
    `up_to` is the largest difference that the text gives. `flaw` says what the paper's own tables
    have against it."""

    id: Text
    says: Text
    where: Text
    table: str
    holds: Holds
    pairs: tuple[Pairs, ...]
    up_to: Finite | None = None
    flaw: str = ""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for pair in self.pairs:
            is_bound = self.holds == "at most"
            if is_bound and (pair.over or pair.by is None):
                raise ValueError(
                    f"claim {self.id}: 'at most' compares with a bound: give `by` and no `over`"
                )
            if not is_bound and not pair.over:
                raise ValueError(
                    f"claim {self.id}: {self.holds!r} needs `over`, the rows to compare with"
                )
        return self

    def comparisons(self) -> Iterator["Comparison"]:
        """What must hold, one by one. Raises ValueError for a row or column that is not there."""
        quoted = table.load(self.table)
        for pair in self.pairs:
            for name in pair.columns:
                column, of = quoted.column(name), quoted.row(pair.of)
                for over in map(quoted.row, pair.over):
                    yield Comparison(self, column, of, over, pair.by)
                if not pair.over:
                    yield Comparison(self, column, of, None, pair.by)


class Comparison:
    """Two rows of a table in one column, or one row beside a bound."""

    def __init__(
        self,
        claim: Claim,
        column: table.Column,
        of: table.Row,
        over: table.Row | None,
        by: float | None,
    ) -> None:
        self.claim, self.column, self.of, self.over, self.by = claim, column, of, over, by

    @property
    def noise(self) -> Noise:
        """The run-to-run noise that it is judged by: its column's."""
        assert self.column.noise is not None, "checked when the claim was loaded"
        return noise.find(self.column.noise)

    @property
    def text(self) -> str:
        """In words: "LEWEL_M over MoCov2*, 100 ep top-1"."""
        over = f" over {_name(self.over)}" if self.over else ""
        return f"{_name(self.of)}{over}, {self.column.label}"

    def is_measured(self, filled: FilledTable) -> bool:
        """Whether both sides have a measured value."""
        rows = [self.of, self.over] if self.over else [self.of]
        entries = [filled.entries.get((row.id, self.column.id)) for row in rows]
        return all(entry is not None and entry.mean is not None for entry in entries)

    def cell(self, row: table.Row) -> str:
        """The name of one side's cell, as `explain` takes it."""
        return f"table{self.claim.table}:{row.id}:{self.column.id}"

    @property
    def published(self) -> float | None:
        """The difference that the paper's table has, in points; None where it prints none."""
        if self.column.metric == table.OVERHEAD:  # Table 9 prints seconds
            quoted = table.load(self.claim.table)
            over = next(row for row in quoted.rows if row.recipe == self.of.baseline)
            return round(100 * (self.of.values["seconds"] / over.values["seconds"] - 1), 6)
        rows = [self.of, self.over] if self.over else [self.of]
        values = [row.values.get(self.column.id) for row in rows]
        known = [value for value in values if value is not None]
        if len(known) < len(rows):
            return None
        # one digit each: 66.1 - 64.5 is 1.6, not 1.5999999999999943
        return round(known[0] - (known[1] if self.over else 0.0), 6)


def _name(row: table.Row) -> str:
    return f"{row.label} {row.epochs} ep" if row.epochs else row.label


class _Register(Value):
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _known(self) -> Self:
        unique("claims have the same id", (claim.id for claim in self.claims))
        for claim in self.claims:
            for comparison in claim.comparisons():
                if comparison.column.noise is None:
                    raise ValueError(f"claim {claim.id}: {comparison.column.id} has no noise")
        return self


@cache
def load() -> tuple[Claim, ...]:
    """All claims, in the paper's order. Raises ValueError naming the file and what is wrong."""
    return _register().claims


def floors(claim: Claim) -> str:
    """The noise floors of a claim in words: "0.3", or by column: "AP 0.4, AP75 0.8"."""
    by_column = {c.column.label: c.noise.floor for c in claim.comparisons()}
    if len(values := set(by_column.values())) == 1:
        return f"{values.pop():g}"
    return ", ".join(f"{label} {floor:g}" for label, floor in by_column.items())


def noise_sources(claim: Claim) -> str:
    """Where the noise of a claim's columns is from."""
    return " ".join(dict.fromkeys(c.noise.source for c in claim.comparisons()))


def find(id: str) -> Claim:
    """The claim `id`. Raises ValueError naming the nearest one."""
    for claim in load():
        if claim.id == id:
            return claim
    raise ValueError(unknown("claim", id, [claim.id for claim in load()]))


@cache
def _register() -> _Register:
    return _Register.of_toml(FILE)
