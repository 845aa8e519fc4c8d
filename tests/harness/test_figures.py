"""Charts of what is under a run root: every point is a record's or a log's."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import Bench, write_images
from finished import board, finish

from lewel_bench.harness.cli import main
from lewel_bench.harness.figures.ablation import ablation
from lewel_bench.harness.figures.curves import curves
from lewel_bench.harness.figures.lr_search import search
from lewel_bench.harness.figures.maps import maps, telling
from lewel_bench.harness.plan.plan import Job
from lewel_bench.pretrain import checkpoint, methods
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results.curves import logged
from lewel_bench.results.figures.chart import Unmeasured

LINEAR = "linear_lars_in100"


def test_figure_3a_has_the_means_of_the_records(tmp_path: Path) -> None:
    accuracies = {"lewel_m_beta030_in100_240ep": (60.0, 62.0, 70.0), "lewel_m_in100_240ep": (71.0,)}
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            finish(tmp_path, name, LINEAR, seed, metrics={"top1": value})
    chart, command = ablation(board(tmp_path), "3a")
    (panel,) = chart.panels  # nothing of the segmentation is there
    (series,) = panel.series  # nothing published is at this scale
    assert series.x == (0.3, 0.5) and series.y == (64.0, 71.0)
    assert series.spread == (pytest.approx(28**0.5), 0.0) and series.texts == ("n=3", "n=1")
    assert panel.ticks == (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1) and panel.spans[0] == (0, 0.3, "[1]")
    assert "‘when β is too small (e.g., ≤ 0.3)" in chart.notes[0]
    assert any("prints no numbers" in n and "82.1" in n and "not drawn" in n for n in chart.notes)
    assert chart.notes[-1] == (
        "Not measured (with all seeds): IN-100 top-1 at 0, 0.1, 0.7, 0.9, 1; "
        "VOC12 mIoU at 0, 0.1, 0.3, 0.5, 0.7, 0.9, 1."
    )
    assert "lewel_m_beta000_in100_240ep" in command
    assert "--evals linear_lars_in100,voc12_seg_fcn_d8" in command


def test_a_figure_names_its_points_of_collapsed_networks(tmp_path: Path) -> None:
    note = "collapsed: effective rank 2.4 of 128, untrained 30.6"
    for name, warnings in (("beta030_in100", (note,)), ("in100", ())):
        finish(tmp_path, f"lewel_m_{name}_240ep", LINEAR, metrics={"top1": 9.0}, warnings=warnings)
    chart, _ = ablation(board(tmp_path), "3a")
    assert [text for text in chart.notes if "collapsed" in text] == [f"At 0.3: {note}."]


def test_what_a_figure_lacks_is_named_seed_by_seed(tmp_path: Path) -> None:
    for seed in range(3):
        for name in ("lewel_m_beta030_in100_240ep", "lewel_m_in100_240ep"):
            key = finish(tmp_path, name, LINEAR, seed, metrics={"top1": 60.0})
            if seed == 2:
                (tmp_path / key / "record.json").unlink()
    first, then = ablation(board(tmp_path), "3a")[1].split(" && ")
    assert "--seeds" not in first and "lewel_m_beta000_in100_240ep" in first
    methods = "lewel_m_beta030_in100_240ep,lewel_m_in100_240ep"
    assert then == (
        f"lewel-bench run --suite shapes --method {methods} --evals {LINEAR} --seeds 2, "
        f"--root {tmp_path}"
    )


def test_a_figure_without_a_point_names_the_command(tmp_path: Path, bench: Bench) -> None:
    done = bench("figure", "3b", "--suite", "shapes", "--out", tmp_path / "a.svg")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "lewel-bench run --suite shapes --method lewel_m_c8_in100_240ep," in done.stderr
    assert not (tmp_path / "a.svg").exists()


GRID = [
    {"lr": 0.1, "weight_decay": 0.0, "select_top1": 50.0, "top1": 51.0},
    {"lr": 0.4, "weight_decay": 0.0, "select_top1": 55.0, "top1": 53.5},
    {"lr": 1.6, "weight_decay": 0.0, "select_top1": None, "top1": None},
    {"lr": 0.2, "weight_decay": 0.0, "select_top1": 54.0, "top1": 54.5},
]


def test_a_search_shows_its_grid_its_choice_and_what_is_gone(tmp_path: Path) -> None:
    outcome = {"chosen": {"lr": 0.4, "weight_decay": 0.0}, "grid": GRID}
    metrics = {"top1": 53.5}
    finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics=metrics, outcome=outcome)
    chart = search(board(tmp_path), "table1:lewel_m:200:top1")
    (panel,) = chart.panels
    held_out, reported, star = panel.series
    assert (held_out.x, held_out.y) == ((0.1, 0.2, 0.4), (50.0, 54.0, 55.0))
    assert (reported.x, reported.y) == ((0.1, 0.2, 0.4), (51.0, 54.5, 53.5))
    assert (star.kind, star.x, star.y) == ("star", (0.4,), (55.0,))
    assert panel.scale == "log" and panel.ticks == (0.1, 0.2, 0.4, 1.6)
    assert any("diverged or stopped early at lr 1.6" in note for note in chart.notes)
    assert not any("edge" in note or "widen" in note for note in chart.notes)


def test_a_choice_at_the_edge_is_said(tmp_path: Path) -> None:
    outcome = {"chosen": {"lr": 0.1, "weight_decay": 0.0}, "grid": GRID}
    finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 51.0}, outcome=outcome)
    chart = search(board(tmp_path), "table1:lewel_m:200:top1")
    assert any("the smallest of the grid" in note for note in chart.notes)


def test_two_rates_give_a_line_for_each_of_the_lesser(tmp_path: Path) -> None:
    grid = [
        {"backbone_lr": b, "head_lr": h, "select_top1": 10 * h + b, "top1": 20 * h + b}
        for b in (0.1, 0.2, 0.3)
        for h in (1.0, 2.0)
    ]
    outcome = {"chosen": {"backbone_lr": 0.3, "head_lr": 2.0}, "grid": grid}
    finish(tmp_path, "lewel_m_200ep", "semi_1pct", metrics={"top1": 40.3}, outcome=outcome)
    (panel,) = search(board(tmp_path), "table2:lewel_m:200:1pct:top1").panels
    assert [series.label for series in panel.series] == [
        "held-out images, head lr 1",
        "held-out images, head lr 2",
        "reported images, head lr 1",
        "reported images, head lr 2",
        "chosen",
    ]
    assert panel.x_label == "backbone lr" and panel.series[3].y == (40.1, 40.2, 40.3)


def test_what_has_no_search_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is missing\. Compute it with: lewel-bench run"):
        search(board(tmp_path), "table1:lewel_m:200:top1")
    with pytest.raises(ValueError, match="no learning rate is searched"):
        search(board(tmp_path), "table9:lewel_m:hours")
    with pytest.raises(ValueError, match="Did you mean 'lewel_m'"):
        search(board(tmp_path), "table1:lewel_n:200:top1")
    outcome = {"chosen": {"lr": 0.1, "weight_decay": 0.0}, "grid": GRID[:1]}
    finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 51.0}, outcome=outcome)
    with pytest.raises(ValueError, match="one candidate"):
        search(board(tmp_path), "table1:lewel_m:200:top1")


@pytest.mark.parametrize(
    "outcome",
    [
        {},
        {"chosen": 3, "grid": [1, 2]},
        {"chosen": {"lr": "x"}, "grid": "no"},
        {"chosen": {"lr": "x"}, "grid": [{"lr": "x"}, {"lr": [1]}, None]},
        {"chosen": {}, "grid": [{}, {}]},
    ],
)
def test_another_labs_record_without_a_search_is_said(
    tmp_path: Path, outcome: dict[str, object]
) -> None:
    """An outcome is free JSON."""
    finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 51.0}, outcome=outcome)
    with pytest.raises(Unmeasured, match="one candidate"):
        search(board(tmp_path), "table1:lewel_m:200:top1")


def _log(path: Path, *events: dict[str, object], torn: str = "") -> None:
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + torn)


def _step(step: int, loss: float) -> dict[str, object]:
    return {"event": "step", "step": step, "steps": 40, "epoch": step / 10, "loss": loss, "lr": 1.0}


def test_a_log_is_read_as_the_run_went_and_what_was_done_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _log(
        path,
        {"event": "start", "seed": 3, "time": 1.0},
        _step(5, 4.0),
        _step(12, 3.0),
        {"event": "monitor", "epoch": 1, "step": 10, "knn_top1": 30.0},
        _step(22, 2.5),
        {"event": "resumed", "step": 15, "steps": 40},
        _step(18, 2.0),
        _step(30, 1.0),
        {"event": "monitor", "epoch": 3, "step": 30, "knn_top1": 50.0, "good": True},
        torn='{"event": "step", "step": 39, "lo',
    )
    curves = {curve: points for curve, candidate, points in logged(path) if candidate is None}
    assert curves == {
        ("loss", "epoch"): [(0.5, 4.0), (1.2, 3.0), (1.8, 2.0), (3.0, 1.0)],
        ("knn_top1", "epoch"): [(1, 30.0), (3, 50.0)],
    }
    assert logged(tmp_path / "nothing.jsonl") == []


def test_a_figure_of_many_runs_has_a_name_that_a_disk_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 1.0})
    events = [{"event": "step", "step": step, "steps": 9, "loss": 1.0} for step in (1, 2)]
    (tmp_path / key / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
    monkeypatch.chdir(tmp_path)
    for count, name in ((2, f"{key}-{key}"), (22, f"{key}-{key}-{key}-19-more")):
        assert main(["figure", "curves", *[key] * count, "--root", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"figure-curves-{name}.svg\n"


def test_curves_of_candidates_and_of_runs(tmp_path: Path) -> None:
    outcome = {"chosen": {"lr": 0.2, "weight_decay": 0.0}, "grid": GRID[:2]}
    key = finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 51.0}, outcome=outcome)
    losses = {"event": "epoch", "epoch": 1, "epochs": 2, "factor": 1.0, "train_loss": [2.0, None]}
    _log(tmp_path / key / "events.jsonl", losses, {**losses, "epoch": 2, "train_loss": [1.5, 3.0]})
    (panel,) = curves(board(tmp_path), [key, key]).panels
    assert [(series.x, series.y) for series in panel.series] == [
        ((1, 2), (2.0, 1.5)),
        ((2,), (3.0,)),
    ]
    assert [series.label[-8:] for series in panel.series] == [", lr 0.1", ", lr 0.4"]
    first = next(k for k in board(tmp_path).states if k != key)
    with pytest.raises(ValueError, match=r"no curves are logged for .*done"):
        curves(board(tmp_path), [first])
    with pytest.raises(ValueError, match=f"Did you mean '{key}'"):
        curves(board(tmp_path), [key[:-1] + "x"])


@pytest.mark.parametrize("name", ["lewel_m", "lewel_b"])
def test_maps_are_those_that_the_encoder_makes(name: str) -> None:
    recipe = RECIPES[f"{name}_200ep"]
    small = {"arch": "resnet18", "stem": "small", "width": 8}
    args = {"d": 16, "hidden": 16} | ({"queue": 256} if name == "lewel_m" else {"scale": 0.5})
    recipe = recipe.model_copy(
        update={"backbone": type(recipe.backbone)(**small), "args": args, "batch": 64}
    )
    method = methods.build(recipe, 0)
    x = torch.randn(2, 3, 3, 64, 64)
    W = maps(method, x, recipe)
    assert W.shape[:3] == (2, 3, 16)
    torch.testing.assert_close(W.sum((-2, -1)), torch.ones(2, 3, 16))
    method.eval()
    with torch.no_grad():
        expected = method.online(x[1]).W  # (B, P, d)
    torch.testing.assert_close(W[1].flatten(2).transpose(1, 2), expected)


def test_telling_maps_vary_and_differ() -> None:
    """Map 1 varies most, 3 is the same at half the height, 0 varies elsewhere, 2 is uniform."""
    W = torch.full((2, 4, 2, 2), 0.25)
    peak = torch.tensor([[0.2, -0.1], [-0.1, 0.0]])
    W[:, 1] += 2 * peak
    W[:, 3] += peak
    W[:, 0] += 0.1 * peak.flip(0, 1)
    assert telling(W, 2) == [1, 0]
    assert telling(W, 4) == [1, 0, 2, 3]


@pytest.mark.parametrize("done", [True, False])
def test_figure_5_without_weights_says_what_helps(
    done: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run, as a bundle brings it, is not made again by the command alone."""
    last = finish(tmp_path, "lewel_b_200ep", "linear_lars", 2, metrics={"top1": 1.0})
    (key,) = (path.parent.name for path in tmp_path.glob("*/record.json") if path.parts[-2] != last)
    if not done:
        (tmp_path / key / "record.json").unlink()
    assert main(["figure", "5", key, "--images", str(tmp_path), "--root", str(tmp_path)]) == 2
    output = capsys.readouterr().err
    assert output.endswith(
        "with its --data and --set: lewel-bench run --suite shapes --method lewel_b_200ep "
        f"--evals none --seeds 2, --root {tmp_path}\n"
    )
    assert ("ask for one with --weights; to pre-train it again remove" in output) == done
    assert ("has no weights yet" in output) != done


