"""The list of public checkpoints: complete, and consistent with the recipes and tables."""

from pathlib import Path

import pytest

from lewel_bench.harness.verbs.ls import fills
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import checkpoints
from lewel_bench.results.checkpoints import Public

LISTED = {one.name: one for one in checkpoints.load()}


@pytest.mark.parametrize("one", LISTED.values(), ids=lambda one: one.name)
def test_each_says_where_it_is_from(one: Public) -> None:
    assert one.url.startswith("https://") and one.reported
    assert one.source.startswith(one.project) and ("@" in one.source or "of 0.26" in one.source)
    if one.file and not one.url.startswith("https://www.dropbox.com/"):
        assert one.url.endswith(f"/{one.file}")


@pytest.mark.parametrize("one", LISTED.values(), ids=lambda one: one.name)
def test_it_stands_for_a_recipe_as_long_as_it(one: Public) -> None:
    if one.recipe:
        assert RECIPES[one.recipe].epochs == one.epochs
    else:
        assert one.note or "400" in one.name


def test_lewel_s_own_fill_their_cells_with_the_paper_s_numbers() -> None:
    """What the authors' README reports is what Tables 1, 4 and 8 print."""
    assert (
        fills("lewel_b_200ep")
        == "Table 1 (2), Table 2 (4), Table 3 (4), Table 4 (12), Table 8 (14)"
    )
    assert [LISTED[f"lewel-b-{n}"].reported["linear top-1"] for n in (100, 200, 400)] == [
        71.9,
        72.8,
        73.8,
    ]


def test_a_name_is_listed_once(tmp_path: Path) -> None:
    text = checkpoints.FILE.read_text()
    first = text[text.index("[[checkpoints]]") :].split("\n\n")[0]
    twice = tmp_path / "twice.toml"
    twice.write_text(f"{first}\n\n{first}\n")
    with pytest.raises(ValueError, match="two checkpoints have the same name: lewel-b-100"):
        checkpoints._List.of_toml(twice)
