"""Figures 3a and 3b as quotations: what they name exists, and no number is invented."""

from pathlib import Path

import pytest

from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import table
from lewel_bench.results.figures.figure import FIGURES, FOLDER, Figure, load

ARGUMENT = {"3a": "beta", "3b": "c"}
DEFAULT = {"3a": 0.5, "3b": 128}


@pytest.mark.parametrize("id", FIGURES)
def test_every_point_is_a_recipe_that_differs_in_the_axis_alone(id: str) -> None:
    figure = load(id)
    base = RECIPES[f"lewel_m_in100_{figure.epochs}ep"]
    for point in figure.points:
        recipe = RECIPES[f"{point.recipe}_{figure.epochs}ep"]
        assert recipe.args.get(ARGUMENT[id], DEFAULT[id]) == point.x
        args = {**base.args, ARGUMENT[id]: recipe.args.get(ARGUMENT[id])}
        unnamed = {"name", "label", "source", "args"}
        assert {k: v for k, v in args.items() if v is not None} == recipe.args
        assert recipe.model_dump(exclude=unnamed) == base.model_dump(exclude=unnamed)
    assert {column.protocol for column in figure.columns} <= set(PROTOCOLS)


@pytest.mark.parametrize("id", FIGURES)
def test_published_values_are_those_of_table_5s_same_run(id: str) -> None:
    (published,) = load(id).published
    assert published.x == DEFAULT[id] and published.source.startswith("Table 5, last row")
    row = table.load("5").row("coupled")
    assert published.values == row.values
    for column in load(id).columns:
        assert row.protocols[table.load("5").column(column.id).eval] == column.protocol


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("x = 0.5\n", "x = 0.55\n", "no run of figure 3a is at 0.55"),
        ("top1 = 82.1", "top2 = 82.1", "Did you mean 'top1'"),
        ("x = 0.1,", "x = 0.9,", "must increase"),
        ('axis = "', 'axes = "', "Did you mean 'axis'"),
        ("id = ", "id == ", "Invalid"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (FOLDER / "3a.toml").read_text()
    assert old in text
    file = tmp_path / "bad.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        Figure.of_toml(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ValueError, match="Did you mean '3a'"):
        load("3aa")
