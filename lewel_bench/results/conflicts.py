"""The register of conflicts: where the paper, the released code and its scripts disagree or are
silent, what the default here is, which recipe or protocol takes another side, and why."""

from functools import cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from lewel_bench.value import Value, unique

FILE = Path(__file__).with_name("conflicts.toml")

Text = Annotated[str, Field(min_length=1)]


class Conflict(Value):
    """One disagreement or gap. `where` is the file @ commit (or the paper's section) that `code`
    was read in. `recipes` (families) and `protocols` map each side that exists by name to what it
    does; the first of them is the default."""

    id: Text
    topic: Text
    paper: Text
    code: Text
    where: Text
    default: Text
    why: Text
    recipes: dict[str, Text] = {}
    protocols: dict[str, Text] = {}


class _Register(Value):
    conflicts: tuple[Conflict, ...]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        unique("conflicts have the same id", (conflict.id for conflict in self.conflicts))
        return self


@cache
def load() -> tuple[Conflict, ...]:
    """The whole register, in reading order. Raises ValueError naming the file and what is wrong."""
    return _Register.of_toml(FILE).conflicts
