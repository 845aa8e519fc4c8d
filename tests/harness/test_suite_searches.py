"""The searches behind the settings of the CPU-sized twins, kept as data."""

import statistics
import tomllib
from pathlib import Path
from typing import Any

import pytest

import lewel_bench
from lewel_bench.harness.plan.suites import SUITES
from lewel_bench.pretrain import collapse
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.recipes import RECIPES

FILE = Path(lewel_bench.__file__).parent / "results" / "suite_searches.toml"
SEARCHES: list[dict[str, Any]] = tomllib.loads(FILE.read_text())["searches"]


DEFAULTS = {"tau": 0.2}  # of MoCo v2 and LEWEL_M


def _setting(recipe: Recipe, dotted: str) -> object:
    part, _, name = dotted.partition(".")
    if part == "args":
        return recipe.args.get(name, DEFAULTS[name])
    return getattr(getattr(recipe, part), name)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search["recipes"][0])
def test_the_suite_has_what_the_search_chose(search: dict[str, Any]) -> None:
    suite = SUITES[search["suite"]]
    for name in search["recipes"]:
        recipe = suite.recipe(RECIPES[name])
        values = {dotted: _setting(recipe, dotted) for dotted in search["chosen"]}
        assert values == search["chosen"], name


def _accuracy(search: dict[str, Any], settings: dict[str, Any]) -> float | None:
    """Mean over the recipes of the accuracy on the scenes; None where one was not run."""
    values = {
        trial["recipe"]: trial["linear"]
        for trial in search["trials"]
        if trial["settings"] == settings and trial["images"] == "scenes"
    }
    complete = values.keys() == set(search["recipes"])
    return statistics.fmean(values.values()) if complete else None


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search["recipes"][0])
def test_the_choice_follows_from_the_trials(search: dict[str, Any]) -> None:
    """The best mean accuracy of the recipes on the scenes, among settings with which no network
    collapsed."""
    best, tried = (0.0, {}), []
    for trial in search["trials"]:
        settings, accuracy = trial["settings"], _accuracy(search, trial["settings"])
        if accuracy is None or settings in tried:
            continue
        tried.append(settings)
        same = [other for other in search["trials"] if other["settings"] == settings]
        shares = [trial["rank"] / trial["untrained_rank"] for trial in same if "rank" in trial]
        if accuracy > best[0] and all(share >= collapse.SHARE for share in shares):
            best = (accuracy, settings)
    assert len(tried) > 2 and best[1] == search["chosen"]
