"""Detection and segmentation through the real command line, on tiny generated scenes."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import Bench, command, environment

from lewel_bench.pretrain import shapes
from lewel_bench.pretrain.shapes import Counts

FEW = Counts(
    train=1, val=1, voc2007_train=6, voc2007_val=6, voc2007_test=4, voc2012_train=12,
    voc2012_val=4, coco_train=16, coco_val=4,
)  # fmt: skip
BACKBONE = {
    "image_size": 32, "backbone.width": 8, "epochs": 1, "batch": 16, "bn_group": 8,
    "schedule.warmup_epochs": 0, "args.hidden": 16, "args.queue": 64, "args.d": 16,
}  # fmt: skip
STEPS = {"held_out": 4, "batch": 2, "steps": 6, "lrs": [0.01, 0.02]}
DETECTION = {
    **STEPS, "milestones": [4], "warmup": 1, "min_sizes": [64], "test_size": 64, "precise_bn": 2,
    "rois": 8, "rpn_samples": 16, "pre_nms": [40, 20], "post_nms": [20, 10], "head_width": 8,
    "fc_width": 16,
}  # fmt: skip
PROTOCOLS: dict[str, dict[str, Any]] = {
    "voc07_det_c4": DETECTION,
    "coco_fpn_1x": DETECTION,
    "voc12_seg_fcn_d8": {**STEPS, "scale": [64, 64], "crop": 32, "head_width": 8, "aux_width": 8},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC and COCO data in their layouts."""
    return shapes.make(tmp_path_factory.mktemp("dense") / "shapes", counts=FEW)


def words(verb: str, images: Path, dense: Path, protocol: str, **more: Any) -> list[str]:
    """`run` (or what shows it) of LEWEL_M and one dense protocol at the tiny scale."""
    words = ["--suite", "shapes", "--data", str(images)]
    words += ["--data", f"voc={dense / 'VOCdevkit'}", "--data", f"coco={dense / 'coco'}"]
    for name, value in BACKBONE.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    for name, value in {**PROTOCOLS[protocol], **more}.items():
        words += ["--set", f"{protocol}.{name}={json.dumps(value)}"]
    if verb == "run":
        words += ["--method", "lewel_m", "--epochs", "200", "--evals", protocol, "--workers", "0"]
    return [*verb.split(), *words]


def records(root: Path) -> dict[str, dict[str, Any]]:
    loaded = [json.loads(path.read_text()) for path in root.glob("*/record.json")]
    return {file["name"]: file for file in loaded}


def results(root: Path) -> dict[str, Any]:
    return {name: (record["metrics"], record["outcome"]) for name, record in records(root).items()}


