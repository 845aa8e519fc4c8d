"""The register of conflicts: where the paper, the released code and its scripts disagree or are
silent, what the default here is, which recipe or protocol takes another side, and why."""

from functools import cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from lewel_bench.value import Value, unknown

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
        ids = [one.id for one in self.conflicts]
        if twice := sorted({id for id in ids if ids.count(id) > 1}):
            raise ValueError(f"two conflicts have the same id: {', '.join(twice)}")
        return self


@cache
def load() -> tuple[Conflict, ...]:
    """The whole register, in reading order. Raises ValueError naming the file and what is wrong."""
    return _Register.of_toml(FILE).conflicts


def find(id: str) -> Conflict:
    """The conflict `id`. Raises ValueError naming the nearest one."""
    for one in load():
        if one.id == id:
            return one
    raise ValueError(unknown("conflict", id, [one.id for one in load()]))
