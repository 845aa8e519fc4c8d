"""Tables with the records under a root: which rows they fill, and what a pre-training cost."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import planning
import pytest
from finished import board, finish, imagenet

from lewel_bench.harness.board.board import Board
from lewel_bench.harness.board.cell_details import explained, show
from lewel_bench.harness.plan import suites
from lewel_bench.harness.plan.catalog import PACKAGED, ScaledCatalog
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.report import gather
from lewel_bench.harness.request import format_setting, parse_setting
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import record
from lewel_bench.results.cell_details import behind
from lewel_bench.results.fill import Entry
from lewel_bench.results.formats import render
from lewel_bench.results.layout import headline
from lewel_bench.results.record import Record
from lewel_bench.results.store import Store
from lewel_bench.results.table import TABLES, load

SHAPES = suites.SUITES["shapes"]
START = datetime(2026, 1, 2, tzinfo=UTC)
V100 = {"device": "Tesla V100", "processes": "8", "threads": "5"}


@dataclass
class Lab:
    """A run root with finished pre-trainings."""

    root: Path
    settings: list[tuple[str, Any]] = field(default_factory=list)

    def board(self) -> Board:
        datasets = Datasets(Site(), self.root, SHAPES, needed=False)
        return Board(self.root, SHAPES, datasets, self.settings)

    def pretrained(self, name: str, seed: int = 0, **fields: Any) -> str:
        datasets = Datasets(Site(), self.root, SHAPES, needed=False)
        job = planning.pretraining(RECIPES[name], seed, SHAPES, datasets, self.settings)
        made = {
            "key": job.key, "kind": "pretrain", "name": job.name, "spec": job.identity(),
            "seed": seed, "metrics": {"loss": 1.0}, "commit": "c", "dirty": False, "version": "0",
            "command": "", "started": START, "finished": START, "environment": V100,
            "seconds": 60.0, "peak_memory": 3 * 2**30,
        }  # fmt: skip
        record.commit(self.root / job.key, Record(**made | fields))
        return job.key

    def cells(self, row: str) -> dict[str, Entry]:
        entries = self.board().filled("9").entries
        return {column: entry for (name, column), entry in entries.items() if name == row}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_table_9_is_what_the_records_of_pre_trainings_say(lab: Lab) -> None:
    """6 epochs in 60 and 66 s on 8 devices; the second seed takes 20 % longer than its baseline."""
    for seed, seconds in ((0, 66.0), (1, 72.0)):
        lab.pretrained("moco_v2_amp_100ep", seed)
        lab.pretrained("lewel_m_100ep", seed, seconds=seconds, peak_memory=2**32)
    cells = lab.cells("lewel_m")
    assert RECIPES["lewel_m_100ep"].epochs * SHAPES.epochs == 6
    assert (cells["seconds"].mean, cells["seconds"].n) == (pytest.approx(11.5), 2)
    assert cells["hours"].mean == pytest.approx(69 * 8 / 3600)
    assert (cells["memory"].mean, cells["memory"].std) == (4.0, 0.0)
    assert cells["overhead"].mean == pytest.approx(15) and cells["overhead"].n == 2
    assert cells["seconds"].setting == "8 x Tesla V100, 5 threads, fp32"
    assert {file.state for file in cells.values()} == {"done", "missing"}  # top-1 is not there
    assert cells["overhead"].verdict == "nothing published"
    assert cells["seconds"].verdict == "not comparable"
    baseline = lab.cells("moco_v2")
    assert baseline["seconds"].best and "overhead" not in baseline
    assert headline(lab.board().filled("9")).startswith("Measured: generated scenes, ResNet-18")


def test_pre_trainings_as_the_papers_have_verdicts(tmp_path: Path) -> None:
    """Read from disk, with the paper's data, recipe and protocol; and with other data before."""
    for seed, top1 in enumerate((67.48, 67.5, 67.52)):
        for name in ("moco_v2_200ep", "lewel_m_200ep"):
            data = imagenet() if name == "moco_v2_200ep" else {}
            finish(
                tmp_path, name, "linear_lars", seed, suite=suites.PAPER, data=imagenet(),
                metrics={"top1": top1}, before={"data": data},
            )  # fmt: skip
    filled = board(tmp_path, suites.PAPER).filled("1")
    entry = filled.entries["moco_v2", "200:top1"]
    assert (entry.verdict, entry.incomparable, entry.n) == ("reproduced", (), 3)
    other = filled.entries["lewel_m", "200:top1"]
    assert (other.verdict, other.delta) == ("not comparable", None)
    assert other.incomparable == ("pre-trained on images that its record does not describe",)