@pytest.mark.parametrize(
    ("protocol", "table", "column"),
    [("voc07_det_c4", "3", "ap50"), ("voc12_seg_fcn_d8", "3", "miou")],
)
def test_a_search_with_a_diverging_candidate_fills_its_cell(
    protocol: str, table: str, column: str, images: Path, dense: Path, bench: Bench, tmp_path: Path
) -> None:
    more = {"lrs": [1e12, 0.02], "refit": True, "trials": 2}
    length = ("--set", "epochs=12")  # those of 200 in this suite: a cell is of one length
    done = bench(*words("run", images, dense, protocol, **more), *length)
    assert done.returncode == 0, done.stderr
    by_name = records(tmp_path / "runs")
    (diverged,) = [file for name, file in by_name.items() if "lr 1e+12" in name]
    assert diverged["metrics"] == {} and diverged["outcome"]["extra"]["diverged_at_step"] >= 1
    final = by_name[f"{protocol} of lewel_m_200ep"]
    assert final["outcome"]["chosen"]["lr"] == 0.02
    assert "diverged at step" in " ".join(final["warnings"])
    assert len(final["outcome"]["grid"]) == 2 and final["outcome"]["paper_rule"]["lr"] == 0.02
    asked = words(f"table {table}", images, dense, protocol, **more)
    shown = bench(*asked, *length, "--format", "json")
    rows = {row["id"]: row["cells"] for row in json.loads(shown.stdout)["rows"]}
    cell = rows["lewel_m:200"][column]
    assert (cell["n"], cell["engine"], cell["protocol"]) == (1, "native", protocol)
    assert cell["trial_std"] is not None and len(cell["keys"]) == 2
    metric = {"ap50": "box_ap50", "miou": "miou"}[column]
    trials = [final, by_name[f"{protocol} of lewel_m_200ep, trial 1"]]
    assert cell["mean"] == pytest.approx(sum(trial["metrics"][metric] for trial in trials) / 2)
    again = bench(*words("run", images, dense, protocol, **more), *length)
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_killed_fine_tuning_ends_as_an_undisturbed_one(
    protocol: str, images: Path, dense: Path, tmp_path: Path
) -> None:
    run = words("run", images, dense, protocol, lrs=[0.01], refit=True, trials=1)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    options: dict[str, Any] = {"env": environment(), "text": True, "start_new_session": True}
    whole = subprocess.run(command(*run), cwd=tmp_path / "undisturbed", check=False, **options)
    assert whole.returncode == 0
    step = random.randint(1, 6)  # 6: during the evaluation
    print(f"killed once a checkpoint at step {step} was there")
    folder = tmp_path / "killed" / "runs"
    process = subprocess.Popen(
        command(*run, "--save-every", "0.001"), cwd=tmp_path / "killed", **options
    )
    until = time.monotonic() + 200
    while not [p for p in folder.glob("*/checkpoint-*") if _step(p) >= step and _dense(p)]:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not any(protocol in name for name in records(folder))
    done = subprocess.run(command(*run), cwd=tmp_path / "killed", check=False, **options)
    assert done.returncode == 0
    assert results(folder) == results(tmp_path / "undisturbed" / "runs")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _dense(checkpoint: Path) -> bool:
    return json.loads((checkpoint.parent / "spec.json").read_text())["kind"] == "final"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "voc07_det_c4.lrs=[]"], "lrs"),
        (["--lrs", "none"], "write learning rates"),
        (["--engine", "detectron"], "Did you mean 'detectron2'"),
        (["--engine", "mmseg"], "no selected evaluation runs on it"),
        (["--data", "voc=/does/not/exist"], "no folder"),
        (
            ["--set", "voc07_det_c4.held_out=100"],
            "held_out 100: at most 27 of the 28 training images",
        ),
        (["--set", "voc07_det_c4.masks=true"], "masks need metric coco"),
        (["--set", "voc07_det_c4.anchors=[]"], "anchors is empty"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    change: list[str], message: str, images: Path, dense: Path, bench: Bench, tmp_path: Path
) -> None:
    done = bench(*words("run", images, dense, "voc07_det_c4"), *change)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not records(tmp_path / "runs")


def test_a_missing_engine(images: Path, dense: Path, bench: Bench) -> None:
    site = Path(bench("--version").args[0]).parent  # an interpreter is asked for, this is a folder
    assert site.is_dir()
    run = words("run", images, dense, "voc07_det_c4", engine="detectron2")
    config = Path(dense.parent / "site.toml")
    config.write_text(f'[engines]\ndetectron2 = "{site}"\n')
    done = subprocess.run(
        command(*run), cwd=dense.parent, text=True, capture_output=True, check=False,
        env=environment(LEWEL_BENCH_CONFIG=str(config)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "engine detectron2 does not work: interpreter /" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_annotations_stop_a_run_and_are_named(
    images: Path, dense: Path, bench: Bench, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dense, broken)
    xml = sorted((broken / "VOCdevkit" / "VOC2007" / "Annotations").glob("*.xml"))[0]
    xml.write_text(xml.read_text().replace("<xmin>", "<xmin>9", 1))
    done = bench(*words("run", images, broken, "voc07_det_c4"))
    assert done.returncode == 2 and xml.name in done.stderr
    assert "Traceback" not in done.stderr and not records(tmp_path / "runs")
    checked = bench("data", "check", broken / "VOCdevkit")
    assert checked.returncode == 2 and xml.name in checked.stderr
    assert bench("data", "check", dense / "coco").returncode == 0
