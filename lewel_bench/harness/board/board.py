"""A table of the paper with what is on disk: which records fill which cell, and what is missing."""

import json
from collections import ChainMap
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.protocol import Protocol
from lewel_bench.harness.board import extra_rows as extras
from lewel_bench.harness.plan import cells, plan
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog, ScaledCatalog
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.harness.request import (
    Command,
    Compute,
    Evals,
    Import,
    Rows,
    Selection,
    Where,
)
from lewel_bench.harness.status import JobState, survey
from lewel_bench.harness.wings import is_installed
from lewel_bench.pretrain import collapse
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.results import comparable, fill, record, table
from lewel_bench.results import measured_cost as cost
from lewel_bench.results.comparable import Expected
from lewel_bench.results.fill import FilledTable, Measured, Slot
from lewel_bench.results.store import Store
from lewel_bench.results.table import Column, Row

if TYPE_CHECKING:
    from lewel_bench.results.claims import claim


@dataclass(frozen=True)
class Spent:
    """What a pre-training cost, as a table reads it."""

    metrics: Mapping[str, float]


class Board:
    """The records under a root as the tables of one suite see them."""

    def __init__(
        self,
        root: Path,
        suite: Suite,
        datasets: Datasets,
        settings: Sequence[tuple[str, Any]] = (),
        extra_names: Sequence[str] = (),
        catalog: Catalog = PACKAGED,
    ) -> None:
        self.root, self.suite, self.datasets, self.settings = root, suite, datasets, settings
        self.catalog, self.scaled = catalog, ScaledCatalog(catalog, suite, settings)
        self.store = Store(root)
        self.states = survey(root, self.store, catalog=catalog)
        # rows beside the paper's, by name
        chosen = extras.find(self.store, extra_names, catalog)
        self.extras = {
            extra.name: extras.standing(self.store, suite, extra, catalog) for extra in chosen
        }
        # a cell shows every seed that was ever planned, and asks for seed 0 at least
        self.seeds = sorted({0, *(state.seed for state in self.states.values())})
        self.recipes: dict[str, Callable[[int], str]] = {}  # the key of a pre-training, by seed
        self.refusals: dict[str, str] = {}  # by recipe, why it cannot have the settings
        self.protocols: dict[tuple[str, int], dict[str, Any]] = {}
        self.pretrain_keys: dict[tuple[str, int], str] = {}
        self.final_keys: dict[tuple[str, str, int, int], str] = {}
        self.firsts: dict[tuple[str, int], Job] = {}  # pre-trainings, by recipe and seed
        self._stale_states: dict[tuple[str, str, str, str, int], JobState] | None = None
        self.finals: dict[tuple[str, str], list[Slot]] = {}  # by recipe and protocol
        self.spent: dict[str, Spent] = {}  # by the key of a pre-training
        # what a table reads: of a pre-training its cost, else the record
        self.measured: Mapping[str, Measured] = ChainMap(
            self.spent,  # type: ignore[arg-type]
            self.store.records,  # type: ignore[arg-type]
        )

    def filled(self, table_id: str) -> FilledTable:
        """Table `table_id` with its measured values, as `fill`."""
        return self.fill(self.quoted(table_id))

    def quoted(self, table_id: str) -> table.Table:
        """Table `table_id` as the paper has it, with the rows that are to stand beside."""

        def evaluated(extra: extras.Extra, protocol: str) -> bool:
            return any(
                self.final_key(extra.name, protocol, seed) in self.states for seed in self.seeds
            )

        return extras.extended(table.load(table_id), list(self.extras.values()), evaluated)

    def cell(self, text: str) -> tuple[table.Table, Row, Column]:
        """A cell such as "table1:lewel_m:200:top1". Raises ValueError for what there is not."""
        try:
            table_id, row_id, column_id = table.parse_cell(text, self.quoted)
        except ValueError as error:
            known = extras.all_extras(self.store, self.catalog)
            if added := [n for n in text.split(":") if n in known and n not in self.extras]:
                raise ValueError(f"{error}. Add --with {added[0]} for that row") from None
            raise
        quoted = self.quoted(table_id)
        return quoted, quoted.row(row_id), quoted.column(column_id)

    def recipe_name(self, row: Row, column: Column) -> str | None:
        """The recipe that fills a cell, or the extra whose row it is; None where nothing can."""
        family = row.family(column)
        return family if family in self.extras else cells.recipe_name(row, column)

    def fill(self, quoted: table.Table) -> FilledTable:
        """A table with its measured values; with settings, those of the rows that can have them.
        Raises ValueError for settings that no recipe can have."""
        slots: dict[tuple[str, str], list[Slot]] = {}
        refused: dict[tuple[str, str], str] = {}
        for row, column in quoted.cells():
            if name := self.recipe_name(row, column):
                if why := self._refused(name):
                    refused[row.id, column.id] = _cannot(row.family(column) or name, why)
                elif why := self.other_length(name, column):
                    refused[row.id, column.id] = why
                else:
                    slots[row.id, column.id] = self.slots(row, column)
        suite, engines = self.suite, self._engines(quoted)
        if remark := suite.remarks.get(quoted.id):
            quoted = quoted.model_copy(update={"remarks": (remark, *quoted.remarks)})
        evaluated = (
            slot
            for (_, column), group in slots.items()
            if quoted.column(column).eval != table.PRETRAIN
            for slot in group
            if slot.where
        )
        filled = fill.fill(
            quoted,
            slots,
            self.measured,
            suite.name,
            suite.comparable or any(not slot.incomparable for slot in evaluated),
            engines,
            refused,
            self.store.others,
        )
        remarks = (*quoted.remarks, *self._comparisons(filled))
        return replace(filled, table=quoted.model_copy(update={"remarks": remarks}))

    def _comparisons(self, filled: FilledTable) -> list[str]:
        """In what else the methods differ that the paper compares in a table, where both are
        measured."""
        remarks: dict[str, None] = {}
        if not is_installed("results.claims"):
            return []
        from lewel_bench.results.claims import claim

        tested = (c for c in claim.load() if c.table == filled.table.id)
        for c in (comparison for claim_ in tested for comparison in claim_.comparisons()):
            if c.over and c.is_measured(filled) and (text := self.besides(c)):
                remarks[f"{c.of.label} and {c.over.label}: {text}."] = None
        return list(remarks)

    def besides(self, compared: "claim.Comparison") -> str:
        """In what two rows differ besides the method in a column, as this suite scales them."""
        assert compared.over is not None
        rows = (compared.of, compared.over)
        names = [self.recipe_name(row, compared.column) for row in rows]
        known = self.catalog.recipes
        recipes = [known[name] for name in names if name and name in known]
        if len(recipes) < 2:
            return ""
        scaled = [self.scaled.recipe(recipe.name) for recipe in recipes]
        of, over, *paper = (_identity(identity) for identity in (*scaled, *recipes))
        return comparable.besides_method(of, over, tuple(paper))

    def other_length(self, name: str, column: Column) -> str:
        """Why a recipe is not of its column's length: --set may change its epochs. Empty where it
        is, and for what does not depend on it, as the seconds of an epoch."""
        if column.eval == table.PRETRAIN or self._is_imported(name):
            return ""
        asked = dict(self.settings).get("epochs")
        usual = self.suite.recipe(self.catalog.recipes[name]).epochs
        if asked in (None, usual):
            return ""
        return f"--set epochs={asked}: {name} has {usual} epochs in suite {self.suite.name}"

    def _engines(self, quoted: table.Table) -> dict[str, str]:
        names = dict.fromkeys(
            row.protocols[column.eval]
            for row, column in quoted.cells()
            if column.eval in row.protocols
        )
        scaled = {name: self._protocol(name) for name in names}
        engines = {name: protocol.engine_name() for name, protocol in scaled.items()}
        return {name: engine for name, engine in engines.items() if engine}

    def _refused(self, recipe: str) -> str:
        """Why a recipe cannot have the settings: another method may lack what they name. Empty
        where it can; raises ValueError where no recipe can."""
        if self._is_imported(recipe):
            odd = self.scaled.settings_of_recipes()
            return (
                f"{', '.join(odd)} changes a pre-training, but this checkpoint was imported"
                if odd
                else ""
            )
        if recipe not in self.refusals:
            self.refusals[recipe] = self._refusal(recipe)
        if all(self.refusals.values()):
            self.refusals |= {name: self._refusal(name) for name in self.catalog.recipes}
            if all(self.refusals.values()):
                # a value that a method cannot have says more than a name that others lack
                raise ValueError(min(self.refusals.values(), key=lambda s: s.startswith("unknown")))
        return self.refusals[recipe]

    def _refusal(self, recipe: str) -> str:
        try:
            self._recipe(recipe)
        except ValueError as error:
            if not self.settings:
                raise
            return str(error)
        return ""

    def slots(self, row: Row, column: Column) -> list[Slot]:
        """One slot a seed and trial: those of seed 0, and any other whose cell was planned."""
        name = self.recipe_name(row, column)
        assert name is not None
        if column.eval == table.PRETRAIN:
            return self._costs(row, column, name)
        protocol = row.protocols[column.eval]
        if (name, protocol) not in self.finals:
            self.finals[name, protocol] = self._finals(name, protocol)
        return self.finals[name, protocol]

    def _finals(self, name: str, protocol: str) -> list[Slot]:
        slots = []
        how = self._protocol(protocol).describe().measured
        expected = self._expected(name, protocol)
        for seed in self.seeds:
            for trial in range(self._trials(protocol)):
                key = self.final_key(name, protocol, seed, trial)
                if self._done(key):
                    slots.append(self._measured(key, seed, trial, how, expected))
                elif seed == 0 or key in self.states:
                    slots.append(self._slot(self.jobs(name, [protocol], seed), seed, key))
        return slots

    def _measured(self, key: str, seed: int, trial: int, how: str, expected: Expected) -> Slot:
        """The slot of a finished evaluation, with what sets it apart from the paper's."""
        result = self.store.records[key]
        before = self.store.records.get(str(result.spec.get("upstream")))
        return Slot(
            key,
            seed,
            "done",
            trial=trial,
            setting=how,
            where=comparable.measured_on(result, before, expected.protocol_data),
            incomparable=comparable.differences(result, before, expected),
            caveats=tuple(filter(None, [collapse.note_among(result.warnings)])),
        )

    def _expected(self, name: str, protocol: str) -> Expected:
        """What the paper measured the cell of a recipe, or of an extra that stands for one, by."""
        asked = self.catalog.protocols[protocol]
        nowhere = Dataset(name="", id="", root="")
        recipe = self.catalog.recipes.get(self.extras[name].recipe if name in self.extras else name)
        return Expected(
            recipe=_identity(recipe) if recipe else None,
            recipe_data=recipe.data if recipe else "",
            protocol=plan.of_protocol(asked, nowhere)["protocol"],
            protocol_data=f"voc_{asked.runner}" if asked.data == "voc" else asked.data,
        )

    def _costs(self, row: Row, column: Column, name: str) -> list[Slot]:
        """The slots of what a pre-training cost; of its overhead those that have a baseline."""
        slots = []
        recipe = self.catalog.recipes[name]
        published = None if recipe.own else _identity(recipe)
        for seed in self.seeds:
            slot = self._pretrained(name, seed, published)
            if slot is None:
                continue
            if slot.state == "done" and column.metric == table.OVERHEAD:
                slot = self._beside_baseline(row, column, slot)
            elif slot.state == "done" and column.metric not in self.spent[slot.key].metrics:
                slot = replace(slot, state="missing", reason=f"its record has no {column.metric}")
            slots.append(slot)
        return slots

    def _pretrained(self, name: str, seed: int, published: Mapping[str, Any] | None) -> Slot | None:
        key = self._pretrain_key(name, seed)
        if self._done(key):
            result = self.store.records[key]
            if key not in self.spent:
                self.spent[key] = Spent(cost.cost(result))
            data = self.catalog.recipes[name].data
            return Slot(
                key,
                seed,
                "done",
                setting=cost.machine(result),
                where=comparable.measured_on(result, result, data),
                incomparable=()
                if published is None
                else comparable.cost_differences(result, published, data),
            )
        if seed and key not in self.states:
            return None
        return self._slot([self._first(name, seed)], seed, key)

    def _beside_baseline(self, row: Row, column: Column, slot: Slot) -> Slot:
        """`slot` with its overhead over the same seed of the row's baseline, or what is missing."""
        name = cells.baseline_name(row, column)
        assert name is not None
        if why := self._refused(name):
            return replace(slot, state="missing", reason=_cannot(f"{name}, the baseline,", why))
        key = self._pretrain_key(name, slot.seed)
        if not self._done(key):
            other = self._slot([self._first(name, slot.seed)], slot.seed, key)
            reason = f"{name}, the baseline: {other.reason}".rstrip(": ")
            needs = (f"pretrain {key} {other.state} ({name})",)
            return replace(other, key=slot.key, reason=reason, needs=needs)
        own, theirs = self.store.records[slot.key], self.store.records[key]
        overhead = cost.overhead(own, theirs)
        if not overhead:
            return replace(
                slot,
                state="missing",
                reason=f"not comparable with {name}: measured on {cost.machine(own)} "
                f"and on {cost.machine(theirs)}",
            )
        self.spent[slot.key] = Spent({**self.spent[slot.key].metrics, **overhead})
        return replace(slot, baseline=key)

    def _done(self, key: str) -> bool:
        return key in self.store.records and self._state(key).state == "done"

    def _trials(self, protocol: str) -> int:
        return plan.trials(self._protocol(protocol))

    def _protocol(self, name: str) -> Protocol:
        return self.scaled.protocol(name)

    def final_key(self, recipe: str, protocol: str, seed: int, trial: int = 0) -> str:
        """The key of the job that fills a cell; empty where its pre-training was never planned.

        As `plan.chain` has it, without making the jobs: a table asks for thousands.
        """
        upstream = self._pretrain_key(recipe, seed)
        if seed and upstream not in self.states:
            return ""
        known = (recipe, protocol, seed, trial)
        if known not in self.final_keys:
            if (protocol, trial) not in self.protocols:
                scaled = self._protocol(protocol)
                data = self.datasets(scaled.data, scaled.runner)
                self.protocols[protocol, trial] = plan.of_protocol(scaled, data, trial=trial)
            own = self.protocols[protocol, trial]
            what = {"kind": "final", "seed": seed, "upstream": upstream, **own}
            self.final_keys[known] = record.key(what)
        return self.final_keys[known]

    def _is_imported(self, recipe: str) -> bool:
        return recipe in self.extras and bool(self.extras[recipe].key)

    def _pretrain_key(self, recipe: str, seed: int) -> str:
        if self._is_imported(recipe):
            return self.extras[recipe].key
        if (recipe, seed) not in self.pretrain_keys:
            self.pretrain_keys[recipe, seed] = self._recipe(recipe)(seed)
        return self.pretrain_keys[recipe, seed]

    def _recipe(self, name: str) -> Callable[[int], str]:
        if name not in self.recipes:
            scaled = self.scaled.recipe(name)
            what = plan.of_recipe(scaled, self.datasets(scaled.data, "pretrain"))
            self.recipes[name] = record.key_by_seed({"kind": "pretrain", **what})
        return self.recipes[name]

    def jobs(self, recipe: str, protocols: Sequence[str], seed: int) -> list[Job]:
        """The pre-training of a recipe, if it is one, and what evaluates it by some protocols."""
        first = [] if self._is_imported(recipe) else [self._first(recipe, seed)]
        upstream = plan.Upstream(self._pretrain_key(recipe, seed), recipe, seed)
        scaled = map(self._protocol, protocols)
        after = plan.evaluations(upstream, scaled, self.suite.name, self.datasets)
        return [*first, *after]

    def _first(self, recipe: str, seed: int) -> Job:
        if (recipe, seed) not in self.firsts:
            self.firsts[recipe, seed] = plan.pretraining(
                self.scaled.recipe(recipe), seed, self.suite.name, self.datasets
            )
        return self.firsts[recipe, seed]

    def _slot(self, jobs: list[Job], seed: int, key: str) -> Slot:
        expected = next(job for job in jobs if job.key == key)
        state = self._state(key)
        if state.state == "missing" and (stale := self._stale(expected)):
            state = replace(stale, reason=f"record {stale.key} is stale: {stale.reason}")
        before = (job for job in jobs if job.kind != "final" and job.key != key)
        needs = [(job, self._state(job.key)) for job in before]
        waiting = [(job, s) for job, s in needs if s.state != "done"]
        reason = state.reason
        for job, need in waiting:
            # what a missing cell waits for says more than that it is missing
            if state.state == "missing" and need.state in ("failed", "running", "queued"):
                state, reason = need, f"{job.name}: {need.reason}".rstrip(": ")
                break
        return Slot(
            key=key,
            seed=seed,
            trial=expected.trial,
            state=state.state,  # type: ignore[arg-type]
            reason=reason if state.state != "done" else "",
            command=self.command(expected, seed),
            needs=tuple(f"{job.kind} {job.key} {s.state} ({job.name})" for job, s in waiting),
        )

    def _state(self, key: str) -> JobState:
        return self.states.get(key) or JobState(key, "", "", 0, "", "missing")

    def _stale(self, job: Job) -> JobState | None:
        """The state of a stale record of the same job under its earlier key."""
        if self._stale_states is None:
            self._stale_states = {
                (s.kind, s.recipe, s.protocol, s.suite, s.seed): s
                for s in self.states.values()
                if s.state == "stale"
            }
        protocol = job.protocol.name if job.protocol else ""
        return self._stale_states.get((job.kind, job.recipe_name, protocol, job.suite, job.seed))

    def command(self, job: Job, seed: int) -> str:
        """The command that computes a job and what it needs."""
        return self.command_of([job.recipe_name], [job.protocol.name] if job.protocol else [], seed)

    def command_of(self, recipes: Sequence[str], protocols: Sequence[str], seed: int = 0) -> str:
        """The command that pre-trains recipes and evaluates them by protocols, or an extra."""
        names = tuple(recipes)
        seeds = (seed,) if seed else Evals().seeds
        evals = Evals(evals=tuple(protocols) or ("none",), seeds=seeds)
        compute = Compute(replace_corrupt=bool(self.store.bad))
        where = self._where(protocols)
        if self._is_imported(names[0]):
            return str(Command("eval", (Import(name=names[0]), evals, compute, where)))
        return str(Command("run", (Selection(method=names), evals, compute, where)))

    def options(self) -> tuple[Rows, Where]:
        """The options by which another command sees the same board."""
        return Rows(with_=tuple(self.extras)), self._where(self.catalog.protocols)

    def _where(self, protocols: Container[str]) -> Where:
        """Suite, root, data and settings (of these protocols and of recipes), as options."""
        known = self.catalog.protocols
        return Where(
            suite=self.suite.name,
            root=self.root,
            data=tuple(self.datasets.own.items()),
            set=tuple(
                (name, value)
                for name, value in self.settings
                if (first := name.split(".")[0]) not in known or first in protocols
            ),
        )


def _identity(recipe: Recipe) -> dict[str, Any]:
    """All that determines a recipe's result but its data, with lists as records have them."""
    identity = plan.of_recipe(recipe, Dataset(name="", id="", root=""))
    plain: dict[str, Any] = json.loads(json.dumps(identity["recipe"]))
    return plain


def _cannot(what: str, why: str) -> str:
    return f"{what} cannot have the settings: {why}"