def test_a_record_fills_the_column_of_its_length_or_none(tmp_path: Path) -> None:
    """100 epochs of the paper are 6 in this suite, 200 are 12."""
    for epochs, filled in (
        (6, {"100:top1", "100:top5"}),
        (12, {"200:top1", "200:top5"}),
        (7, set()),
    ):
        settings = [("epochs", epochs), ("schedule.warmup_epochs", 0)]
        root = tmp_path / str(epochs)
        datasets = Datasets(Site(), root, SHAPES, needed=False)
        for name in ("moco_v2_100ep", "moco_v2_200ep"):
            chain = planning.chain(RECIPES[name], ["linear_lars"], 0, SHAPES, datasets, settings)
            for job in chain:
                made = {
                    "key": job.key, "kind": job.kind, "name": job.name, "spec": job.identity(),
                    "seed": 0, "metrics": {"top1": 50.0, "top5": 80.0}, "commit": "c",
                    "dirty": False, "version": "0", "command": "", "started": START,
                    "finished": START, "seconds": 60.0,
                }  # fmt: skip
                record.commit(root / job.key, Record(**made))
        assert len(Store(root).records) == 2  # the two are one run
        board = Board(root, SHAPES, datasets, settings)
        entries = board.filled("1").entries
        cells = {column: e for (row, column), e in entries.items() if row == "moco_v2"}
        assert {column for column, entry in cells.items() if entry.mean is not None} == filled
        left = [e.reasons for column, e in cells.items() if column not in filled]
        usual = {"100:top1": 6, "200:top1": 12}
        assert any(f"--set epochs={epochs}: moco_v2" in text for why in left for text in why)
        for column in usual.keys() - filled:
            with pytest.raises(ValueError, match=f"has {usual[column]} epochs in suite shapes"):
                explained(board, f"table1:moco_v2:{column}")


def test_times_are_those_of_any_length(lab: Lab) -> None:
    lab.settings = [("epochs", 2), ("schedule.warmup_epochs", 0)]
    lab.pretrained("moco_v2_amp_100ep")
    cells = lab.cells("moco_v2")
    assert cells["seconds"].mean == 30.0
    assert (cells["top1"].state, cells["top1"].mean) == (None, None)
    assert "moco_v2_amp_100ep has 6 epochs" in cells["top1"].reasons[0]


def test_an_overhead_waits_for_its_baseline(lab: Lab) -> None:
    lab.pretrained("lewel_m_100ep")
    cells = lab.cells("lewel_m")
    assert cells["seconds"].state == "done"
    assert (cells["overhead"].state, cells["overhead"].mean) == ("missing", None)
    (slot,) = cells["overhead"].slots
    assert "moco_v2_amp_100ep, the baseline" in slot.reason
    assert "--method moco_v2_amp_100ep --evals none" in slot.command


