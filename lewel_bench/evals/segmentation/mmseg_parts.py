"""What mmseg is given to run our protocols: a data set by lists of files, small stems, the mIoU
without rounding, and a hook that saves, stops and looks at the loss. Importing this registers them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from mmseg.models.backbones import ResNet
from mmseg.registry import DATASETS, METRICS, MODELS
from torch import nn

from lewel_bench.evals.clock import Clock
from lewel_bench.evals.segmentation import masks
from lewel_bench.files import write_atomically
from lewel_bench.pretrain import distributed
from lewel_bench.pretrain.pacer import ASK_EVERY, Pacer
from lewel_bench.pretrain.report import Report

LAST = "last_checkpoint"  # the file in which mmengine looks for the path of the newest one


class Diverged(Exception):
    """A loss that is not finite, at a step (1-based)."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Pruned(Exception):
    """A run that ends half-way; the message says why."""


@DATASETS.register_module()
class LewelBenchImages(BaseSegDataset):  # type: ignore[misc]
    """Image, mask and name of each image from a JSON file."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [
            {
                "img_path": image,
                "seg_map_path": mask,
                "label_map": None,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for image, mask, _ in json.loads(Path(self.ann_file).read_text())
        ]


@MODELS.register_module()
class LewelBenchResNet(ResNet):  # type: ignore[misc]
    """A ResNet that begins with a 3x3 convolution (stride 2: small, 1: cifar), without pooling."""

    def __init__(self, stem: str, **settings: Any) -> None:
        super().__init__(**settings)
        width = settings["stem_channels"]
        stride = 1 if stem == "cifar" else 2
        self.conv1 = nn.Conv2d(3, width, 3, stride=stride, padding=1, bias=False)
        self.maxpool = nn.Identity()


@METRICS.register_module()
class LewelBenchIoU(IoUMetric):  # type: ignore[misc]
    """mmseg's areas and ratios; its own summary rounds to two digits.

    Predicted labels are written to `folder`, if given, by the names in the file `pictures`: mmseg
    names them after the images, of which two may share a name.
    """

    def __init__(self, pictures: str = "", folder: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.names = {mask: name for _, mask, name in json.loads(Path(pictures).read_text())}

    def process(self, data_batch: Any, data_samples: Any) -> None:
        super().process(data_batch, data_samples)
        if self.folder is None:
            return
        for sample in data_samples:
            labels = sample["pred_sem_seg"]["data"][0].cpu().numpy().astype(np.uint8)
            masks.write(self.folder / f"{self.names[sample['seg_map_path']]}.png", labels)

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        areas = [sum(part) for part in zip(*results, strict=True)]
        ratios = self.total_area_to_metrics(*areas, ["mIoU"])
        iou = 100 * ratios["IoU"].astype(np.float64)  # (C,)
        named = zip(self.dataset_meta["classes"], iou.tolist(), strict=True)
        return {
            "miou": float(np.nanmean(iou)),
            "pixel_acc": float(100 * ratios["aAcc"]),
            "class_acc": float(np.nanmean(100 * ratios["Acc"])),
            "per_class": {name: None if np.isnan(v) else v for name, v in named},
        }


class Watch(Hook):  # type: ignore[misc]
    """Reports the loss, saves when due, half-way and at the end, and stops when asked; `halfway`
    is called with the checkpoint at step `half`."""

    priority = "LOWEST"  # after the schedulers, whose state is saved

    def __init__(
        self,
        folder: Path,
        report: Report,
        pacer: Pacer,
        clock: Clock,
        half: int | None,
        halfway: Callable[[Path], None],
    ) -> None:
        self.folder, self.report, self.pacer, self.clock = folder, report, pacer, clock
        self.half, self.halfway = half, halfway

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        step, steps, device = runner.iter + 1, runner.max_iters, outputs["loss"].device
        last, half = step == steps, step == self.half
        asks = self.pacer.asks(step, last=last or half)
        free = device.type == "cpu" or step % ASK_EVERY == 0  # fetching a loss makes a GPU wait
        # the loss is this rank's own: all leave, or the others would wait for it
        if (asks and (free or last or half)) and distributed.any_rank(
            not bool(outputs["loss"].isfinite().all()), device
        ):
            raise Diverged(step)
        if last or self.pacer.log_is_due():
            self.pacer.restart_log(step)
            loss = round(float(outputs["loss"].detach()), 6)
            self.report("step", step=step, steps=steps, loss=loss)
        if asks and self.pacer.save_is_due(now=last or half):
            checkpoint = save(runner, self.folder, step, self.clock.seconds())
            if half:
                self.halfway(checkpoint)
            if not last:
                self.pacer.saved(f"step {step} of {steps}")


def save(runner: Any, folder: Path, step: int, seconds: float) -> Path:
    """Write a checkpoint of mmengine's, then name it as the last, then remove those before."""
    path = folder / f"iter_{step}.pth"
    meta = {"seconds": seconds}
    runner.save_checkpoint(str(folder), path.name, meta=meta, by_epoch=False)
    distributed.wait()
    if distributed.rank() == 0:
        write_atomically(folder / LAST, str(path))
        for old in folder.glob("iter_*.pth"):
            if old != path:
                old.unlink(missing_ok=True)
    return path


def last(folder: Path) -> tuple[int, Path] | None:
    """The step and the file of the checkpoint that a run goes on from."""
    try:
        path = folder / Path((folder / LAST).read_text().strip()).name
    except OSError:
        return None
    return (int(path.stem.removeprefix("iter_")), path) if path.is_file() else None
