"""The verb `claims` on records of the shapes suite."""

import json
from pathlib import Path

import numpy as np
import pytest
from finished import SHAPES, board, finish

from lewel_bench.harness.board.claims import PREDICTIONS
from lewel_bench.harness.cli import main
from lewel_bench.harness.plan.suites import SUITES


def claims(root: Path, *words: str) -> int:
    return main(["claims", "--suite", "shapes", "--root", str(root), *words])


def write_predictions(folder: Path, right: int) -> None:
    """Those of 100 images, of which the first `right` are right."""
    folder.mkdir(exist_ok=True)
    top5 = np.where(np.arange(100) < right, 0, 1)[:, None] + np.array([0, 2, 3, 4, 5])
    files = np.array([f"{i}.jpg" for i in range(100)])
    np.savez(folder / PREDICTIONS, files=files, label=np.zeros(100, int), top5=top5)


def test_what_else_two_methods_differ_in_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlike = SHAPES.model_copy(update={"lr": {**SHAPES.lr, "moco_v2": 12}})
    monkeypatch.setitem(SUITES, "shapes", unlike)
    for seed in range(3):
        for recipe, value in (("lewel_m_100ep", 60.1), ("moco_v2_100ep", 58.0)):
            metrics = {"top1": value, "top5": 90.0}
            finish(tmp_path, recipe, "linear_lars", seed, suite=unlike, metrics=metrics)
    claims(tmp_path, "linear:lewel_m")
    out = " ".join(capsys.readouterr().out.split())
    assert "; besides the method, they differ in optimizer.lr (0.06, 0.09); paper +1.6" in out
    assert main(["table", "1", "--suite", "shapes", "--root", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "LEWEL_M and MoCov2*: besides the method, they differ in optimizer.lr" in shown
    assert shown.count("besides the method") == 1


def test_records_decide_and_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = "--set linear_lars.epochs=9"
    assert claims(tmp_path, "linear:lewel_m", *changed.split()) == 2
    out = capsys.readouterr().out
    assert "LEWEL_M is missing" in out
    hint = f"lewel-bench table 1 --suite shapes {changed} --root {tmp_path} --missing"
    assert out.splitlines()[-1] == f"what is missing: {hint}"
    for seed in range(3):
        for recipe, value in (("lewel_m_100ep", 60.0 + 5 * seed), ("moco_v2_100ep", 58.0)):
            value += 5 * seed if recipe == "moco_v2_100ep" else seed / 10
            finish(tmp_path, recipe, "linear_lars", seed, metrics={"top1": value, "top5": 90.0})
    assert claims(tmp_path, "linear:lewel_m") == 0
    out = capsys.readouterr().out
    assert out.startswith("supported     linear:lewel_m: LEWEL improves MoCo v2 by 1.6 points")
    assert "+2.1 [+1.9, +2.3] (n=3, t-interval over 3 seeds); paper +1.6" in out
    assert "besides the method" not in out  # the suite scales both alike
    for seed in range(3):
        for recipe, value in (("lewel_b_100ep", 60.0), ("byol_100ep", 61.0)):
            metrics = {"top1": value + seed / 50, "top5": 90.0}
            finish(tmp_path, recipe, "linear_sgd", seed, metrics=metrics)
    assert claims(tmp_path, "linear:lewel_b", "linear:lewel_m") == 1
    assert "suite shapes: 1 supported, 1 contradicted" in capsys.readouterr().out
    assert claims(tmp_path) == 1
    capsys.readouterr()
    assert claims(tmp_path, "--format", "json") == 1
    claims_by_id = {claim["id"]: claim for claim in json.loads(capsys.readouterr().out)["claims"]}
    assert claims_by_id["linear:lewel_b"]["judgement"] == "contradicted"
    (comparison,) = claims_by_id["linear:lewel_m"]["comparisons"]
    assert (
        comparison["of"] == "table1:lewel_m:100:top1"
        and len(comparison["keys"]) == 6
        and comparison["n"] == 3
    )
    assert (
        claims_by_id["coco:lewel_m"]["paper"] == "contradicted"
        and claims_by_id["coco:lewel_m"]["flaw"]
    )
    assert claims(tmp_path, "linear:lewel_m", "--format", "md") == 0
    assert (
        r"| supported | LEWEL\_M over MoCov2\*, 100 ep top-1 | supported: +2.1"
        in capsys.readouterr().out
    )


def test_one_seed_is_read_image_by_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe, right in (("lewel_m_100ep", 80), ("moco_v2_100ep", 70)):
        metrics = {"top1": float(right), "top5": 100.0}
        key = finish(tmp_path, recipe, "linear_lars", metrics=metrics)
        write_predictions(tmp_path / key, right)
    assert claims(tmp_path, "linear:lewel_m") == 2
    out = capsys.readouterr().out
    assert "bootstrap over 100 images" in out and "one seed, and the noise floor is unknown" in out
    assert board(tmp_path).suite.comparable is False


def test_one_that_only_chooses_is_read_where_its_candidate_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe, right in (("lewel_m_200ep", 80), ("moco_v2_200ep", 70)):
        candidate = f"{right:012}"  # its folder
        fields = {"outcome": {"extra": {"candidate": candidate}}, "upstream": (candidate,)}
        finish(tmp_path, recipe, "semi_1pct", metrics={"top1": float(right)}, **fields)
        write_predictions(tmp_path / candidate, right)
    assert claims(tmp_path, "semi:lewel_m") == 2
    assert "(n=1, bootstrap over 100 images)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["linear:lewelm"], "unknown claim 'linear:lewelm'. Did you mean 'linear:lewel_m'?"),
        (["--format", "jsn"], "unknown format 'jsn'. Did you mean 'json'?"),
        (["--set", "optimizer.rate=1"], "unknown field of optimizer 'rate'"),
    ],
)
def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert claims(tmp_path, *words) == 2
    assert message in capsys.readouterr().err
