"""A table of the paper with what is on disk: which records fill which cell, and what is missing."""

from collections import ChainMap
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench.harness.board import extra_rows as extras
from lewel_bench.harness.board import slots
from lewel_bench.harness.plan import cells, plan
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog, ScaledCatalog
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.keys import Keys
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
from lewel_bench.harness.status import survey
from lewel_bench.harness.wings import is_installed
from lewel_bench.results import comparable, fill, table
from lewel_bench.results.fill import FilledTable, Measured, Slot
from lewel_bench.results.store import Store
from lewel_bench.results.table import Column, Row

if TYPE_CHECKING:
    from lewel_bench.results.claims import claim


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
        self.keys = Keys(self.scaled, datasets)
        self.store = Store(root)
        self.states = survey(root, self.store, catalog=catalog)
        self.stale = {  # what no key of today names, by what it is
            (state.kind, state.recipe, state.protocol, state.suite, state.seed): state
            for state in self.states.values()
            if state.state == "stale"
        }
        # rows beside the paper's, by name
        chosen = extras.find(self.store, extra_names, catalog)
        self.extras = {
            extra.name: extras.standing(self.store, suite, extra, catalog) for extra in chosen
        }
        # a cell shows every seed that was ever planned, and asks for seed 0 at least
        self.seeds = sorted({0, *(state.seed for state in self.states.values())})
        self.spent: dict[str, slots.Spent] = {}  # by the key of a pre-training
        # what a table reads: of a pre-training its cost, else the record
        self.measured: Mapping[str, Measured] = ChainMap(
            self.spent,  # type: ignore[arg-type]
            self.store.records,  # type: ignore[arg-type]
        )
        self._evaluations: dict[tuple[str, str], list[Slot]] = {}  # by recipe and protocol
        self._pretrainings: dict[tuple[str, int], Job] = {}  # by recipe and seed

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
        by_cell: dict[tuple[str, str], list[Slot]] = {}
        refused: dict[tuple[str, str], str] = {}
        for row, column in quoted.cells():
            if name := self.recipe_name(row, column):
                if why := self.refusals.get(name):
                    refused[row.id, column.id] = slots.cannot(row.family(column) or name, why)
                elif why := self.other_length(name, column):
                    refused[row.id, column.id] = why
                else:
                    by_cell[row.id, column.id] = self.slots(row, column)
        if remark := self.suite.remarks.get(quoted.id):
            quoted = quoted.model_copy(update={"remarks": (remark, *quoted.remarks)})
        evaluated = (
            slot
            for (_, column), group in by_cell.items()
            if quoted.column(column).eval != table.PRETRAIN
            for slot in group
            if slot.where
        )
        filled = fill.fill(
            quoted,
            by_cell,
            self.measured,
            self.suite.name,
            self.suite.comparable or any(not slot.incomparable for slot in evaluated),
            self._engines(quoted),
            refused,
            self.store.others,
        )
        remarks = (*quoted.remarks, *self._comparisons(filled))
        return replace(filled, table=quoted.model_copy(update={"remarks": remarks}))

    def _engines(self, quoted: table.Table) -> dict[str, str]:
        names = (row.protocols.get(column.eval) for row, column in quoted.cells())
        engines = {n: self.scaled.protocol(n).engine_name() for n in dict.fromkeys(names) if n}
        return {name: engine for name, engine in engines.items() if engine}

    def _comparisons(self, filled: FilledTable) -> list[str]:
        """In what else the methods differ that the paper compares in a table, where both are
        measured."""
        if not is_installed("results.claims"):
            return []
        from lewel_bench.results.claims import claim

        tested = (c for c in claim.load() if c.table == filled.table.id)
        remarks = [
            f"{c.of.label} and {c.over.label}: {text}."
            for c in (comparison for claim_ in tested for comparison in claim_.comparisons())
            if c.over and c.is_measured(filled) and (text := self.besides(c))
        ]
        return list(dict.fromkeys(remarks))

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
        of, over, *paper = (slots.identity(recipe) for recipe in (*scaled, *recipes))
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

    @cached_property
    def refusals(self) -> Mapping[str, str]:
        """By name, why recipes and extras cannot have the settings: another method may lack what
        they name. Raises ValueError where no recipe can have them."""
        changes = self.scaled.settings_of_recipes()
        if not changes:
            return {}
        refusals = {}
        for name in self.catalog.recipes:
            try:
                self.scaled.recipe(name)
            except ValueError as error:
                refusals[name] = str(error)
        if len(refusals) == len(self.catalog.recipes):
            # a value that a method cannot have says more than a name that others lack
            raise ValueError(min(refusals.values(), key=lambda text: text.startswith("unknown")))
        text = f"{', '.join(changes)} changes a pre-training, but this checkpoint was imported"
        return refusals | {name: text for name in self.extras if self._is_imported(name)}

    def slots(self, row: Row, column: Column) -> list[Slot]:
        """One slot a seed and trial: those of seed 0, and any other whose cell was planned."""
        name = self.recipe_name(row, column)
        assert name is not None
        if column.eval == table.PRETRAIN:
            return list(slots.costs(self, row, column, name))
        of = name, row.protocols[column.eval]
        if of not in self._evaluations:
            self._evaluations[of] = list(slots.evaluations(self, *of))
        return self._evaluations[of]

    def is_done(self, key: str) -> bool:
        """Whether a job has a record that counts."""
        return key in self.store.records and self.states[key].state == "done"

    def _is_imported(self, recipe: str) -> bool:
        return recipe in self.extras and bool(self.extras[recipe].key)

    def _upstream(self, recipe: str, seed: int) -> str:
        if self._is_imported(recipe):
            return self.extras[recipe].key
        return self.keys.pretraining(recipe, seed)

    def final_key(self, recipe: str, protocol: str, seed: int, trial: int = 0) -> str:
        """The key of the job that fills a cell; empty where its pre-training was never planned."""
        upstream = self._upstream(recipe, seed)
        if seed and upstream not in self.states:
            return ""
        return self.keys.evaluation(upstream, protocol, seed, trial)

    def jobs(self, recipe: str, protocols: Sequence[str], seed: int) -> list[Job]:
        """The pre-training of a recipe, if it is one, and what evaluates it by some protocols."""
        first = [] if self._is_imported(recipe) else [self._pretraining(recipe, seed)]
        upstream = plan.Upstream(self._upstream(recipe, seed), recipe, seed)
        scaled = map(self.scaled.protocol, protocols)
        return [*first, *plan.evaluations(upstream, scaled, self.suite.name, self.datasets)]

    def _pretraining(self, recipe: str, seed: int) -> Job:
        if (recipe, seed) not in self._pretrainings:
            scaled = self.scaled.recipe(recipe)
            job = plan.pretraining(scaled, seed, self.suite.name, self.datasets)
            self._pretrainings[recipe, seed] = job
        return self._pretrainings[recipe, seed]

    def command(self, job: Job) -> str:
        """The command that computes a job and what it needs."""
        protocols = [job.protocol.name] if job.protocol else []
        return self.command_of([job.recipe_name], protocols, job.seed)

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
