import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from making import quoted_only

from lewel_bench.results.fill import Entry, FilledTable, Slot, fill
from lewel_bench.results.table import load

CELL = ("lewel_m", "200:top1")  # 68.4 in the paper
QUOTED = quoted_only(load("1"), "pcl")


def slot(key: str, state: Any = "done", **fields: Any) -> Slot:
    """Of a seed of its own, unless one is given."""
    return Slot(key, **{"seed": int.from_bytes(key.encode()), "state": state, **fields})


def entry(*slots: Slot, values: Any = (), comparable: bool = True, cell: Any = CELL) -> Entry:
    records = {f"k{i}": SimpleNamespace(metrics={"top1": v}) for i, v in enumerate(values)}
    return fill(load("1"), {cell: slots}, records, "paper", comparable).entries[cell]


def test_mean_std_and_delta_are_of_the_records() -> None:
    cell = entry(slot("k0"), slot("k1"), slot("k2"), values=(68.0, 68.4, 69.4))
    assert cell.mean == pytest.approx(68.6, rel=1e-12)
    assert cell.std == pytest.approx(math.sqrt((0.36 + 0.04 + 0.64) / 2), rel=1e-12)
    assert cell.delta == pytest.approx(0.2, abs=1e-9)
    assert (cell.n, cell.wanted, cell.published, cell.origin) == (3, 3, 68.4, "own")
    assert cell.keys == ("k0", "k1", "k2")
    assert (cell.state, cell.verdict) == ("done", "inconclusive")
    assert "Table 8" in cell.note


def test_trials_of_one_backbone_are_no_seeds() -> None:
    """68 and 70 of one seed, 72 and 76 of another: n is 2, the mean that of 69 and 74."""
    slots = [slot(f"k{i}", seed=i // 2, trial=i % 2) for i in range(4)]
    cell = entry(*slots, values=(68.0, 70.0, 72.0, 76.0))
    assert (cell.mean, cell.n, cell.wanted) == (71.5, 2, 2)
    assert cell.std == pytest.approx(5 / math.sqrt(2), rel=1e-12)
    assert cell.trial_std == pytest.approx(math.sqrt((2 + 8) / 2), rel=1e-12)
    assert entry(*slots[:2], values=(68.0, 70.0)).verdict == "inconclusive"
    assert entry(slots[0], slots[2], values=(68.0, 70.0, 72.0)).trial_std is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((68.4,), "inconclusive"),
        ((68.4, 68.4), "inconclusive"),
        ((68.35, 68.4, 68.45), "reproduced"),
        ((67.3, 68.4, 69.5), "inconclusive"),
        ((60.0, 60.1, 60.2), "differs"),
    ],
)
def test_verdict_of_the_paper_suite(values: tuple[float, ...], verdict: str) -> None:
    assert entry(*(slot(f"k{i}") for i in range(len(values))), values=values).verdict == verdict


def test_what_is_not_comparable_has_no_difference() -> None:
    cell = entry(slot("k0"), slot("k1"), values=(40.4, 40.4), comparable=False)
    assert (cell.verdict, cell.delta, cell.mean) == ("not comparable", None, 40.4)


def test_a_run_that_differs_from_the_paper_makes_its_cell_incomparable() -> None:
    why, caveat = ("the protocol has epochs 1 (paper: 90)",), ("collapsed",)
    odd = slot("k1", incomparable=why, caveats=caveat, where="tiny, ResNet-50")
    cell = entry(slot("k0", where="tiny, ResNet-50"), odd, values=(68.4, 68.4))
    assert (cell.verdict, cell.delta, cell.incomparable) == ("not comparable", None, why)
    assert (cell.caveats, cell.where) == (caveat, ("tiny, ResNet-50",))
    # one that is not in the mean says nothing about it
    separate = replace(odd, key="k2", setting="another way")
    cell = entry(slot("k0"), slot("k1"), separate, values=(68.4, 68.4, 60.0))
    assert (cell.verdict, cell.incomparable, cell.n) == ("inconclusive", (), 2)


@pytest.mark.parametrize("state", ["running", "queued", "failed", "missing", "stale"])
@pytest.mark.parametrize("comparable", [True, False])
def test_a_cell_without_a_value_has_its_state_as_verdict(state: Any, comparable: bool) -> None:
    cell = entry(slot("k0", state, reason="why"), values=(68.4,), comparable=comparable)
    assert (cell.state, cell.verdict) == (state, state)
    assert (cell.mean, cell.std, cell.delta, cell.n, cell.keys) == (None, None, None, 0, ())
    assert cell.reasons == ("why",)


