"""A table of the paper with what is on disk: which records fill which cell, and what is missing."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lewel_bench.evals.protocol import Protocol
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.harness import cells, plan
from lewel_bench.harness.datasets import Datasets
from lewel_bench.harness.plan import Job
from lewel_bench.harness.status import JobState, survey
from lewel_bench.harness.suite import Suite
from lewel_bench.pretrain.methods import arguments
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import fill, record, table
from lewel_bench.results.fill import Filled, Slot
from lewel_bench.results.store import Store
from lewel_bench.results.table import Column, Row

CONFIGS = ("config.yaml", "config.py")  # what detectron2 and mmseg were given


class Board:
    """The records under a root as the tables of one suite see them."""

    def __init__(
        self,
        root: Path,
        suite: Suite,
        datasets: Datasets,
        settings: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.root, self.suite, self.datasets, self.settings = root, suite, datasets, settings
        self.store = Store(root)
        self.states = survey(root, self.store)
        # a cell shows every seed that was ever planned, and asks for seed 0 at least
        self.seeds = sorted({0, *(state.seed for state in self.states.values())})
        self.recipes: dict[str, dict[str, Any]] = {}
        self.scaled: dict[str, Protocol] = {}
        self.protocols: dict[tuple[str, int], dict[str, Any]] = {}
        self.pretrain_keys: dict[tuple[str, int], str] = {}
        self.final_keys: dict[tuple[str, str, int, int], str] = {}

    def filled(self, table_id: str) -> Filled:
        """Table `table_id` with its measured values."""
        quoted = table.load(table_id)
        slots = {
            (row.id, column.id): self.slots(row, column)
            for row, column in quoted.cells()
            if self._takes_settings(cells.recipe_name(row, column))
        }
        records, suite = self.store.records, self.suite
        engines = self._engines(quoted)
        return fill.fill(quoted, slots, records, suite.name, suite.comparable, engines)

    def _engines(self, quoted: table.Table) -> dict[str, str]:
        names = dict.fromkeys(row.protocols[column.eval] for row, column in quoted.cells())
        scaled = {name: self._protocol(name) for name in names}
        return {name: one.engine for name, one in scaled.items() if isinstance(one, plan.Dense)}

    def _takes_settings(self, recipe: str | None) -> bool:
        """Whether the method of a recipe has the arguments that `--set args.X` names; a table with
        such a setting shows the rows that can have it."""
        if recipe is None:
            return False
        known = arguments(RECIPES[recipe].method)
        asked = [name.split(".")[1] for name, _ in self.settings if name.startswith("args.")]
        return all(name in known for name in asked)

    def slots(self, row: Row, column: Column) -> list[Slot]:
        """One slot a seed and trial: those of seed 0, and any other whose cell was planned."""
        name = cells.recipe_name(row, column)
        assert name is not None
        protocol = row.protocols[column.eval]
        slots = []
        for seed in self.seeds:
            for trial in range(self._trials(protocol)):
                key = self.final_key(name, protocol, seed, trial)
                if key in self.store.records and self._state(key).state == "done":
                    slots.append(Slot(key=key, seed=seed, trial=trial, state="done"))
                elif seed == 0 or key in self.states:
                    slots.append(self._slot(self._chain(name, protocol, seed), seed, key))
        return slots

    def _trials(self, protocol: str) -> int:
        return plan.trials(self._protocol(protocol))

    def _protocol(self, name: str) -> Protocol:
        if name not in self.scaled:
            self.scaled[name] = plan.scale_protocol(name, self.suite, self.settings)
        return self.scaled[name]

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

    def _pretrain_key(self, recipe: str, seed: int) -> str:
        if (recipe, seed) not in self.pretrain_keys:
            if recipe not in self.recipes:
                scaled = plan.scale_recipe(RECIPES[recipe], self.suite, self.settings)
                data = self.datasets(scaled.data, "pretrain")
                self.recipes[recipe] = plan.of_recipe(scaled, data)
            what = self.recipes[recipe]
            key = record.key({"kind": "pretrain", "seed": seed, **what})
            self.pretrain_keys[recipe, seed] = key
        return self.pretrain_keys[recipe, seed]

    def _chain(self, recipe: str, protocol: str, seed: int) -> list[Job]:
        return plan.chain(
            RECIPES[recipe], [protocol], seed, self.suite, self.datasets, self.settings
        )

    def _slot(self, jobs: list[Job], seed: int, key: str) -> Slot:
        final = next(job for job in jobs if job.key == key)
        state = self._state(key)
        needs = [(job, self._state(job.key)) for job in jobs if job.kind != "final"]
        waiting = [(job, s) for job, s in needs if s.state != "done"]
        reason = state.reason
        for job, need in waiting:
            # what a missing cell waits for says more than that it is missing
            if state.state == "missing" and need.state in ("failed", "running", "queued"):
                state, reason = need, f"{job.name}: {need.reason}".rstrip(": ")
                break
        return Slot(
            key=final.key,
            seed=seed,
            trial=final.trial,
            state=state.state,  # type: ignore[arg-type]
            reason=reason if state.state != "done" else "",
            command=self.command(jobs[0].recipe_name, final, seed),
            needs=tuple(f"{job.kind} {job.key} {s.state} ({job.name})" for job, s in waiting),
        )

    def _state(self, key: str) -> JobState:
        return self.states.get(key) or JobState(key, "", "", 0, "", "missing")

    def command(self, recipe: str, final: Job, seed: int) -> str:
        """The command that computes a cell."""
        assert final.protocol is not None
        words = ["lewel-bench", "run", "--suite", self.suite.name, "--method", recipe]
        words += ["--evals", final.protocol.name]
        words += ["--seeds", f"{seed},"] if seed else []
        for role, path in self.datasets.own.items():
            words += ["--data", f"{role}={path}" if role else str(path)]
        for name, value in self.settings:
            text = value if isinstance(value, str) else json.dumps(value)
            first = name.split(".")[0]
            if first not in PROTOCOLS or first == final.protocol.name:
                words += ["--set", f"{name}={text}"]
        return shlex.join([*words, "--root", str(self.root)])


def provenance(board: Board, cell: str) -> dict[str, Any]:
    """From a cell to what it rests on: for each seed spec, commit, data, checkpoint, log, command.

    Raises ValueError naming an unknown table, row or column, or a cell that nothing can fill.
    """
    table_id, row_id, column_id = table.parse_cell(cell)
    quoted = table.load(table_id)
    row, column = quoted.row(row_id), quoted.column(column_id)
    if cells.recipe_name(row, column) is None:
        raise ValueError(
            f"{cell} is quoted from the paper only: no recipe fills {row.label} at {column.label}"
        )
    entry = board.filled(table_id).entries.get((row_id, column_id))
    slots = board.slots(row, column)
    return {
        "cell": cell,
        "row": row.label,
        "column": column.label,
        "published": row.values.get(column_id),
        "origin": table.ORIGINS[row.origin_of(column_id)],
        "mean": entry.mean if entry else None,
        "n": entry.n if entry else 0,
        "verdict": entry.verdict if entry else "missing",
        "seeds": [_explained(board, slot, column.metric) for slot in slots],
    }


def _explained(board: Board, slot: Slot, metric: str) -> dict[str, Any]:
    folder = board.root / slot.key
    found: dict[str, Any] = {
        "seed": slot.seed,
        "trial": slot.trial,
        "key": slot.key,
        "state": slot.state,
        "reason": slot.reason,
        "folder": str(folder),
        "command": slot.command,
        "needs": list(slot.needs),
    }
    result = board.store.records.get(slot.key)
    if result is None:
        return found
    upstream = [_link(board, key) for key in dict.fromkeys(result.upstream)]
    return {
        **found,
        "value": result.metrics.get(metric),
        "metrics": dict(result.metrics),
        "chosen": result.outcome.get("chosen", {}),
        "paper_rule": result.outcome.get("paper_rule", {}),
        "selection_gap": result.outcome.get("selection_gap", {}),
        "warnings": list(result.warnings),
        "commit": result.commit + (" with uncommitted changes" if result.dirty else ""),
        "ran": result.command,
        "finished": result.finished.isoformat(),
        "seconds": result.seconds,
        "data": {role: one.model_dump() for role, one in result.data.items()},
        "checkpoint": _checkpoint(folder, result.checkpoint),
        "log": str(folder / "events.jsonl"),
        "config": next((str(f) for f in map(folder.joinpath, CONFIGS) if f.exists()), None),
        "spec": result.spec,
        "upstream": upstream,
    }


def _checkpoint(folder: Path, checkpoint: Any) -> dict[str, str] | None:
    if checkpoint is None:
        return None
    file = (folder / checkpoint.file).resolve()
    return {"file": str(file), "sha256": checkpoint.sha256}


def _link(board: Board, key: str) -> Mapping[str, Any]:
    result = board.store.records.get(key)
    if result is None:
        return {"key": key, "state": "missing"}
    return {
        "key": key,
        "kind": result.kind,
        "name": result.name,
        "commit": result.commit + (" with uncommitted changes" if result.dirty else ""),
        "seconds": result.seconds,
        "data": {role: one.model_dump() for role, one in result.data.items()},
        "checkpoint": _checkpoint(board.root / key, result.checkpoint),
        "log": str(board.root / key / "events.jsonl"),
        "spec": result.spec,
    }
