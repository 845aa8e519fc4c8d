"""The public checkpoints of the paper's methods, as their authors' pages describe them."""

from functools import cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from lewel_bench.value import Value, unique

FILE = Path(__file__).with_name("checkpoints.toml")

Text = Annotated[str, Field(min_length=1)]


class Public(Value):
    """One file that somebody publishes. `name` is what `eval --name` may call it; `file` is absent
    where the page links to a drive that does not show it, `epochs` where the page does not say.
    `recipe` is the recipe whose rows it can stand in, for `eval --as`; a `note` says where it
    differs from it. `reported` are the numbers that `source` (a page @ commit) gives, in percent.
    """

    name: Text
    project: Text
    label: Text
    epochs: Annotated[int, Field(gt=0)] | None = None
    file: str = ""
    url: Text
    recipe: str = ""
    reported: dict[str, Annotated[float, Field(gt=0, lt=100)]]
    licence: Text
    note: str = ""
    source: Text


class _List(Value):
    checkpoints: tuple[Public, ...]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        unique(
            "checkpoints have the same name", (checkpoint.name for checkpoint in self.checkpoints)
        )
        return self


@cache
def load() -> tuple[Public, ...]:
    """Every public checkpoint, in reading order. Raises ValueError naming what is wrong."""
    return _List.of_toml(FILE).checkpoints
