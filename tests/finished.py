"""Records of finished jobs under a run root, for tests of their readers."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import planning

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.plan import suites
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.harness.rundir import SPEC
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import record
from lewel_bench.results.comparable import Split, published
from lewel_bench.results.record import Contents, Data, Record

SHAPES = suites.SUITES["shapes"]
START = datetime(2026, 1, 2, tzinfo=UTC)


def imagenet() -> dict[str, Data]:
    """The data that a record of an evaluation on ImageNet-1K names."""
    known = published()["imagenet"]

    def whole(of: Split) -> Contents:
        return Contents(
            images=of.images, classes=known.classes, names=known.names, per_class=of.per_class
        )

    return {
        role: Data(name="imagenet", fingerprint="0" * 12, images=split.images, whole=whole(split))
        for role, split in (("train", known.train), ("report", known.val))
    }


def board(root: Path, suite: Suite = SHAPES) -> Board:
    """The tables of a suite, filled with the records under `root`."""
    return Board(root, suite, Datasets(Site(), root, suite, needed=False))


def finish(
    root: Path,
    recipe: str | Recipe,
    protocol: str,
    seed: int = 0,
    *,
    suite: Suite = SHAPES,
    before: Mapping[str, Any] | None = None,
    **fields: Any,
) -> str:
    """Write records of a pre-training (with the fields `before`) and of its evaluation (with the
    other fields); returns the key of the evaluation."""
    datasets = Datasets(Site(), root, suite, needed=False)
    known = RECIPES[recipe] if isinstance(recipe, str) else recipe
    first, *_, last = planning.chain(known, [protocol], seed, suite, datasets)
    left = {"file": "backbone.safetensors", "sha256": "0" * 64}
    _commit(root, first, **{"metrics": {"loss": 1.0}, "checkpoint": left, **(before or {})})
    _commit(root, last, **{"upstream": (first.key,), **fields})
    return last.key


def _commit(root: Path, job: Job, **fields: Any) -> None:
    made: dict[str, Any] = {
        "key": job.key, "kind": job.kind, "name": job.name, "spec": job.identity(),
        "seed": job.seed, "metrics": {}, "commit": "c", "dirty": False, "version": "0",
        "command": "lewel-bench run", "started": START, "finished": START, "seconds": 60.0,
    }  # fmt: skip
    record.commit(root / job.key, Record(**made | fields))
    (root / job.key / SPEC).write_text(job.model_dump_json())