def test_some_seeds_done_shows_them_and_what_the_rest_do() -> None:
    slots = slot("k0"), slot("k1"), slot("x", "queued"), slot("y", "failed", reason="nan")
    cell = entry(*slots, values=(68.4, 68.4))
    assert (cell.n, cell.wanted, cell.state) == (2, 4, "failed")
    assert cell.verdict == "inconclusive" and cell.keys == ("k0", "k1")


def test_the_same_run_listed_twice_is_one_measurement() -> None:
    cell = entry(slot("k0"), slot("k0"), values=(68.4,))
    assert (cell.n, cell.wanted, cell.verdict) == (1, 1, "inconclusive")


def test_done_without_a_record_is_missing_and_says_so() -> None:
    cell = entry(slot("gone"))
    assert (cell.state, cell.mean) == ("missing", None)
    assert cell.reasons == ("gone is marked done, but has no record",)


def test_a_record_without_the_metric_is_failed_and_says_so() -> None:
    cell = entry(slot("k0"), values=(68.4,), cell=("lewel_m", "200:top5"))
    assert (cell.state, cell.verdict, cell.mean) == ("failed", "failed", None)
    assert cell.reasons == ("record k0 has no top5 (it has: top1)",)


def test_a_cell_that_the_paper_left_blank() -> None:
    cell = ("moco_v2", "400:top1")
    assert cell not in fill(load("1"), {}, {}, "paper", True).entries
    result = entry(slot("k0"), values=(71.0,), cell=cell)
    assert (result.published, result.delta, result.mean) == (None, None, 71.0)
    assert result.verdict == "nothing published"


def test_without_runs_a_cell_is_missing_or_published_only() -> None:
    entries = fill(QUOTED, {}, {}, "paper", True).entries
    assert len(entries) == 33  # the cells that the paper filled
    assert (entries[CELL].state, entries[CELL].verdict) == ("missing", "missing")
    assert entries[CELL].reasons == ("no run of lewel_m is planned for this cell",)
    cited = entries["pcl", "200:top1"]
    assert (cited.state, cited.verdict, cited.published) == (None, "published only", 67.6)


def test_unknown_cells_and_states_are_errors() -> None:
    with pytest.raises(
        ValueError, match=r"unknown row of table 1 'lewel_n'. Did you mean 'lewel_m"
    ):
        fill(load("1"), {("lewel_n", "200:top1"): []}, {}, "paper", True)
    with pytest.raises(ValueError, match="unknown column of table 1"):
        fill(load("1"), {("lewel_m", "200"): []}, {}, "paper", True)
    with pytest.raises(ValueError, match=r"unknown state 'don'. Did you mean 'done'"):
        slot("k0", "don")


def test_missing_lists_what_lacks_seeds_with_needs_and_command() -> None:
    command = "lewel-bench run --method lewel_m_200ep --evals linear_lars"
    needs = ("pretrain 3f2a9c01b7de missing",)
    waits = slot("x", "queued", reason="waits", command=command, needs=needs)
    slots = {
        CELL: [slot("k0"), waits],
        ("lewel_m", "200:top5"): [waits],
        ("lewel_m", "100:top1"): [slot("k0")],
    }
    records = {"k0": SimpleNamespace(metrics={"top1": 68.4})}
    actual = fill(QUOTED, slots, records, "paper", True).missing()
    assert "table1:lewel_m:100:top1" not in actual  # done
    assert "table1:pcl:200:top1" not in actual  # nothing can fill it
    assert "table1:moco_v2:400:top1" not in actual  # blank in the paper
    cell = actual["table1:lewel_m:200:top1"]
    assert (cell.row, cell.column, cell.n, cell.wanted) == ("lewel_m", "200:top1", 1, 2)
    assert (cell.state, cell.slots[1:]) == ("queued", (waits,))
    assert cell.slots[1].needs == needs and cell.reasons == ("waits",)
    assert actual["table1:lewel_m:200:top5"].n == 0
    assert actual["table1:lewel_b:400:top1"].slots == ()
    assert len(actual) == 33 - 1 - 1  # all but the one done and the one that is cited only


# ---- what is measured otherwise, and what is best ----


