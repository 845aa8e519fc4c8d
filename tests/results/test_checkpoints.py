"""The list of public checkpoints: complete, and consistent with the recipes and tables."""

from pathlib import Path

import pytest

from lewel_bench.harness.lists import fills
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import checkpoints
from lewel_bench.results.checkpoints import Public

LISTED = {entry.name: entry for entry in checkpoints.load()}


@pytest.mark.parametrize("entry", LISTED.values(), ids=lambda entry: entry.name)
def test_each_says_where_it_is_from(entry: Public) -> None:
    assert entry.url.startswith("https://") and entry.reported
    assert entry.source.startswith(entry.project) and (
        "@" in entry.source or "of 0.26" in entry.source
    )
    if entry.file and not entry.url.startswith("https://www.dropbox.com/"):
        assert entry.url.endswith(f"/{entry.file}")


@pytest.mark.parametrize("entry", LISTED.values(), ids=lambda entry: entry.name)
def test_it_stands_for_a_recipe_as_long_as_it(entry: Public) -> None:
    if entry.recipe:
        assert RECIPES[entry.recipe].epochs == entry.epochs
    else:
        assert entry.note or "400" in entry.name


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
