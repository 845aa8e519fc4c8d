"""The measured side of a table: every cell's records beside its published value."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, Protocol, get_args

from lewel_bench.results import noise
from lewel_bench.results.store import ConflictingRecord, differing_elsewhere
from lewel_bench.results.table import PRETRAIN, Column, Origin, Row, Table
from lewel_bench.results.verdict import Verdict, verdict
from lewel_bench.value import unknown

State = Literal["done", "running", "queued", "failed", "missing", "stale"]
Id = tuple[str, str]  # of a cell: row id, column id
# What a cell with several seeds says about those that are not done: the first that is true.
URGENCY: tuple[State, ...] = ("failed", "running", "queued", "stale", "missing", "done")


@dataclass(frozen=True)
class Slot:
    """One run of a cell: the key of its record and the state of its job. A seed has several where
    its backbone is fine-tuned in several trials. `needs` are the jobs that come first, as text
    ("pretrain 3f2a9c01b7de missing"); `command` fills the slot. `setting` says how it is measured
    (protocol, engine, selection rule; for a cost the machine): numbers of two settings are never
    averaged. `where` names data and network for a title. `incomparable` says why the number of a
    done run cannot be compared with the paper's, `caveats` what else a reader must know about it.
    `baseline` is the key of the run that an overhead is over."""

    key: str
    seed: int
    state: State
    reason: str = ""
    command: str = ""
    needs: tuple[str, ...] = ()
    trial: int = 0
    setting: str = ""
    where: str = ""
    incomparable: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    baseline: str = ""

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise ValueError(unknown("state", self.state, get_args(State)))


class Measured(Protocol):
    """What `fill` reads of a record."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The values by metric, in the unit of the record."""


@dataclass(frozen=True)
class Entry:
    """One filled cell, in the column's unit. `n` of `wanted` seeds are in the mean; a seed's value
    is the mean of its trials. `std` is the sample standard deviation over seeds (n - 1), None for
    fewer than two; `trial_std` is that of the trials about their seeds' means (None where no seed
    has two). `delta` is mean - published, None where `incomparable` says why the two have no common
    scale. `keys` are the records behind the mean, all measured in one `setting` and on the data and
    networks of `where`; seeds measured in another setting are no part of it, and `reasons` name
    them. `caveats` are what a reader must know about the number; `elsewhere` names the other
    numbers that merged bundles have for it. `best` and `best_published`: no other
    value of the column, in the same block of the table, is better.
    `state` is None where no run can fill the cell."""

    row: str
    column: str
    published: float | None
    origin: Origin
    mean: float | None
    std: float | None
    trial_std: float | None
    n: int
    wanted: int
    delta: float | None
    state: State | None
    verdict: Verdict
    keys: tuple[str, ...]
    note: str
    reasons: tuple[str, ...]
    slots: tuple[Slot, ...]
    setting: str = ""
    where: tuple[str, ...] = ()
    incomparable: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    best: bool = False
    best_published: bool = False


@dataclass(frozen=True)
class FilledTable:
    """A table with its entries by (row id, column id); blank cells of the paper have none.
    Without `comparable` no number in it can be held against the paper's, and the published values
    are for orientation only; with it, an entry may still be `incomparable`. `engines` are those of
    the protocols that have one."""

    table: Table
    suite: str
    comparable: bool
    entries: Mapping[tuple[str, str], Entry]
    engines: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> tuple[str, ...]:
        """On which data and networks the measured values were measured, in reading order."""
        return _distinct(entry.where for entry in self.entries.values())

    @property
    def as_published(self) -> bool:
        """Whether all that is measured can be held against the paper's values."""
        return self.comparable and not any(entry.incomparable for entry in self.entries.values())

    def cell(self, entry: Entry) -> str:
        """The name of a cell, as `explain` takes it."""
        return f"table{self.table.id}:{entry.row}:{entry.column}"

    def missing(self) -> dict[str, Entry]:
        """What lacks some or all of its seeds, by the names of cells, in reading order."""
        return {self.cell(e): e for e in self.entries.values() if e.state not in (None, "done")}

    def mixed(self, column: str) -> tuple[str, ...]:
        """The settings that the measured values of a column mix, in reading order; empty where all
        have the same."""
        entries = (entry for (_, name), entry in self.entries.items() if name == column)
        settings = _distinct([entry.setting] for entry in entries if entry.mean is not None)
        return settings if len(settings) > 1 else ()


def fill(
    table: Table,
    slots: Mapping[tuple[str, str], Sequence[Slot]],
    records: Mapping[str, Measured],
    suite: str,
    comparable: bool,
    engines: Mapping[str, str] | None = None,
    refused: Mapping[Id, str] | None = None,
    others: Mapping[str, Sequence[ConflictingRecord]] | None = None,
) -> FilledTable:
    """`table` with what `records` hold for its `slots`, which are by (row id, column id), as is why
    no run can fill those that are `refused`. `others` are what merged bundles have for keys.

    Every number comes from a record: a slot that is done without a record counts as missing, one
    whose record lacks the column's metric as failed, both with a reason. Raises ValueError for a
    slot of a row or column that the table does not have.
    """
    refused = refused or {}
    for row_id, column_id in (*slots, *refused):
        table.row(row_id)
        table.column(column_id)
    entries = {}
    for row, column in product(table.rows, table.columns):
        id = row.id, column.id
        if id in slots or id in refused or column.id in row.values:
            of = slots.get(id, ()), records, comparable, refused.get(id, "")
            # a time is another wherever it is measured
            conflicting = {} if column.eval == PRETRAIN else others or {}
            entries[id] = _entry(row, column, *of, conflicting)
    _mark_best(table, entries)
    return FilledTable(table, suite, comparable, entries, engines or {})


