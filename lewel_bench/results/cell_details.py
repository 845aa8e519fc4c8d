"""What stands behind a report's numbers, as the data that its script shows on a click."""

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from lewel_bench.results.curves import is_number
from lewel_bench.results.fill import Entry, FilledTable
from lewel_bench.results.measured_cost import cost, devices
from lewel_bench.results.record import Record
from lewel_bench.results.table import ORIGINS


def behind(
    tables: Sequence[FilledTable],
    records: Mapping[str, Record],
    logs: frozenset[str],
    root: str,
    options: str,
) -> dict[str, Any]:
    """Cells by their name for `explain`, and records by their key; the arguments are those of
    `report.Report`."""
    cells = {
        filled.cell(entry): _cell(filled, entry)
        for filled in tables
        for entry in filled.entries.values()
        if entry.state is not None
    }
    shown = {key: _record(record, key in logs) for key, record in records.items()}
    return {"root": root, "options": options, "cells": cells, "records": shown}


def _cell(filled: FilledTable, entry: Entry) -> dict[str, Any]:
    row, column = filled.table.row(entry.row), filled.table.column(entry.column)
    digits, unit = column.digits, column.unit
    published = mean = None
    if entry.published is not None:
        published = f"{entry.published:.{digits}f} {unit}; {ORIGINS[entry.origin]}"
        published += f". {entry.note}" if entry.note else ""
    if entry.mean is not None:
        std = "" if entry.std is None else f" ± {entry.std:.{digits + 1}f}"
        mean = f"{entry.mean:.{digits + 1}f}{std} {unit}; {entry.n} of {entry.wanted} seeds"
    label = f"{row.label}, {row.epochs} epochs" if row.epochs else row.label
    commands = dict.fromkeys(slot.command for slot in entry.slots if slot.command)
    details = {
        "title": f"{label}: {column.label} (Table {filled.table.id})",
        "published": published,
        "measured": mean,
        "difference": None if entry.delta is None else f"{entry.delta:+.{digits + 1}f} {unit}",
        "verdict": entry.verdict,
        "setting": entry.setting,
        "where": "; ".join(entry.where),
        "caveats": list(entry.caveats),
        "incomparable": list(entry.incomparable),
        "reasons": list(entry.reasons),
        "elsewhere": list(entry.elsewhere),
        "commands": list(commands),
        "metric": column.metric,
        "runs": [
            [s.key, s.seed, s.trial, *([s.baseline] if s.baseline else [])]
            for s in entry.slots
            if s.state == "done"
        ],
    }
    return {name: value for name, value in details.items() if value or name == "runs"}


def _record(record: Record, log: bool) -> dict[str, Any]:
    outcome = record.outcome
    images = [
        f"{role}: {d.images:,} of {d.name} (fingerprint {d.fingerprint[:12]})"
        for role, d in record.data.items()
    ]
    details = {
        "metrics": _rounded(record.metrics),
        "cost": _rounded(cost(record)) if record.kind == "pretrain" else {},
        "chosen": _rounded(outcome.get("chosen")),
        "paper_rule": _rounded(outcome.get("paper_rule")),
        "gap": _rounded(outcome.get("selection_gap")),
        "warnings": list(record.warnings),
        "data": images,
        "checkpoint": record.checkpoint
        and f"{record.checkpoint.file}, sha256 {record.checkpoint.sha256}",
        "upstream": list(record.upstream),
        "machine": devices(record),
        "seconds": record.seconds,
        "finished": f"{record.finished.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": record.commit + (" with uncommitted changes" if record.dirty else ""),
        "command": record.command,
        "log": log,
    }
    return {
        name: value for name, value in details.items() if value or name in ("metrics", "seconds")
    }


def _rounded(named: Any) -> dict[str, float]:
    """The numbers of a mapping out of a record, whose outcome is free JSON."""
    if not isinstance(named, Mapping):
        return {}
    return {k: float(f"{v:.6g}") for k, v in named.items() if is_number(v)}
