"""Grids of learning rates and weight decays: their types, their checks, and the edge warning."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from lewel_bench.pretrain.recipe import Rate

Lr = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Grid = Annotated[tuple[Lr, ...], Field(min_length=1)]
Decays = Annotated[tuple[Rate, ...], Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def edge_warning(what: str, best: float, candidates: Sequence[float]) -> str | None:
    """A warning when `best` is the smallest or largest of at least three candidates."""
    values = sorted(set(candidates))
    if len(values) < 3 or best not in (values[0], values[-1]):
        return None
    side = "smallest" if best == values[0] else "largest"
    shown = ", ".join(f"{v:g}" for v in values)
    return f"the best {what} {best:g} is the {side} of the grid ({shown}): widen the grid"


def check_grid(field: str, values: Sequence[float]) -> None:
    """Raise ValueError for a duplicate value."""
    if len(set(values)) < len(values):
        raise ValueError(f"{field} lists a value twice: {', '.join(f'{v:g}' for v in values)}")


def check_milestones(milestones: tuple[int, ...], end: int, unit: str) -> None:
    """Raise ValueError unless the milestones increase and stay below `end` (epochs or steps)."""
    if list(milestones) != sorted(set(milestones)) or any(m >= end for m in milestones):
        raise ValueError(
            f"milestones {milestones} must increase and stay below {unit} ({end}): "
            f"scale them together with {unit}"
        )