def _entry(
    row: Row,
    column: Column,
    slots: Sequence[Slot],
    records: Mapping[str, Measured],
    comparable: bool,
    refusal: str,
    others: Mapping[str, Sequence[ConflictingRecord]],
) -> Entry:
    # By key: the same run listed twice is one measurement.
    checked = {slot.key: _checked(slot, column, records) for slot in slots}
    setting, excluded = _settings(list(checked.values()))
    values = {
        key: records[key].metrics[column.metric]
        for key, slot in checked.items()
        if slot.state == "done" and slot.setting == setting
    }
    trials: dict[int, list[float]] = {}
    for key, value in values.items():
        trials.setdefault(checked[key].seed, []).append(value)
    seeds = [statistics.fmean(of_seed) for of_seed in trials.values()]
    used = [checked[key] for key in values]
    incomparable = _distinct(slot.incomparable for slot in used)
    same = comparable and column.comparable and not incomparable
    published = row.values.get(column.id)
    mean = statistics.fmean(seeds) if seeds else None
    states = {slot.state for slot in checked.values()}
    family = row.family(column)
    waits: State | None = "missing" if family and not refusal else None
    state = next((candidate for candidate in URGENCY if candidate in states), waits)
    reasons = [slot.reason for slot in checked.values() if slot.reason and slot.state != "done"]
    reasons += [*excluded, *([refusal] if refusal else [])]
    if waits and not slots:
        reasons = [f"no run of {family} is planned for this cell"]
    return Entry(
        row=row.id,
        column=column.id,
        published=published,
        origin=row.origin_of(column.id),
        mean=mean,
        std=statistics.stdev(seeds) if len(seeds) > 1 else None,
        trial_std=_within(list(trials.values())),
        n=len(seeds),
        wanted=len({slot.seed for slot in checked.values()}),
        delta=mean - published if mean is not None and published is not None and same else None,
        state=state,
        verdict=_verdict(seeds, published, column, state, same),
        keys=tuple(values),
        note=row.notes.get(column.id, ""),
        reasons=tuple(dict.fromkeys(reasons)),
        slots=tuple(checked.values()),
        setting=setting,
        where=_distinct([slot.where] for slot in used if slot.where),
        incomparable=incomparable,
        caveats=_distinct(slot.caveats for slot in used),
        elsewhere=differing_elsewhere(column.metric, values, others),
    )


def _distinct(texts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for group in texts for text in group))


def _settings(slots: Sequence[Slot]) -> tuple[str, list[str]]:
    """The setting that most of the done slots share (the first of equals), and what is said of
    those that have another."""
    done = [slot for slot in slots if slot.state == "done"]
    shares = Counter(slot.setting for slot in done)
    setting = max(shares, key=lambda name: shares[name], default="")
    return setting, [
        f"seed {slot.seed} is excluded from the mean: measured with {slot.setting}, not {setting}"
        for slot in done
        if slot.setting != setting
    ]


def _mark_best(table: Table, entries: dict[Id, Entry]) -> None:
    """Mark the best of each column and block, where there are two to choose from; values that are
    printed alike are equally good. Incomparable ones are left out where others are not."""
    for column, block in product(table.columns, dict.fromkeys(row.block for row in table.rows)):
        ids = ((row.id, column.id) for row in table.rows if row.block == block)
        here = {id: entries[id] for id in ids if id in entries}
        # what was measured on other data beats nothing that was measured as the paper's
        as_paper = {id for id, entry in here.items() if entry.n and not entry.incomparable}
        for id in _best({id: entry.published for id, entry in here.items()}, column):
            entries[id] = replace(entries[id], best_published=True)
        for id in _best({id: here[id].mean for id in as_paper or here}, column):
            entries[id] = replace(entries[id], best=True)


def _best(values: Mapping[Id, float | None], column: Column) -> list[Id]:
    known = {id: round(value, column.digits) for id, value in values.items() if value is not None}
    if len(known) < 2 or column.best == "none":
        return []
    top = max(known.values()) if column.best == "highest" else min(known.values())
    return [id for id, value in known.items() if value == top]


def _checked(slot: Slot, column: Column, records: Mapping[str, Measured]) -> Slot:
    if slot.state != "done":
        return slot
    if slot.key not in records:
        return replace(
            slot, state="missing", reason=f"{slot.key} is marked done, but has no record"
        )
    metrics = records[slot.key].metrics
    if column.metric not in metrics:
        has = ", ".join(sorted(metrics)) or "none"
        reason = f"record {slot.key} has no {column.metric} (it has: {has})"
        return replace(slot, state="failed", reason=reason)
    return slot


def _within(trials: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation of trials about the means of their seeds."""
    freedom = sum(len(of_seed) - 1 for of_seed in trials)
    squares = sum((v - statistics.fmean(of)) ** 2 for of in trials for v in of)
    return math.sqrt(squares / freedom) if freedom else None


def _verdict(
    values: list[float], published: float | None, column: Column, state: State | None, same: bool
) -> Verdict:
    if not values:
        # A cell with no value is never "done": _checked has seen to it.
        return "published only" if state is None or state == "done" else state
    if published is None:
        return "nothing published"
    if not same:
        return "not comparable"
    assert column.noise is not None, "checked when the table was loaded"
    return verdict(values, published, noise.find(column.noise).sd)
