"""Detection: fine-tuning a detector on a backbone and measuring its boxes and masks."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lewel_bench.evals import finetune
from lewel_bench.evals.context import Context
from lewel_bench.evals.detection import loader, metrics, precise_bn
from lewel_bench.evals.detection.annotated_images import Scenes
from lewel_bench.evals.detection.metrics import Prediction
from lewel_bench.evals.detection.model import Detector, Target, parameter_groups
from lewel_bench.evals.detection.views import Example
from lewel_bench.evals.finetune import Role
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.distributed import Machine, rank, share, world
from lewel_bench.pretrain.schedule import step_decay

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection


def run(
    protocol: "Detection",
    *,
    candidate: tuple[float, float],
    backbone: Path,
    splits: DenseSplits[Scenes],
    context: Context,
    rivals: Sequence[float] = (),
    python: str | None = None,
) -> Outcome:
    """Fine-tune at `candidate` = (lr, weight decay) with the protocol's engine; see finetune.run.

    `metrics` are box_ap, box_ap50, box_ap75, and with masks mask_ap, mask_ap50, mask_ap75, on the
    report split, whose detections are written to `folder/predictions.json` in COCO's format.
    `python` is the interpreter of an engine that lives in another environment.
    """
    if protocol.engine == "detectron2":
        from lewel_bench.evals.detection import detectron

        return detectron.run(
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
    splits.check()
    _check(protocol, context.machine)
    learner = _Detection(protocol, candidate, backbone, splits, context)
    factor = partial(lr_factor, protocol)
    return finetune.run(learner, protocol, candidate, splits, factor, context, rivals)


def lr_factor(protocol: "Detection", step: int) -> float:
    """What the rate is multiplied by at `step` (0-based)."""
    start = 1.0
    if step < protocol.warmup:
        done = step / protocol.warmup
        start = protocol.warmup_factor * (1 - done) + done
    return step_decay(start, step, protocol.milestones)


def _check(protocol: "Detection", machine: Machine) -> None:
    share(protocol.batch)
    if machine.device.type == "cpu" and world() > 1:
        raise ValueError(
            f"{world()} processes on a CPU: batch norm over the images of several processes needs "
            "CUDA devices; use one process"
        )


class _Detection:
    """The detector as what `finetune.run` trains."""

    def __init__(
        self,
        protocol: "Detection",
        candidate: tuple[float, float],
        backbone: Path,
        splits: DenseSplits[Scenes],
        at: Context,
    ) -> None:
        self.protocol, self.splits, self.at = protocol, splits, at
        norm = nn.BatchNorm2d if world() == 1 else nn.SyncBatchNorm
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(at.seed)
            classes = len(splits.train.classes)
            _, spec = checkpoint.read_network(backbone)
            model = Detector(protocol, spec, classes, norm)
        model.load_backbone(backbone)
        self.model: Detector = model.to(  # type: ignore[call-overload]
            device=at.machine.device, memory_format=torch.channels_last
        )
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, *candidate), lr=candidate[0], momentum=protocol.momentum
        )

    def batches(self, start: int) -> Iterator[list[Example]]:
        return loader.training_batches(
            self.splits.train,
            self.protocol,
            seed=self.at.seed,
            start=start,
            workers=self.at.machine.workers,
            rank=rank(),
            world=world(),
        )

    def loss(self, forward: Callable[..., Any], batch: list[Example]) -> Tensor:
        losses: dict[str, Tensor] = forward([e.image for e in batch], [_target(e) for e in batch])
        return torch.stack(list(losses.values())).sum()

    def prepare_evaluation(self) -> None:
        """PreciseBN on the batches after those that train."""
        if self.protocol.precise_bn:
            batches = islice(self.batches(self.protocol.steps), self.protocol.precise_bn)
            precise_bn.measure(self.model, lambda batch: self.loss(self.model, batch), batches)

    def evaluate(self, role: Role) -> finetune.Metrics:
        scenes = self.splits.report if role == "report" else self.splits.select
        assert scenes is not None
        predictions = _gathered(scenes, self._detect(scenes, range(rank(), len(scenes), world())))
        if role == "report" and rank() == 0:
            metrics.write_predictions(self.at.folder / "predictions.json", predictions)
        if self.protocol.metric == "coco":
            result = metrics.coco_ap(scenes, predictions, self.protocol.masks)
        else:
            result = metrics.voc_ap(scenes, predictions, self.protocol.metric == "voc07")
        per_class = {
            metric: {name: None if isnan(ap) else ap for name, ap in of_class.items()}
            for metric, of_class in result["per_class"].items()
        }  # JSON has no NaN
        return {**result, "per_class": per_class}

    def _detect(self, scenes: Scenes, indices: Sequence[int]) -> list[Prediction]:
        """Of one image after another, as padding would change the numbers."""
        predictions: list[Prediction] = []
        workers = self.at.machine.workers
        for example in loader.test_batches(scenes, self.protocol, workers, indices):
            (of_image,) = self.model.detect([example.image], [example.size])
            predictions += metrics.as_predictions(
                example.id,
                scenes.category_ids,
                of_image.boxes.cpu().numpy(),
                of_image.scores.cpu().numpy(),
                of_image.labels.cpu().numpy(),
                None if of_image.masks is None else of_image.masks.cpu().numpy(),
            )
            finetune.stop_if_requested(self.at)
        return predictions


def _target(example: Example) -> Target:
    return Target(example.boxes, example.labels, example.polygons)


def _gathered(scenes: Scenes, own: list[Prediction]) -> list[Prediction]:
    """The predictions of every rank, image by image."""
    if world() == 1:
        return own
    everyone: list[list[Prediction]] = [[] for _ in range(world())]
    torch.distributed.all_gather_object(everyone, own)
    place = {scene.id: i for i, scene in enumerate(scenes.scenes)}
    return sorted((p for of_rank in everyone for p in of_rank), key=lambda p: place[p["image_id"]])
