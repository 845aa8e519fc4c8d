"""A collapsed pre-training is named in its record and in those of its evaluations."""

import json
from pathlib import Path

import planning
import pytest
from command_line import write_images
from finished import finish

from lewel_bench.harness.cli import main
from lewel_bench.harness.jobs import job as jobs
from lewel_bench.harness.plan import suites
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.harness.rundir import EVENTS
from lewel_bench.pretrain import collapse
from lewel_bench.pretrain.report import never, silent
from lewel_bench.results.record import Record

SHAPES = suites.SUITES["shapes"]
SMALL = (
    ("args.dim", 16), ("args.hidden", 16), ("batch", 8), ("bn_group", 8), ("epochs", 2),
    ("image_size", 32), ("backbone.width", 8), ("schedule.warmup_epochs", 0),
    ("knn.image_size", 32), ("knn.resize", 36),
)  # fmt: skip


def records(tmp_path: Path) -> list[Record]:
    """Of a short pre-training and its kNN evaluation."""
    write_images(tmp_path / "data")
    root = tmp_path / "runs"
    datasets = Datasets(Site(), root, SHAPES, {"": tmp_path / "data"}, needed=True)
    settings = MachineSettings(device="cpu", workers=0)
    planned = planning.jobs(
        SHAPES, datasets, method=("byol",), epochs=(200,), evals=("knn",), settings=SMALL
    )
    return [jobs.run(job, root, settings, silent, never) for job in planned]


def test_the_ranks_are_kept_and_a_collapse_is_named_wherever_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "SHARE", 100.0)  # any network falls below it
    pretraining, evaluation = records(tmp_path)
    rank, untrained = (
        pretraining.metrics[name] for name in ("effective_rank", "untrained_effective_rank")
    )
    assert 1 < rank <= 64 and 1 < untrained <= 64
    note = f"collapsed: effective rank {rank:.1f} of 64, untrained {untrained:.1f}"
    assert note in pretraining.warnings and note in evaluation.warnings
    lines = (tmp_path / "runs" / pretraining.key / EVENTS).read_text().splitlines()
    events = [json.loads(line) for line in lines]
    monitored = {e["epoch"]: e["effective_rank"] for e in events if e["event"] == "monitor"}
    assert monitored == {0: untrained, 1: monitored[1], 2: rank}
    warned = [e["message"] for e in events if e["event"] == "warning"]
    assert f"epoch 2: {note}" in warned and note in warned


def test_a_pretraining_that_did_not_collapse_is_not_marked(tmp_path: Path) -> None:
    for record in records(tmp_path):
        assert not collapse.note_among(record.warnings)


def test_tables_and_claims_mark_a_number_of_a_collapsed_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "collapsed: effective rank 2.4 of 128, untrained 30.6"
    for seed in (0, 1):
        finish(tmp_path, "byol_100ep", "linear_sgd", seed, metrics={"top1": 50.0 + seed})
        outcome = {"warnings": (note,)} if seed else {}
        finish(
            tmp_path, "lewel_b_100ep", "linear_sgd", seed,
            metrics={"top1": 40.5 + seed}, before=outcome, **outcome,
        )  # fmt: skip
    at = ["--suite", "shapes", "--root", str(tmp_path)]
    assert main(["table", "1", *at]) == 0
    lines = capsys.readouterr().out.splitlines()
    (mark,) = (line.split()[0] for line in lines if line.endswith(f"] {note}"))
    assert [line for line in lines if "41.0" in line and mark in line]
    assert not [line for line in lines if "50.5" in line and mark in line]
    main(["claims", "linear:lewel_b", *at])
    assert f"LEWEL_B: {note}" in capsys.readouterr().out
