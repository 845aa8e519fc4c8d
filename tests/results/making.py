"""Records and tables for the tests of this folder."""

from datetime import UTC, datetime
from typing import Any

from lewel_bench.results.record import Checkpoint, Data, Record, key
from lewel_bench.results.table import Table

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def quoted_only(table: Table, id: str) -> Table:
    """`table` where nothing can fill the row `id`."""
    rows = [r.model_copy(update={"recipe": None}) if r.id == id else r for r in table.rows]
    return table.model_copy(update={"rows": tuple(rows)})


def record(seed: int = 0, **changes: Any) -> Record:
    """A record of realistic size; `changes` replace its fields."""
    spec = {
        "kind": "final",
        "recipe": {"method": "lewel_m", "args": {"h": 4}, "epochs": 200, "optimizer": {"lr": 0.06}},
        "protocol": {"runner": "linear", "lrs": [0.32, 1.6, 3.2], "epochs": 90, "batch": 4096},
        "seed": seed,
    }
    head = {"lr": 1.6, "top1": 50.25, "top5": 80.5, "select_top1": 49.75, "diverged_at": None}
    splits = ("train", "select", "report")
    fields: dict[str, Any] = {
        "key": key(spec),
        "kind": "final",
        "name": "lewel_m_200ep linear_lars",
        "spec": spec,
        "seed": seed,
        "upstream": ("0123456789ab",),
        "metrics": {"top1": 50.25 + seed / 8, "top5": 80.5},
        "outcome": {"grid": [head] * 12, "selection_gap": {"top1": 0.25}},
        "warnings": ("the best lr 1.6 is the largest of the grid",),
        "data": {r: Data(name="imagenet", fingerprint="abc123def456", images=9) for r in splits},
        "commit": "c" * 40,
        "dirty": False,
        "version": "0.1.0",
        "environment": {f"package{i}": "1.2.3+cpu" for i in range(12)},
        "command": "lewel-bench run --table 1",
        "started": START,
        "finished": START,
        "seconds": 1.5,
        "checkpoint": Checkpoint(file="heads.safetensors", sha256="0" * 64),
    }
    return Record(**fields | changes)
