"""detectron2's evaluators on a split, and its predictions in COCO's result format."""

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from lewel_bench.evals import finetune
from lewel_bench.evals.context import Context
from lewel_bench.evals.detection.detectron_data import TestImages
from lewel_bench.evals.detection.metrics import write_predictions

if TYPE_CHECKING:
    from lewel_bench.evals.dense import Detection

METRICS = {"AP": "ap", "AP50": "ap50", "AP75": "ap75"}
KINDS = {"bbox": "box", "segm": "mask"}
Metrics = dict[str, float]


def evaluate(
    cfg: Any, model: Any, name: str, protocol: "Detection", at: Context, file: Path | None = None
) -> tuple[Metrics, dict[str, Any]]:
    """The metrics of the registered split `name` in percent, and what goes beside them: the APs of
    classes where detectron2 gives them.

    Equal on every rank. `file` takes the predictions. Without any prediction a metric is 0, without
    ground truth nan.
    """
    evaluator = _Evaluator(name, protocol, file)
    result = inference_on_dataset(model, _Watched(TestImages(cfg, name), at), evaluator)
    both: tuple[Metrics, dict[str, Any]] = comm.all_gather(result)[0]
    return both


class _Watched:
    """Test images, until a stop is asked for."""

    def __init__(self, images: TestImages, at: Context) -> None:
        self.images, self.at = images, at

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for image in self.images:
            finetune.stop_if_requested(self.at)
            yield image


class _Evaluator(DatasetEvaluator):  # type: ignore[misc]  # of a package without types
    """detectron2's evaluator of the protocol's metric, which also keeps what it is shown."""

    def __init__(self, name: str, protocol: "Detection", file: Path | None) -> None:
        about = MetadataCatalog.get(name)
        self.ids, self.counted = about.category_ids, about.counted
        self.file, self.masks = file, protocol.masks
        self.kept: list[dict[str, Any]] = []
        self.count = 0
        with contextlib.redirect_stdout(io.StringIO()):
            self.judge = (
                COCOEvaluator(name, ("bbox", "segm")[: 1 + protocol.masks], use_fast_impl=False)
                if protocol.metric == "coco"
                else PascalVOCDetectionEvaluator(name)
            )

    def reset(self) -> None:
        self.kept, self.count = [], 0
        self.judge.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Evaluate the predictions of a batch, and keep them if there is a file for them."""
        self.judge.process(inputs, outputs)
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            self.count += len(instances)
            if self.file is not None:
                self.kept += instances_to_coco_json(instances.to("cpu"), image["image_id"])

    def evaluate(self) -> tuple[Metrics, dict[str, Any]]:
        """On rank 0 the metrics and the APs of classes."""
        if isinstance(self.judge, PascalVOCDetectionEvaluator):
            # the area under the curve of a class without an object would be nan, and so the mean
            for absent in self.judge._predictions.keys() - self.counted:
                del self.judge._predictions[absent]
        with contextlib.redirect_stdout(io.StringIO()):
            results = self.judge.evaluate() or {}
        count = sum(comm.all_gather(self.count))
        if self.file is not None:
            self._write(self.file)
        if not comm.is_main_process():
            return {}, {}
        metrics, classes = {}, {}
        for kind, prefix in list(KINDS.items())[: 1 + self.masks]:
            of_kind = results.get(kind, {})
            for theirs, metric in METRICS.items():
                value = float(of_kind.get(theirs, math.nan)) if count else 0.0
                metrics[f"{prefix}_{metric}"] = value if self.counted else math.nan
            named = {k.removeprefix("AP-"): float(v) for k, v in of_kind.items() if "AP-" in k}
            if named:
                classes[f"{prefix}_ap"] = named
        return metrics, {"per_class": classes} if classes else {}

    def _write(self, file: Path) -> None:
        """Write every rank's predictions, image by image, one a line."""
        every = sorted((p for part in comm.all_gather(self.kept) for p in part), key=_image)
        if not comm.is_main_process():
            return
        for prediction in every:
            prediction["category_id"] = self.ids[prediction["category_id"]]
        write_predictions(file, every)


def _image(prediction: dict[str, Any]) -> int:
    return int(prediction["image_id"])
