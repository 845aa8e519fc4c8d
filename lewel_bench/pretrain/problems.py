"""What is wrong with a data set: one line per kind of problem, however many files have it."""

import reprlib
from collections.abc import Iterable
from typing import Any

from lewel_bench.value import printable

PLACES = 3  # shown for each kind
KINDS = 20  # shown at most
LONGEST = 400  # characters of a place


class Problem(str):
    """A sentence `PLACE: WHAT`, as checks return it and errors carry it.

    `kind` is the same for all places with the same problem, and equals the sentence's second half
    unless that holds values of this place (`detail`): Problem("a.json: object 3", "the area is
    missing or negative", "the area -3.5 is negative"). Notes about a data set are of this type too.
    """

    place: str
    kind: str

    def __new__(cls, place: object, kind: str, detail: str = "") -> "Problem":
        place, detail = _short(printable(place)), printable(detail or kind)
        problem = super().__new__(cls, f"{place}: {detail}")
        problem.place, problem.kind = place, kind
        return problem

    def __getnewargs__(self) -> tuple[str, str, str]:  # type: ignore[override]  # for copies
        return self.place, self.kind, self.removeprefix(f"{self.place}: ")

    @classmethod
    def of(cls, error: Exception) -> str:
        """What an error was raised with: its problem, or its text."""
        return error.args[0] if error.args and isinstance(error.args[0], cls) else str(error)


def _short(place: str) -> str:
    return place if len(place) <= LONGEST else f"{place[: LONGEST // 2]}…{place[-LONGEST // 2 :]}"


def shown(value: Any) -> str:
    """A value of a file for a message, shortened."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def grouped(problems: Iterable[str]) -> list[str]:
    """A line for each kind of problem, with how often and where first; plain sentences are kinds
    of their own."""
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
    places = ", ".join(getattr(p, "place", p) for p in members[:PLACES])
    rest = ", …" if len(members) > PLACES else ""
    return f"{len(members):,} times: {kind}; first {places}{rest}"