def test_figure_5_of_a_run_of_any_images(
    tmp_path: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a finished run, the same bytes twice; then what cannot be drawn is said."""
    data = write_images(tmp_path / "data")
    settings = "image_size=32 batch=16 bn_group=16 epochs=1 args.queue=64 args.d=16 args.hidden=16"
    sets = [word for setting in settings.split() for word in ("--set", setting)]
    run = bench(
        "run", "--suite", "shapes", "--method", "lewel_m", "--epochs", "200", "--evals", "none",
        "--data", data, *sets,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (folder,) = (p.parent for p in tmp_path.glob("runs/*/projector.safetensors"))
    header = checkpoint.read_backbone(folder / "projector.safetensors")[1]
    assert header["backbone"] == checkpoint.sha256(folder / "backbone.safetensors")
    out = tmp_path / "maps.svg"

    def draw(*arguments: str | Path) -> str:
        """In this process: each of its own would import torch again."""
        root = ("--root", tmp_path / "runs", "--out", out)
        code = main(["figure", "5", *map(str, (*arguments, *root))])
        output = capsys.readouterr()
        assert (code, output.out) == ((2, "") if output.err else (0, f"{out}\n"))
        return output.err

    wanted = (folder, "--images", data / "val", "--count", "2")
    assert draw(*wanted, "--channels", "3,15") == ""
    first = out.read_bytes()
    assert b"<!-- map 15 -->" in first and first.count(b"<image") == 2 * (1 + 2 * 3)
    assert draw(*wanted, "--channels", "3,15") == "" and out.read_bytes() == first
    assert draw(*wanted, "--channels", "15,3") == "" and out.read_bytes() != first
    assert draw(folder.name, "--count", "1") == ""  # its own validation images
    assert "numbers from 0 to 15" in draw(*wanted, "--channels", "16")
    assert "has 18 images" in draw(folder.name, "--count", "99")
    assert "has 16 maps" in draw(*wanted, "--maps", "9999")
    (tmp_path / "few").mkdir()
    shutil.copy(data / "val" / "class0" / "000.jpg", tmp_path / "few")
    assert draw(folder, "--images", tmp_path / "few") == ""  # fewer than are drawn by default
    assert "no image in it" in draw(folder.name, "--images", tmp_path / "runs")
    assert "unknown run" in draw("a0b1c2d3e4f5")
    assert draw(folder / "backbone.safetensors", *wanted[1:], "--channels", "3,15") == ""
    assert out.read_bytes() == first
    assert "is no checkpoint of PyTorch" in draw(data / "val" / "class0" / "000.jpg")
    (folder / "backbone.safetensors").write_bytes((folder / "spec.json").read_bytes())
    assert "does not belong to the backbone" in draw(*wanted)
    (folder / "projector.safetensors").unlink()
    # an interrupted run has a checkpoint of the whole method
    job = Job.model_validate_json((folder / "spec.json").read_text())
    assert job.recipe is not None
    state = {"method": methods.build(job.recipe, 7).state_dict()}
    saved = checkpoint.save(folder, 1, state)
    assert draw(*wanted) == "" and draw(saved, *wanted[1:]) == ""
    assert out.read_bytes() != first
    saved.write_bytes(saved.read_bytes()[:-1])
    assert "is corrupt" in draw(saved, *wanted[1:])
    saved.unlink()
    assert "lewel-bench run --suite shapes --method lewel_m_200ep" in draw(*wanted)
