"""All records under one run root, read at once; the files that are not whole are kept by name."""

import gc
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lewel_bench.results import curves
from lewel_bench.results.record import NAME, BadRecord, Record, read
from lewel_bench.value import unknown

if TYPE_CHECKING:
    from pandas import DataFrame

MERGED = ".merged"  # <digest of a bundle>/<key>: records whose number is another than ours


COLUMNS = {  # of the records as a DataFrame, with their types
    **dict.fromkeys(("key", "kind", "name"), "str"),
    "seed": "int64",
    **{"method": "str", "epochs": "Int64", "protocol": "str", "upstream": "str"},
    **{"seconds": "float64", "processes": "int64", "peak_memory": "float64"},
    **{"started": "float64", "finished": "float64", "commit": "str", "dirty": "bool"},
    **dict.fromkeys(("version", "command", "warnings"), "str"),
}


class ConflictingRecord(NamedTuple):
    """A record of a merged bundle with another number than ours of its key. `bundle` is the
    beginning of the bundle's digest."""

    bundle: str
    record: Record


class Store:
    """What `root/<key>/record.json` held when this was made. A root that does not exist is empty.

    `records` maps key to record. `bad` holds a BadRecord for every record file that cannot be
    used, sorted by path; nothing is skipped. Folders without a record (running jobs) are no error.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        with _without_garbage_collection():
            records, self.bad = _scan(self.root)
        self.records: Mapping[str, Record] = records

    def frame(self) -> "DataFrame":
        """The records, a row a record by `key`, then a column for each metric that some have (NaN:
        this has none), as the tables have them: percent but for losses and costs.

        `kind` is pretrain, import, search or final; `name` what it is called, `seed` its seed.
        `method` and `epochs` are of the recipe that it trains, or that trained the backbone of
        `upstream` (missing: imported, or not here); `protocol` names an evaluation. `seconds` are
        those of all attempts, on `processes` devices; `peak_memory` is in bytes of one (NaN: not
        measured). `started` and `finished` are UTC, `warnings` joined by "; ".
        """
        from pandas import DataFrame, to_datetime

        records = self.records.values()
        fixed = DataFrame(map(self._row, records), columns=list(COLUMNS)).astype(COLUMNS)
        for name in ("started", "finished"):
            fixed[name] = to_datetime(fixed[name], unit="s", utc=True)
        metrics = DataFrame([record.metrics for record in records], index=fixed.index, dtype=float)
        renamed = metrics.rename(columns=lambda name: f"{name}_" if name in COLUMNS else name)
        return fixed.join(renamed).set_index("key")

    def _row(self, record: Record) -> tuple[Any, ...]:
        upstream = record.spec.get("upstream")
        trained = self.records.get(str(upstream), record).spec.get("recipe")
        recipe = trained if isinstance(trained, dict) else {}
        protocol = record.name.split(" of ")[0] if record.kind in ("search", "final") else None
        return (
            *(record.key, record.kind, record.name, record.seed),
            *(recipe.get("method"), recipe.get("epochs"), protocol, upstream),
            *(record.seconds, record.processes, record.peak_memory),
            *(record.started.timestamp(), record.finished.timestamp()),
            *(record.commit, record.dirty, record.version),
            *(record.command, "; ".join(record.warnings)),
        )

    def curves(self, key: str) -> "DataFrame":
        """What the log of a job says over time, as `curves.frame`. Raises ValueError where the root
        has no folder of this key."""
        if key not in (folders := _folders(self.root)):
            raise ValueError(unknown("key", key, folders))
        return curves.frame(self.root / key / curves.EVENTS)

    @cached_property
    def others(self) -> Mapping[str, tuple[ConflictingRecord, ...]]:
        """The records of merged bundles that have another number than ours of the same key."""
        conflicting: dict[str, list[ConflictingRecord]] = {}
        for bundle, (records, _) in self._merged.items():
            for key in sorted(records.keys() & self.records.keys()):
                conflicting.setdefault(key, []).append(ConflictingRecord(bundle, records[key]))
        return {key: tuple(others) for key, others in conflicting.items()}

    @property
    def bad_others(self) -> tuple[BadRecord, ...]:
        """A BadRecord for every record of a merged bundle that cannot be used."""
        return tuple(record for _, bad in self._merged.values() for record in bad)

    @property
    def kept_apart(self) -> int:
        """How many records of merged bundles stand in no table of ours."""
        return sum(len(records) for records, _ in self._merged.values())

    @cached_property
    def _merged(self) -> dict[str, tuple[dict[str, Record], tuple[BadRecord, ...]]]:
        folder = self.root / MERGED
        return {bundle: _scan(folder / bundle) for bundle in _folders(folder)}


def _scan(root: Path) -> tuple[dict[str, Record], tuple[BadRecord, ...]]:
    records: dict[str, Record] = {}
    bad: list[BadRecord] = []
    for folder in _folders(root):
        path = f"{root}/{folder}/{NAME}"  # a Path would take a tenth of the time
        # lexists, not exists: a dangling link is a lost record, and must be named.
        if not os.path.lexists(path):
            continue
        try:
            record = read(path)
            if record.key != folder:
                raise BadRecord(path, f"its key is {record.key}, but its folder is {folder}")
            records[record.key] = record
        except BadRecord as error:
            bad.append(error)
    return records, tuple(bad)


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    # Reading makes a million objects and no cycle; the collector, which looks at them again and
    # again, takes as long as the reading (5,000 records: 0.45 s without it, 0.9 s with).
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def conflict_messages(store: Store, keys: Container[str] | None = None) -> list[str]:
    """For each record (of `keys`, if given) that a merged bundle has with another result: the two
    values of each metric that differs."""
    return [
        f"{key} ({store.records[key].name}) has another number in the merged bundle {bundle}: "
        + ", ".join(_differing_metrics(store.records[key].metrics, other.metrics))
        for key, conflicting in store.others.items()
        for bundle, other in conflicting
        if keys is None or key in keys
    ]


def differing_elsewhere(
    metric: str, values: Mapping[str, float], others: Mapping[str, Sequence[ConflictingRecord]]
) -> tuple[str, ...]:
    """What each merged bundle has for a metric of the records with these `values`, by key, where it
    is another number."""
    numbers: dict[str, list[str]] = {}
    for key, value in values.items():
        for bundle, other in others.get(key, ()):
            theirs = other.metrics.get(metric, value)
            if theirs != value:
                numbers.setdefault(bundle, []).append(f"{theirs:g} there, {value:g} here ({key})")
    return tuple(
        f"the merged bundle {bundle} has a different {metric}: {'; '.join(texts)}"
        for bundle, texts in numbers.items()
    )


def _differing_metrics(local: Mapping[str, float], merged: Mapping[str, float]) -> Iterator[str]:
    for name in {**merged, **local}:
        if local.get(name) != merged.get(name):
            values = (f"{m[name]:g}" if name in m else "none" for m in (merged, local))
            yield "{} {} there, {} here".format(name, *values)
