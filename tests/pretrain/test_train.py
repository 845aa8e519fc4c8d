"""The pre-training loop: splitting the work changes only the last bits, a resume none."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from lewel_bench.pretrain import checkpoint, pacer, train
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.collapse import collapse_note
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.folder import read_folder
from lewel_bench.pretrain.recipe import Backbone, Ema, Optimizer, Recipe, Schedule
from lewel_bench.pretrain.report import Report, Stopped, never, silent
from lewel_bench.pretrain.train import Trained

METHODS = {
    "lewel_m": {"queue": 64, "d": 16},
    "moco_v2": {"queue": 64, "dim": 16},
    "lewel_b": {"d": 16},
    "byol": {"dim": 16},
    "densecl": {"queue": 64, "dim": 16},
    # with a state for each image, or computed from all images
    "instdisc": {"m": 20, "dim": 16},
    "pcl": {"queue": 64, "dim": 16, "clusters": "4,6", "warmup": 0},
    # with the positions of the crops
    "pixpro": {"dim": 16, "alpha": 1.0},
    "resim": {"queue": 64, "dim": 16, "fpn": 8, "near": 12},
    "simsiam": {"dim": 16},
    "supervised": {},
    # whose losses join all images of a batch
    "barlow_twins": {"dim": 16},
    "simclr": {"dim": 16},
    "swav": {"dim": 16, "prototypes": 8, "queue": 96, "queue_from": 0},
}
JOINT = ("barlow_twins", "simclr", "swav")
AUGMENTS = {m: m for m in ("instdisc", "pixpro", "resim", "supervised", "swav")}
HEADLESS = ("instdisc", "supervised")


def recipe(method: str, **more: object) -> Recipe:
    fields = {
        "name": "tiny", "label": "tiny", "source": "test", "method": method, "image_size": 32,
        "args": {**METHODS[method], **({} if method in HEADLESS else {"hidden": 16})},
        "epochs": 1, "batch": 48, "bn_group": None if method in JOINT else 12,
        "backbone": Backbone(arch="resnet18", stem="small", width=8),
        "augment": AUGMENTS.get(method, "moco_v2") + "_no_blur",
        "optimizer": Optimizer(name="sgd", lr=0.001), "schedule": Schedule(),
        "ema": Ema(start=0.9, buffers=method in ("lewel_b", "byol")), **more,
    }  # fmt: skip
    return Recipe.model_validate(fields)


def run(spec: Recipe, images: Path, folder: Path, **machine: object) -> train.Trained:
    """One pre-training."""
    return train.run(
        spec, seed=0, images=read_folder(images, "train"), folder=folder,
        machine=Machine(**machine),  # type: ignore[arg-type]
        report=silent, stop=never,
    )  # fmt: skip


def trained(spec: Recipe, images: Path, folder: Path, **machine: object) -> dict[str, torch.Tensor]:
    """The backbone's weights after training."""
    return checkpoint.read_backbone(run(spec, images, folder, **machine).backbone)[0]


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    return max(
        float((first[k].double() - second[k].double()).abs().max() / second[k].double().abs().max())
        for k in first
        if first[k].is_floating_point() and second[k].abs().max() > 0
    )


@pytest.mark.parametrize("method", [m for m in METHODS if m not in JOINT])
def test_gradient_accumulation_is_exact(method: str, images: Path, tmp_path: Path) -> None:
    whole = trained(recipe(method), images, tmp_path / "whole")
    parts = trained(recipe(method), images, tmp_path / "parts", micro_batch=12)
    assert difference(whole, parts) < 1e-4


