"""Keys change on purpose only: a golden list over all recipes, protocols and suites.

A key is a hash of everything that determines a number, so a changed key leaves every finished
record behind. LEWEL_BENCH_REGOLD=1 rewrites the list; the commit that does so says why.
"""

import json
import os
from pathlib import Path

import pytest
from finished import board, finish

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.harness.cli import main
from lewel_bench.harness.plan import plan
from lewel_bench.harness.plan.catalog import PACKAGED, ScaledCatalog
from lewel_bench.harness.plan.suites import SUITES
from lewel_bench.harness.status import survey
from lewel_bench.pretrain.recipe import change
from lewel_bench.pretrain.recipes import RECIPES

GOLDEN = Path(__file__).parent / "golden" / "keys.json"
UPSTREAM = plan.Upstream("0" * 12, "any_100ep", 1)


def dataset(name: str, purpose: str) -> Dataset:
    return Dataset(name=name, id=f"{name} for {purpose}", root="")


def keys() -> dict[str, dict[str, dict[str, str]]]:
    """By suite: the key of each pre-training, and those of all jobs of each evaluation, which
    follow from its pre-training's key and from nothing else of the recipe."""
    known: dict[str, dict[str, dict[str, str]]] = {}
    for name, suite in SUITES.items():
        scaled = ScaledCatalog(PACKAGED, suite)
        evaluations = {
            p: plan.evaluations(UPSTREAM, [scaled.protocol(p)], name, dataset) for p in PROTOCOLS
        }
        known[name] = {
            "pretrain": {
                r: plan.pretraining(scaled.recipe(r), 0, name, dataset).key for r in RECIPES
            },
            "evals": {p: " ".join(job.key for job in jobs) for p, jobs in evaluations.items()},
        }
    return known


def test_keys_are_those_of_the_golden_list() -> None:
    actual = keys()
    if os.environ.get("LEWEL_BENCH_REGOLD"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(actual, indent=0) + "\n")
    expected = json.loads(GOLDEN.read_text())
    for suite, kinds in expected.items():
        for kind, known in kinds.items():
            assert actual[suite][kind] == known, f"{kind} in suite {suite}"
    assert actual == expected


def test_records_under_old_keys_are_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pre-training of the revision before, and its evaluation, which is named in its cell."""
    recipe = RECIPES["lewel_m_200ep"]
    finish(tmp_path, change(recipe, {"revision": 1}), "linear_lars", metrics={"top1": 70.0})
    states = survey(tmp_path)
    assert {state.state for state in states.values()} == {"stale"}
    (pretraining,) = (key for key, state in states.items() if state.kind == "pretrain")
    (final,) = (key for key, state in states.items() if state.kind == "final")
    sentence = "recipe lewel_m_200ep is at revision 2, this is 1"
    assert states[pretraining].reason == sentence
    assert states[final].reason == f"its pre-training {pretraining} is stale: {sentence}"
    cell = board(tmp_path).filled("1").entries["lewel_m", "200:top1"]
    assert cell.state == "stale" and cell.mean is None
    words = ["table", "1", "--suite", "shapes", "--root", str(tmp_path), "--missing"]
    assert main(words) == 0
    assert f"record {final} is stale" in capsys.readouterr().out