def test_times_of_two_machines_are_neither_compared_nor_averaged(lab: Lab) -> None:
    lab.pretrained("moco_v2_amp_100ep")
    other = {**V100, "device": "H100"}
    lab.pretrained("lewel_m_100ep", environment=other)
    overhead = lab.cells("lewel_m")["overhead"]
    assert (overhead.state, overhead.mean) == ("missing", None)
    assert overhead.reasons == (
        "not comparable with moco_v2_amp_100ep: measured on 8 x H100, 5 threads, fp32 "
        "and on 8 x Tesla V100, 5 threads, fp32",
    )
    for seed in (1, 2):
        lab.pretrained("lewel_m_100ep", seed, seconds=90.0)
    seconds = lab.cells("lewel_m")["seconds"]
    assert (seconds.mean, seconds.n, seconds.wanted) == (15.0, 2, 3)
    assert "seed 0 is excluded from the mean" in seconds.reasons[0]
    lab.pretrained("byol_100ep", environment=other)
    filled = lab.board().filled("9")
    assert len(filled.mixed("seconds")) == 2
    assert "8 x H100" in render([filled], "md")


def test_a_record_from_before_memory_was_measured_lacks_only_that(lab: Lab) -> None:
    lab.pretrained("byol_100ep", peak_memory=None)
    cells = lab.cells("byol")
    assert cells["seconds"].mean == pytest.approx(10) and cells["hours"].state == "done"
    assert cells["memory"].state == "missing"
    assert cells["memory"].reasons == ("its record has no peak_memory",)


def test_explain_goes_from_a_cost_to_its_record(lab: Lab) -> None:
    key = lab.pretrained("byol_100ep")
    details = explained(lab.board(), "table9:byol:seconds")
    (seed,) = details["seeds"]
    assert (seed["key"], seed["value"]) == (key, pytest.approx(10))
    assert details["setting"] == "8 x Tesla V100, 5 threads, fp32"
    with pytest.raises(ValueError, match="BYOL is a baseline"):
        explained(lab.board(), "table9:byol:overhead")


def test_an_overhead_is_explained_by_both_of_its_runs(lab: Lab) -> None:
    """66 s against 60 s, of 6 epochs each."""
    base = lab.pretrained("moco_v2_amp_100ep")
    key = lab.pretrained("lewel_m_100ep", seconds=66.0)
    (seed,) = explained(lab.board(), "table9:lewel_m:overhead")["seeds"]
    assert (seed["key"], seed["baseline"]["key"]) == (key, base)
    own, theirs = (side["cost"]["seconds_per_epoch"] for side in (seed, seed["baseline"]))
    assert (own, theirs) == (11.0, 10.0)
    assert seed["value"] == pytest.approx(100 * (own / theirs - 1))
    assert seed["baseline"]["measured_on"] == seed["measured_on"]
    report = gather(lab.board(), lab.root)
    data = behind(report.tables, report.records, report.logs, "", "")
    assert data["cells"]["table9:lewel_m:overhead"]["runs"] == [[key, 0, 0, base]]
    assert data["records"][base]["cost"]["seconds_per_epoch"] == 10.0
    assert data["cells"]["table9:lewel_m:seconds"]["runs"] == [[key, 0, 0]]


def test_the_same_run_at_the_small_scale_fills_both_tables(lab: Lab) -> None:
    """Nothing is in mixed precision there, so Table 9's MoCo v2 is Table 1's."""
    assert lab.pretrained("moco_v2_amp_100ep") == lab.pretrained("moco_v2_100ep")


@pytest.mark.parametrize("suite", ["paper", "shapes", "cifar10"])
@pytest.mark.parametrize("id", TABLES)
def test_every_cell_of_every_table_can_be_filled(id: str, suite: str, tmp_path: Path) -> None:
    """Each missing cell has a command, whose plan holds the job that fills it."""
    scale = suites.SUITES[suite]
    datasets = Datasets(Site(), tmp_path, scale, needed=False)
    filled = Board(tmp_path, scale, datasets).filled(id)
    assert {cell for cell, entry in filled.entries.items() if entry.state} == {
        (row.id, column.id) for row, column in load(id).cells()
    }
    if suite == "cifar10":  # it has no scale for detection and segmentation
        return
    jobs = planning.jobs(scale, datasets, table=(id,))
    keys = {job.key for job in jobs}
    for entry in filled.entries.values():
        for slot in entry.slots:
            assert slot.key in keys and slot.command and slot.state == "missing"


