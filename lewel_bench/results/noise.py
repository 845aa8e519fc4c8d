"""Run-to-run noise of each quantity of the paper, stored once as a standard deviation."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lewel_bench.value import Value, unknown

FILE = Path(__file__).with_name("noise.toml")


class Noise(Value):
    """The standard deviation of a number over runs of one configuration, and where it is from."""

    sd: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    source: Annotated[str, Field(min_length=1)]

    @property
    def floor(self) -> float:
        """The noise floor: a difference of two standard deviations or less is no difference."""
        return round(2 * self.sd, 9)


def find(name: str) -> Noise:
    """The noise `name`. Raises ValueError naming the nearest one."""
    if name not in load():
        raise ValueError(unknown("noise", name, load()))
    return load()[name]


@cache
def load() -> dict[str, Noise]:
    """Every noise, by name."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Noise.model_validate(fields) for name, fields in content.items()}