def test_seeds_that_were_measured_otherwise_are_never_averaged() -> None:
    """Two of three seeds share a setting: the third is named and left out."""
    slots = (
        slot("k0", seed=0, setting="engine native"),
        slot("k1", seed=1, setting="engine detectron2"),
        slot("k2", seed=2, setting="engine native"),
    )
    cell = entry(*slots, values=(68.0, 90.0, 69.0))
    assert (cell.mean, cell.n, cell.wanted, cell.keys) == (68.5, 2, 3, ("k0", "k2"))
    assert cell.setting == "engine native"
    assert cell.reasons == (
        "seed 1 is excluded from the mean: measured with engine detectron2, not engine native",
    )
    assert entry(*slots[:2], values=(68.0, 90.0)).mean == 68.0  # the first of equals


def filled(table: str, values: dict[tuple[str, str], float], **setting: str) -> FilledTable:
    """A table of one seed a cell; `setting` is by row id."""
    metric = {(r.id, c.id): c.metric for r in load(table).rows for c in load(table).columns}
    slots = {
        cell: [slot(f"{cell}", setting=setting.get(cell[0], "one way"), seed=0)] for cell in values
    }
    records = {
        f"{cell}": SimpleNamespace(metrics={metric[cell]: value}) for cell, value in values.items()
    }
    return fill(load(table), slots, records, "paper", True)


def best(table: FilledTable, column: str) -> tuple[set[str], set[str]]:
    """The rows that are best in a column: as published, as measured."""
    entries = {row: pending for (row, id), pending in table.entries.items() if id == column}
    return (
        {row for row, value in entries.items() if value.best_published},
        {row for row, value in entries.items() if value.best},
    )


def test_the_best_of_a_column_is_marked_on_both_sides() -> None:
    values = {("moco_v2", "200:top1"): 69.04, ("lewel_m", "200:top1"): 68.0}
    assert best(filled("1", values), "200:top1") == ({"lewel_b"}, {"moco_v2"})
    # printed alike is equally good; one alone is not the best of anything
    values |= {("byol", "200:top1"): 68.96, ("lewel_m", "200:top5"): 88.0}
    table = filled("1", values)
    assert best(table, "200:top1")[1] == {"moco_v2", "byol"}
    assert best(table, "200:top5") == ({"lewel_b"}, set())


def test_what_was_measured_on_other_data_is_not_the_best() -> None:
    values = {"byol": 72.0, "lewel_b": 72.5, "moco_v2": 95.0}

    def marked(*odd: str) -> set[str]:
        slots = {
            (row, "200:top1"): [
                Slot(row, 0, "done", incomparable=("tested on 40 images",) if row in odd else ())
            ]
            for row in values
        }
        records = {row: SimpleNamespace(metrics={"top1": value}) for row, value in values.items()}
        return best(fill(load("1"), slots, records, "paper", True), "200:top1")[1]

    assert marked("moco_v2") == {"lewel_b"}
    assert marked() == marked(*values) == {"moco_v2"}


def test_the_best_is_that_of_its_block() -> None:
    values = {(row.id, "box_ap"): float(i) for i, row in enumerate(load("4").rows)}
    assert best(filled("4", values), "box_ap") == (
        {"c4:lewel_m:200", "fpn:lewel_b:400"},
        {"c4:lewel_b:200", "fpn:lewel_b:400"},
    )


def test_of_times_the_lowest_is_best_and_no_overhead_is() -> None:
    rows = [row.id for row in load("9").rows]
    values = {(row, "seconds"): 10.0 + i for i, row in enumerate(rows)}
    table = filled("9", values | {("lewel_m", "overhead"): 1.0, ("lewel_b", "overhead"): 4.0})
    assert best(table, "seconds") == ({"byol"}, {"moco_v2"})
    assert best(table, "overhead") == (set(), set())


def test_a_time_is_not_held_against_the_papers_machine() -> None:
    table = filled("9", {("byol", "seconds"): 1141.0}).entries["byol", "seconds"]
    assert (table.verdict, table.delta) == ("not comparable", None)


def test_a_column_that_mixes_settings_says_which() -> None:
    values = {("moco_v2", "200:top1"): 69.0, ("byol", "200:top1"): 70.0}
    assert filled("1", values).mixed("200:top1") == ()
    table = filled("1", values, byol="another way")
    assert table.mixed("200:top1") == ("one way", "another way")
    assert table.mixed("100:top1") == ()
