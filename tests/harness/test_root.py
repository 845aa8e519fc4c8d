"""A run root as DataFrames."""

import json
from pathlib import Path

import pytest
from finished import finish
from pandas import isna

import lewel_bench
from lewel_bench.harness.rundir import EVENTS
from lewel_bench.results.cells import PLACE
from lewel_bench.results.store import COLUMNS


def test_records_have_a_row_each(tmp_path: Path) -> None:
    key = finish(
        tmp_path, "lewel_m_200ep", "linear_lars", 1,
        metrics={"top1": 60.5, "top5": 90.0}, warnings=("a", "b"), peak_memory=2**30,
    )  # fmt: skip
    records = lewel_bench.open_root(tmp_path).records()
    assert list(records) == [*list(COLUMNS)[1:], "loss", "top1", "top5"]
    row = records.loc[key]
    assert (row["kind"], row.seed, row.protocol, row.top1) == ("final", 1, "linear_lars", 60.5)
    assert (row.method, row.epochs, row.warnings) == ("lewel_m", 12, "a; b")  # as pre-trained
    assert (row.peak_memory, row.processes, row.seconds) == (2**30, 1, 60.0)
    assert str(row.started) == "2026-01-02 00:00:00+00:00" and isna(row.loss)
    first = records.loc[row.upstream]
    assert (first["kind"], first.method, first.loss) == ("pretrain", "lewel_m", 1.0)
    assert isna(first.upstream) and isna(first.protocol) and isna(first.peak_memory)
    assert (records.dtypes["seed"], records.dtypes["epochs"]) == ("int64", "Int64")


def test_a_root_without_records_has_the_columns(tmp_path: Path) -> None:
    root = lewel_bench.open_root(tmp_path / "none")
    assert list(root.records()) == list(COLUMNS)[1:] and root.records().empty
    with pytest.raises(ValueError, match="unknown key '0123'"):
        root.curves("0123")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        lewel_bench.open_root(tmp_path / "file")


def test_curves_have_a_row_a_point(tmp_path: Path) -> None:
    key = finish(tmp_path, "lewel_m_200ep", "linear_lars")
    events = (
        {"event": "step", "step": 10, "loss": 2.5, "lr": 0.1},
        {"event": "epoch", "epoch": 1, "train_loss": [1.0, 2.0]},
    )
    (tmp_path / key / EVENTS).write_text("\n".join(map(json.dumps, events)) + "\ncut")
    curves = lewel_bench.open_root(tmp_path).curves(key)
    assert list(curves) == ["quantity", "candidate", "epoch", "step", "value"]
    rows = curves.astype(object).where(curves.notna(), None).to_numpy().tolist()
    assert rows == [
        ["loss", None, None, 10, 2.5],
        ["train_loss", 0, 1, None, 1.0],
        ["train_loss", 1, 1, None, 2.0],
    ]
    with pytest.raises(ValueError, match="Did you mean"):
        lewel_bench.open_root(tmp_path).curves(key[:-1] + "x")


def test_a_table_has_a_row_a_cell(tmp_path: Path) -> None:
    for seed in range(3):
        metrics = {"top1": 60.0 + seed, "top5": 90.0}
        finish(tmp_path, "lewel_m_200ep", "linear_lars", seed, metrics=metrics)
    table = lewel_bench.open_root(str(tmp_path)).table(1, suite="shapes")
    assert table.index.names == ["row", "column"] and len(table) == 33
    assert list(table)[:4] == [name for name in PLACE if name not in table.index.names]
    cell = table.loc["lewel_m", "200:top1"]
    assert (cell.published, cell["mean"], cell["std"], cell.n) == (68.4, 61.0, 1.0, 3)
    assert cell.verdict == "not comparable" and len(cell["keys"]) == 3
    assert table["mean"].notna().sum() == 2
    with pytest.raises(ValueError, match="unknown table '11'"):
        lewel_bench.open_root(tmp_path).table(11)
    with pytest.raises(ValueError, match=r"unknown suite 'shape'. Did you mean 'shapes'"):
        lewel_bench.open_root(tmp_path).table(1, suite="shape")


def test_the_package_offers_it_by_name() -> None:
    assert "open_root" in lewel_bench.__all__
    with pytest.raises(AttributeError, match="no attribute 'open_roots'"):
        lewel_bench.open_roots  # noqa: B018
