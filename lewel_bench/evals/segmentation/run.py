"""Segmentation: fine-tuning a segmenter on a backbone and measuring its mIoU."""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lewel_bench.evals import finetune
from lewel_bench.evals.context import Context
from lewel_bench.evals.finetune import Role
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.evals.segmentation import loader, masks, metric
from lewel_bench.evals.segmentation.labelled_images import LabelledImages
from lewel_bench.evals.segmentation.loader import Batch
from lewel_bench.evals.segmentation.model import Segmenter
from lewel_bench.files import write_atomically
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.distributed import rank, share, world
from lewel_bench.pretrain.norm import BatchNorm

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Segmentation


def run(
    protocol: "Segmentation",
    *,
    candidate: tuple[float, float],
    backbone: Path,
    splits: DenseSplits[LabelledImages],
    context: Context,
    rivals: Sequence[float] = (),
    python: str | None = None,
) -> Outcome:
    """Fine-tune at `candidate` = (lr, weight decay) with the protocol's engine; see finetune.run.

    `python` is the interpreter in which the engine mmseg is, where that is not this one.

    `metrics` are miou, pixel_acc and class_acc on the report split, whose predicted labels are
    written to `folder/predictions/NAME.png`, and with the native engine every image's confusion
    (N, C, C) to `folder/predictions.npz`.
    """
    splits.check()
    share(protocol.batch)
    if protocol.engine == "mmseg":
        from lewel_bench.evals.segmentation import mmseg

        return mmseg.run(
            protocol,
            candidate=candidate,
            backbone=backbone,
            splits=splits,
            seed=context.seed,
            folder=context.folder,
            machine=context.machine,
            report=context.report,
            stop=context.stop,
            rivals=rivals,
            python=python,
        )
    learner = _Segmentation(protocol, candidate, backbone, splits, context)
    factor = partial(lr_factor, protocol, candidate[0])
    return finetune.run(learner, protocol, candidate, splits, factor, context, rivals)


def lr_factor(protocol: "Segmentation", lr: float, step: int) -> float:
    """What the rate `lr` is multiplied by at `step` (0-based).

    Reaches min_lr at the last step, as mmengine's PolyLR; where min_lr is above `lr` the rate rises
    to it.
    """
    left = 1 - step / max(1, protocol.steps - 1)
    rate: float = (lr - protocol.min_lr) * left**protocol.power + protocol.min_lr
    return rate / lr


class _Segmentation:
    """The segmenter as what `finetune.run` trains."""

    def __init__(
        self,
        protocol: "Segmentation",
        candidate: tuple[float, float],
        backbone: Path,
        splits: DenseSplits[LabelledImages],
        at: Context,
    ) -> None:
        self.protocol, self.splits, self.at = protocol, splits, at
        self.classes = splits.train.classes
        _, spec = checkpoint.read_network(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(at.seed)
            # statistics of the whole batch over all ranks, as SyncBN
            model = Segmenter(protocol, spec, len(self.classes), BatchNorm)
        model.load_backbone(backbone)
        self.model: Segmenter = model.to(at.machine.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=candidate[0],
            momentum=protocol.momentum,
            weight_decay=candidate[1],  # on norms and biases too, as in mmseg's configuration
        )

    def batches(self, start: int) -> Iterator[Batch]:
        return loader.training_batches(
            self.splits.train,
            self.protocol,
            seed=self.at.seed,
            start=start,
            workers=self.at.machine.workers,
            rank=rank(),
            world=world(),
        )

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        device = self.at.machine.device
        images, labels = (part.to(device, non_blocking=True) for part in batch)
        losses: dict[str, Tensor] = forward(images, labels)
        return torch.stack(list(losses.values())).sum()

    def prepare_evaluation(self) -> None:
        """Batch norm is measured with its running statistics, which the ranks share."""

    def evaluate(self, role: Role) -> finetune.Metrics:
        pictures = self.splits.report if role == "report" else self.splits.select
        assert pictures is not None
        folder = self.at.folder / "predictions" if role == "report" else None
        counts = self._predict(pictures, folder)
        if folder is not None and rank() == 0:
            _write_counts(self.at.folder / "predictions.npz", pictures, counts)
        return metric.scores(counts.sum(0), self.classes)

    def _predict(self, pictures: LabelledImages, folder: Path | None) -> metric.Counts:
        """The confusion (N, C, C) of every image, on every rank; labels go to `folder`."""
        classes, device = len(self.classes), self.at.machine.device
        counts = np.zeros((len(pictures), classes, classes), np.int64)
        mine = range(rank(), len(pictures), world())
        names = pictures.names()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        images = loader.test_images(pictures, self.protocol, self.at.machine.workers, mine)
        for place, (image, truth) in zip(mine, images, strict=True):
            height, width = truth.shape
            labels = self.model.predict(image.to(device), (height, width)).cpu().numpy()
            counts[place] = metric.confusion(labels, truth, classes)
            if folder is not None:
                masks.write(folder / f"{names[place]}.png", labels)
            finetune.stop_if_requested(self.at)
        if world() > 1:
            everyone = torch.from_numpy(counts).to(device)
            torch.distributed.all_reduce(everyone)
            counts = everyone.cpu().numpy()
        return counts


def _write_counts(path: Path, pictures: LabelledImages, counts: metric.Counts) -> None:
    content = io.BytesIO()
    np.savez_compressed(
        content,
        names=np.array(pictures.names()),
        files=np.array([mask for _, mask in pictures.pairs]),
        confusion=counts.astype(np.uint32),
        classes=np.array(pictures.classes),
    )
    write_atomically(path, content.getbuffer())