def test_settings_show_the_rows_that_can_have_them(lab: Lab) -> None:
    lab.settings = [("args.h", 1)]
    entries = lab.board().filled("1").entries
    assert entries["lewel_m", "100:top1"].slots and not entries["pcl", "200:top1"].slots
    other = entries["instdisc", "200:top1"]
    assert (other.state, other.verdict) == (None, "published only")  # nothing can be missing of it
    assert other.reasons == (
        "instdisc cannot have the settings: unknown argument of instdisc 'h'. "
        "Known: dim, keep, m, tau",
    )
    filled = lab.board().filled("1")
    assert not any(":instdisc:" in cell for cell in filled.missing())
    for form in ("md", "html", "json", "csv"):
        assert "cannot have the settings" in render([filled], form)
    lab.settings = [("args.d", 16)]
    lab.pretrained("lewel_b_100ep")
    overhead = lab.cells("lewel_b")["overhead"]
    assert overhead.reasons == (
        "byol_100ep, the baseline, cannot have the settings: unknown argument of byol 'd'. "
        "Did you mean 'dim'? Known: bias, dim, hidden",
    )
    lab.settings = [("args.queue", 512)]
    assert not any(entry.slots for entry in lab.board().filled("7").entries.values())
    lab.settings = [("args.headz", 1)]
    with pytest.raises(ValueError, match="headz"):
        lab.board().filled("7")


@pytest.mark.parametrize("value", ["word", "true", "1e5", '"a"', "null", True, 0.1, [0.1], None])
def test_a_setting_is_written_as_it_is_read(value: Any) -> None:
    assert parse_setting(f"args.name={format_setting(value)}") == ("args.name", value)


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("linear_lars", (), "linear_lars, chosen on 10009 held-out images"),
        ("linear_lars_in100", (), "linear_lars_in100, chosen on 1000 held-out images"),
        ("linear_sgd_text", (), "linear_sgd_text, one learning rate"),
        ("semi_1pct", (), "semi_1pct, chosen on 10009 held-out images"),
        (
            "linear_sgd",
            (("linear_sgd.refit", True),),
            "linear_sgd, chosen on 10009 held-out images, trained again on all images",
        ),
        (
            "voc07_det_c4",
            (("voc07_det_c4.engine", "detectron2"),),
            "voc07_det_c4, engine detectron2, chosen on 2510 held-out images, "
            "trained again on all images",
        ),
        ("knn", (), "knn"),
    ],
)
def test_how_a_protocol_measures(name: str, changes: Any, text: str) -> None:
    protocol = ScaledCatalog(PACKAGED, suites.PAPER, changes).protocol(name)
    assert protocol.describe().measured == text


def test_json_of_a_cost_says_how_it_was_measured(lab: Lab) -> None:
    lab.pretrained("byol_100ep")
    rows = json.loads(render([lab.board().filled("9")], "json"))["rows"]
    (cell,) = [row["cells"]["seconds"] for row in rows if row["id"] == "byol"]
    assert (cell["recipe"], cell["protocol"], cell["epochs"]) == ("byol", None, 100)
    assert cell["setting"].startswith("8 x Tesla V100") and cell["unit"] == "s"


def test_text_of_another_lab_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    show({"ran\x07": "run\x1b]0;hi\x07", "several\x07": ["a\x9bb", {"c": "\r"}]})
    shown = capsys.readouterr().out
    assert (
        "\x07" not in shown
        and "ran\\x07: run\\x1b]0;hi\\x07" in shown
        and "a\\x9bb" in shown
        and "c: \\x0d" in shown
    )