def _rank(rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    images = Path(os.environ["TEST_IMAGES"])
    with tempfile.TemporaryDirectory() as folder:
        done = {m: run(recipe(m), images, Path(folder) / m).backbone for m in METHODS}
        # only rank 0 writes the file
        return {m: checkpoint.read_backbone(done[m])[0] for m in METHODS} if rank == 0 else {}


def test_two_processes_train_as_one(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_IMAGES", str(images))
    two, _ = ranks.run(_rank, 2)
    for method in METHODS:
        # SwAV's first gradients are small differences of large numbers; test_methods.py compares
        # one and two processes in double precision
        bound = 1e-2 if method == "swav" else 1e-4
        assert difference(trained(recipe(method), images, tmp_path / method), two[method]) < bound


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_within_an_epoch_goes_on_bit_for_bit(
    method: str, images: Path, tmp_path: Path
) -> None:
    spec = recipe(method, batch=12, epochs=2)  # 4 steps each
    whole = trained(spec, images, tmp_path / "whole")
    asked = iter(range(100))
    with pytest.raises(Stopped, match="saved at step 6 of 8"):
        train.run(
            spec, seed=0, images=read_folder(images, "train"), folder=tmp_path / "parts",
            machine=Machine(), report=silent, stop=lambda: next(asked) == 5,
        )  # fmt: skip
    parts = trained(spec, images, tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def _stopped_rank(rank: int, world: int) -> list[object]:
    pacer.ASK_EVERY = 2
    spec, images = recipe("byol", batch=12, epochs=2), Path(os.environ["TEST_IMAGES"])
    folder = Path(os.environ["TEST_FOLDER"])
    try:
        train.run(
            spec, seed=0, images=read_folder(images, "train"), folder=folder / "parts",
            machine=Machine(), report=silent, stop=lambda: rank == 1,
        )  # fmt: skip
    except Stopped as stopped:
        message = str(stopped)
    run(spec, images, folder / "parts")
    run(spec, images, folder / "whole")
    return [message]


def test_two_processes_stop_together_when_one_is_asked(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_IMAGES", str(images))
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    assert ranks.run(_stopped_rank, 2) == [["saved at step 2 of 8"]] * 2
    whole, parts = (
        checkpoint.read_backbone(tmp_path / name / "backbone.safetensors")[0]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_monitor_changes_no_weight_and_outlives_a_stop(images: Path, tmp_path: Path) -> None:
    spec = recipe("byol", batch=12, epochs=2)  # 4 steps each
    seen: list[tuple[int, float]] = []

    def monitor(net: ResNet, epoch: int) -> dict[str, float]:
        assert not net.training
        seen.append((epoch, float(net.bn1.running_mean.norm())))
        return {"effective_rank": 3.0 if epoch else 30.0}

    def train_until(folder: Path, stop: Callable[[], bool], report: Report = silent) -> Trained:
        return train.run(
            spec, seed=0, images=read_folder(images, "train"), folder=folder, machine=Machine(),
            report=report, stop=stop, monitor=monitor, monitor_every=1,
        )  # fmt: skip

    heard: list[tuple[str, dict[str, Any]]] = []
    done = train_until(tmp_path / "whole", never, lambda event, **f: heard.append((event, f)))
    assert [epoch for epoch, _ in seen] == [0, 1, 2] and seen[0][1] == 0 < seen[1][1]
    assert done.metrics["untrained_effective_rank"] == 30 and done.metrics["effective_rank"] == 3
    assert [f["message"] for event, f in heard if event == "warning"] == [
        f"epoch {epoch}: collapsed: effective rank 3.0 of 64, untrained 30.0" for epoch in (1, 2)
    ]
    with_monitor = checkpoint.read_backbone(done.backbone)[0]
    assert difference(trained(spec, images, tmp_path / "without"), with_monitor) == 0
    asked = iter(range(100))
    with pytest.raises(Stopped):
        train_until(tmp_path / "parts", lambda: next(asked) == 5)
    seen.clear()
    again = train_until(tmp_path / "parts", never)
    assert [epoch for epoch, _ in seen] == [2] and again.metrics == done.metrics
    assert difference(checkpoint.read_backbone(again.backbone)[0], with_monitor) == 0


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        ({"effective_rank": 2.4, "untrained_effective_rank": 30.6}, "2.4 of 2048, untrained 30.6"),
        ({"effective_rank": 15.0, "untrained_effective_rank": 100.0}, ""),
        ({"effective_rank": 2.4}, ""),  # an older record
        ({}, ""),
    ],
)
def test_collapse_is_a_small_share_of_the_untrained_rank(
    metrics: dict[str, float], note: str
) -> None:
    expected = f"collapsed: effective rank {note}" if note else ""
    assert collapse_note(metrics, Backbone()) == expected


def test_mixed_precision_trains(images: Path, tmp_path: Path) -> None:
    exact = run(recipe("byol"), images, tmp_path / "fp32").metrics["loss"]
    rounded = run(recipe("byol", precision="bf16"), images, tmp_path / "bf16").metrics["loss"]
    assert rounded != exact and abs(rounded / exact - 1) < 0.02


@pytest.mark.parametrize(
    ("fields", "machine", "message"),
    [
        ({"batch": 96}, {}, "fewer than one batch"),
        ({}, {"micro_batch": 8}, "whole batch-norm groups"),
        ({"bn_group": None}, {"micro_batch": 24}, "whole batch-norm groups"),
        (
            {"method": "barlow_twins", "bn_group": 12},
            {"micro_batch": 24},
            "barlow_twins compares all images of a batch",
        ),
    ],
)
def test_what_cannot_be_trained_is_named(
    fields: dict[str, object],
    machine: dict[str, object],
    message: str,
    images: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(recipe(**{"method": "byol", **fields}), images, tmp_path, **machine)
