"""From a cell of a table to what it rests on."""

from collections.abc import Mapping
from typing import Any

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.rundir import EVENTS, METHOD
from lewel_bench.results import measured_cost as cost
from lewel_bench.results import table
from lewel_bench.results.fill import Slot
from lewel_bench.results.record import Record
from lewel_bench.results.store import MERGED
from lewel_bench.value import printable

CONFIGS = ("config.yaml", "config.py")  # what detectron2 and mmseg were given


def explained(board: Board, cell: str) -> dict[str, Any]:
    """From a cell to what it rests on: for each seed spec, commit, data, checkpoint, log, command.

    Raises ValueError naming an unknown table, row or column, or a cell that nothing can fill.
    """
    quoted, row, column = board.cell(cell)
    known = (table.PRETRAIN, *row.protocols)
    if board.recipe_name(row, column) is None or column.eval not in known:
        raise ValueError(
            f"{cell} is blank in the paper, and no run fills {row.label} at {column.label}"
        )
    if column.metric == table.OVERHEAD and row.baseline is None:
        raise ValueError(f"{cell}: {row.label} is a baseline, its overhead is not measured")
    if why := board.other_length(str(board.recipe_name(row, column)), column):
        raise ValueError(f"{cell}: {why}")
    entry = board.filled(quoted.id).entries.get((row.id, column.id))
    slots = board.slots(row, column)
    return {
        "cell": cell,
        "row": row.label,
        "column": column.label,
        "published": row.values.get(column.id),
        "origin": table.ORIGINS[row.origin_of(column.id)],
        "mean": entry.mean if entry else None,
        "n": entry.n if entry else 0,
        "verdict": entry.verdict if entry else "missing",
        "incomparable": list(entry.incomparable) if entry else [],
        "caveats": list(entry.caveats) if entry else [],
        "setting": entry.setting if entry else "",
        "where": list(entry.where) if entry else [],
        "seeds": [_seed(board, slot, column.metric) for slot in slots],
    }


def show(value: Any, depth: int = 0) -> None:
    """Print it for a person, indented by what it is part of."""
    pad = "  " * depth
    if isinstance(value, dict):
        for name, element in value.items():
            if isinstance(element, dict | list) and element:
                print(f"{pad}{printable(name)}:")
                show(element, depth + 1)
            else:
                text = "–" if element in (None, "", [], {}) else printable(element)
                print(f"{pad}{printable(name)}: {text}")
    else:
        for element in value:
            if isinstance(element, dict):
                show(element, depth)
                print()
            else:
                print(f"{pad}{printable(element)}")


def _seed(board: Board, slot: Slot, metric: str) -> dict[str, Any]:
    details: dict[str, Any] = {
        "seed": slot.seed,
        "trial": slot.trial,
        "key": slot.key,
        "state": slot.state,
        "reason": slot.reason,
        "folder": str(board.root / slot.key),
        "command": slot.command,
        "needs": list(slot.needs),
    }
    result = board.store.records.get(slot.key)
    if result is None:
        return details
    return {
        **details,
        "value": board.measured[slot.key].metrics.get(metric),
        **_record(board, slot.key, result),
        **({"baseline": _link(board, slot.baseline)} if slot.baseline else {}),
        "upstream": [_link(board, key) for key in dict.fromkeys(result.upstream)],
    }


def _link(board: Board, key: str) -> Mapping[str, Any]:
    """What a record rests on: another one, without what it lacks."""
    result = board.store.records.get(key)
    if result is None:
        return {"key": key, "state": "missing"}
    details = {**_record(board, key, result), "upstream": list(result.upstream)}
    return {name: value for name, value in details.items() if value not in (None, [], {})}


def _record(board: Board, key: str, result: Record) -> dict[str, Any]:
    folder, outcome, left = board.root / key, result.outcome, result.checkpoint
    pretrained = result.kind == "pretrain"
    return {
        "key": key,
        "kind": result.kind,
        "name": result.name,
        "metrics": dict(result.metrics),
        **({"cost": cost.cost(result), "measured_on": cost.machine(result)} if pretrained else {}),
        "elsewhere": [  # what merged bundles have for the key with another number
            {
                "bundle": bundle,
                "metrics": dict(other.metrics),
                **_made(other),
                "folder": str(board.root / MERGED / bundle / key),
            }
            for bundle, other in board.store.others.get(key, ())
        ],
        **{name: outcome.get(name, {}) for name in ("chosen", "paper_rule", "selection_gap")},
        **({"sanity_check": outcome.get("sanity_check")} if result.kind == "import" else {}),
        "warnings": list(result.warnings),
        **_made(result),
        "seconds": result.seconds,
        "data": {role: part.model_dump() for role, part in result.data.items()},
        "checkpoint": left and {"file": str((folder / left.file).resolve()), "sha256": left.sha256},
        "log": str(folder / EVENTS),
        "config": next((str(f) for f in map(folder.joinpath, CONFIGS) if f.exists()), None),
        "spec": result.spec,
        **({"method": str(method)} if (method := folder / METHOD).exists() else {}),
    }


def _made(result: Record) -> dict[str, str]:
    """By which code and command a record was made, and when."""
    return {
        "commit": result.commit + (" with uncommitted changes" if result.dirty else ""),
        "ran": result.command,
        "finished": result.finished.isoformat(),
    }
