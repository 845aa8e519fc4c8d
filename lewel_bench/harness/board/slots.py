"""The runs of a cell: those that are done, with what sets them apart from the paper's, and what the
others wait for."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lewel_bench.evals.dataset import Dataset
from lewel_bench.harness.plan import cells, plan
from lewel_bench.harness.status import JobState
from lewel_bench.pretrain import collapse
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.results import comparable, table
from lewel_bench.results import measured_cost as cost
from lewel_bench.results.comparable import Expected
from lewel_bench.results.fill import Slot
from lewel_bench.results.table import Column, Row

if TYPE_CHECKING:
    from lewel_bench.harness.board.board import Board


NOWHERE = Dataset(name="", id="", root="")


@dataclass(frozen=True)
class Spent:
    """What a pre-training cost, as a table reads it."""

    metrics: Mapping[str, float]


def evaluations(board: "Board", name: str, protocol: str) -> Iterator[Slot]:
    """The slots of an evaluation of a recipe: those of seed 0, and any other that was planned."""
    scaled, expected = board.scaled.protocol(protocol), _expected(board, name, protocol)
    for seed in board.seeds:
        for trial in range(plan.trials(scaled)):
            key = board.final_key(name, protocol, seed, trial)
            if board.is_done(key):
                result = board.store.records[key]
                before = board.store.records.get(str(result.spec.get("upstream")))
                yield Slot(
                    key,
                    seed,
                    "done",
                    trial=trial,
                    setting=scaled.describe().measured,
                    where=comparable.measured_on(result, before, expected.protocol_data),
                    incomparable=comparable.differences(result, before, expected),
                    caveats=tuple(filter(None, [collapse.note_among(result.warnings)])),
                )
            elif seed == 0 or key in board.states:
                yield _planned(board, board.jobs(name, [protocol], seed), key)


def _expected(board: "Board", name: str, protocol: str) -> Expected:
    """What the paper measured the cell of a recipe, or of an extra that stands for one, by."""
    asked = board.catalog.protocols[protocol]
    recipe = board.catalog.recipes.get(board.extras[name].recipe if name in board.extras else name)
    return Expected(
        recipe=identity(recipe) if recipe else None,
        recipe_data=recipe.data if recipe else "",
        protocol=plan.of_protocol(asked, NOWHERE)["protocol"],
        protocol_data=f"voc_{asked.runner}" if asked.data == "voc" else asked.data,
    )


def costs(board: "Board", row: Row, column: Column, name: str) -> Iterator[Slot]:
    """The slots of what a pre-training cost; of its overhead those that have a baseline."""
    recipe = board.catalog.recipes[name]
    published = None if recipe.own else identity(recipe)
    for seed in board.seeds:
        key = board.keys.pretraining(name, seed)
        if not board.is_done(key):
            if seed == 0 or key in board.states:
                yield _planned(board, board.jobs(name, [], seed), key)
            continue
        result = board.store.records[key]
        spent = board.spent.setdefault(key, Spent(cost.cost(result)))
        slot = Slot(
            key,
            seed,
            "done",
            setting=cost.machine(result),
            where=comparable.measured_on(result, result, recipe.data),
            incomparable=comparable.cost_differences(result, published, recipe.data)
            if published
            else (),
        )
        if column.metric == table.OVERHEAD:
            slot = _beside_baseline(board, row, column, slot)
        elif column.metric not in spent.metrics:
            slot = replace(slot, state="missing", reason=f"its record has no {column.metric}")
        yield slot


def _beside_baseline(board: "Board", row: Row, column: Column, slot: Slot) -> Slot:
    """`slot` with its overhead over the same seed of the row's baseline, or what is missing."""
    name = cells.baseline_name(row, column)
    assert name is not None
    if why := board.refusals.get(name):
        return replace(slot, state="missing", reason=cannot(f"{name}, the baseline,", why))
    key = board.keys.pretraining(name, slot.seed)
    if not board.is_done(key):
        other = _planned(board, board.jobs(name, [], slot.seed), key)
        reason = f"{name}, the baseline: {other.reason}".rstrip(": ")
        needs = (f"pretrain {key} {other.state} ({name})",)
        return replace(other, key=slot.key, reason=reason, needs=needs)
    own, theirs = board.store.records[slot.key], board.store.records[key]
    overhead = cost.overhead(own, theirs)
    if not overhead:
        machines = f"measured on {cost.machine(own)} and on {cost.machine(theirs)}"
        return replace(slot, state="missing", reason=f"not comparable with {name}: {machines}")
    board.spent[slot.key] = Spent({**board.spent[slot.key].metrics, **overhead})
    return replace(slot, baseline=key)


def _planned(board: "Board", jobs: list[plan.Job], key: str) -> Slot:
    """The slot of the job `key` among those that a cell needs, which has no record."""
    expected = next(job for job in jobs if job.key == key)
    protocol = expected.protocol.name if expected.protocol else ""
    names = (expected.kind, expected.recipe_name, protocol, expected.suite, expected.seed)
    state = _state(board, key)
    if state.state == "missing" and (stale := board.stale.get(names)):
        state = replace(stale, reason=f"record {stale.key} is stale: {stale.reason}")
    needs = [(j, _state(board, j.key)) for j in jobs if j.kind != "final" and j.key != key]
    waiting = [(job, need) for job, need in needs if need.state != "done"]
    reason = state.reason
    for job, need in waiting:
        # what a missing cell waits for says more than that it is missing
        if state.state == "missing" and need.state in ("failed", "running", "queued"):
            state, reason = need, f"{job.name}: {need.reason}".rstrip(": ")
            break
    return Slot(
        key=key,
        seed=expected.seed,
        trial=expected.trial,
        state=state.state,  # type: ignore[arg-type]
        reason=reason if state.state != "done" else "",
        command=board.command(expected),
        needs=tuple(f"{job.kind} {job.key} {s.state} ({job.name})" for job, s in waiting),
    )


def _state(board: "Board", key: str) -> JobState:
    return board.states.get(key) or JobState(key, "", "", 0, "", "missing")


def identity(recipe: Recipe) -> dict[str, Any]:
    """All that determines a recipe's result but its data, with lists as records have them."""
    what = plan.of_recipe(recipe, NOWHERE)
    plain: dict[str, Any] = json.loads(json.dumps(what["recipe"]))
    return plain


def cannot(what: str, why: str) -> str:
    """Why a row is not shown with some settings."""
    return f"{what} cannot have the settings: {why}"
