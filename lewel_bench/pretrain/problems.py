"""Problems of a data set: one line per kind, however many files have it."""

import reprlib
from collections.abc import Iterable
from typing import Any

from lewel_bench.value import printable

LOCATIONS = 3  # shown for each kind
KINDS = 20  # shown at most
LONGEST = 400  # characters of a location


class Problem(str):
    """A sentence `LOCATION: PROBLEM`, returned by checks and carried by errors.

    `kind` is the same for all locations with the same problem, and equals the sentence's second
    half unless that has values of its own location (`detail`): Problem("a.json: object 3", "the
    area is missing or negative", "the area -3.5 is negative"). Notes about a data set are of this
    type too.
    """

    location: str
    kind: str

    def __new__(cls, location: object, kind: str, detail: str = "") -> "Problem":
        location, detail = _short(printable(location)), printable(detail or kind)
        problem = super().__new__(cls, f"{location}: {detail}")
        problem.location, problem.kind = location, kind
        return problem

    def __getnewargs__(self) -> tuple[str, str, str]:  # type: ignore[override]  # for copies
        return self.location, self.kind, self.removeprefix(f"{self.location}: ")

    @classmethod
    def of(cls, error: Exception) -> str:
        """The problem that an error was raised with, or its text."""
        return error.args[0] if error.args and isinstance(error.args[0], cls) else str(error)


def _short(location: str) -> str:
    if len(location) <= LONGEST:
        return location
    return f"{location[: LONGEST // 2]}…{location[-LONGEST // 2 :]}"


def shown(value: Any) -> str:
    """A value of a file for a message, shortened."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def grouped(problems: Iterable[str]) -> list[str]:
    """A line for each kind of problem, with its count and first locations; each plain sentence is a
    kind of its own."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(getattr(problem, "kind", problem), []).append(problem)
    lines = [_line(kind, members) for kind, members in kinds.items()]
    if len(lines) > KINDS:
        lines[KINDS:] = [f"… and {len(lines) - KINDS:,} more kinds"]
    return lines


def _line(kind: str, members: list[str]) -> str:
    if len(members) == 1:
        return members[0]
    locations = ", ".join(getattr(p, "location", p) for p in members[:LOCATIONS])
    rest = ", …" if len(members) > LOCATIONS else ""
    return f"{len(members):,} times: {kind}; first {locations}{rest}"
