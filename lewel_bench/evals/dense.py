"""What a dense evaluation is: detectors and segmenters fine-tuned from a backbone.

Every field is a number of the paper's set-up; an engine renders them (native modules, a
detectron2 config, an mmseg config). Boxes are in pixels, learning rates at the global batch.
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.grid import Decays, Fraction, Grid, Lr, check_grid, check_milestones
from lewel_bench.evals.protocol import (
    Candidate,
    Description,
    ForwardPass,
    Protocol,
    check_held_out,
    measured_note,
    number_list,
)
from lewel_bench.pretrain.recipe import Positive, Rate

if TYPE_CHECKING:
    from lewel_bench.evals.context import Context
    from lewel_bench.evals.outcome import CandidateResult, DenseSplits, Inputs, Outcome

Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Pixels = Positive


class Dense(Protocol):
    """What detection and segmentation share; a candidate is a pair (lr, weight decay).

    `held_out` training images choose among the candidates. With `refit` the chosen candidate is
    trained again on all training images, in `trials` runs of other seeds; without, the number is
    that of the candidate itself. `prune`: a candidate whose score on the held-out images after half
    of the steps is below this fraction of the best finished candidate's is stopped (None: never).
    """

    NOT_IDENTITY: ClassVar[set[str]] = Protocol.NOT_IDENTITY | {"lrs", "weight_decays", "trials"}
    job_class: ClassVar[str] = "dense"
    score: ClassVar[str]  # the metric that chooses among candidates

    data: str
    engine: str = "native"
    batch: Positive = 16
    steps: Positive
    lrs: Grid
    weight_decays: Decays
    published_lr: tuple[Lr, Rate] | None = None
    momentum: Rate = 0.9
    held_out: Positive
    refit: bool = True
    trials: Positive = 1
    prune: Fraction | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _grid_is_sound(self) -> Self:
        if self.trials > 1 and not self.refit:
            raise ValueError(
                f"trials {self.trials} needs refit, which trains the chosen candidate again: set "
                "refit, or trials to 1"
            )
        check_grid("lrs", self.lrs)
        check_grid("weight_decays", self.weight_decays)
        return self

    def grid(self) -> list[Candidate]:
        """Every (lr, weight decay)."""
        return list(product(self.lrs, self.weight_decays))

    def identity(self, candidate: Candidate | None = None) -> dict[str, Any]:
        """What determines the number: of the whole search, or of its one `candidate`."""
        own = self.model_dump(mode="json", exclude=self.NOT_IDENTITY)
        grid = {"lrs": sorted(self.lrs), "weight_decays": sorted(self.weight_decays)}
        if candidate is None:
            if self.refit and len(self.grid()) == 1:
                del own["held_out"], own["prune"]  # nothing is searched
            return own | grid
        del own["refit"]
        # whether a candidate is stopped depends on the others
        return own | {"candidate": list(candidate)} | (grid if self.prune else {})

    def candidates(self) -> Sequence[Candidate]:
        """The grid; where a refit trains the only candidate of a grid, nothing is searched."""
        grid = self.grid()
        return grid if not self.refit or len(grid) > 1 else ()

    def final_trainings(self) -> int:
        """With `refit` the chosen candidate is trained again, in `trials` runs."""
        return self.trials if self.refit else 0

    def choices(
        self, *, refit: bool = False, lrs: Sequence[float] = (), engine: str | None = None
    ) -> dict[str, Any]:
        """--refit, --lrs, and --engine where it is one of this task's."""
        asked: dict[str, Any] = {"refit": True} if refit else {}
        asked |= {"lrs": list(lrs)} if lrs else {}
        return asked | ({"engine": engine} if engine in self.engines else {})

    def engine_name(self) -> str | None:
        """The engine that trains and measures."""
        return self.engine

    def splits(self, data: Dataset, *, final: bool) -> "DenseSplits[Any]":
        """The training images less those held out, these, and the reported images; nothing is held
        out of a final's training."""
        from lewel_bench.evals import splits

        train, report = self._read(data)
        return splits.of_dense(self, train, report, final=final)

    def training_count(self, total: int, classes: int, *, final: bool) -> int:
        """All images in a final, else all but the held-out ones."""
        if final:
            return total
        check_held_out(self.name, self.held_out, total, total - 1)
        return total - self.held_out

    def check_machine(self, processes: int, *, on_cpu: bool) -> None:
        """Raise ValueError where the processes cannot share a batch, or their device lacks what
        synchronised batch norm or mixed precision need."""
        if on_cpu and processes > 1:
            raise ValueError(
                f"{processes} processes on a CPU: batch norm over the images of several "
                "processes needs CUDA devices; use one process"
            )
        if on_cpu and self.engine != "native" and self.precision != "fp32":
            raise ValueError(
                f"precision {self.precision}: {self.engine} has mixed precision on CUDA only: "
                f"--set {self.name}.precision=fp32"
            )
        if self.batch % processes:
            raise ValueError(
                f"batch {self.batch} is not divisible by {processes} processes: use a "
                "number of processes that divides it"
            )

    def needs_one_process(self, *, on_cpu: bool) -> bool:
        """Batch norm needs every image of a batch, which processes on a CPU cannot share."""
        return on_cpu

    def forward_pass(self) -> ForwardPass:
        """Batch norm takes its statistics over all images of a process."""
        return ForwardPass(self.batch, undivided=True)

    def run(self, inputs: "Inputs", context: "Context") -> "Outcome":
        """Fine-tune a candidate, or choose among the finished ones and train that again."""
        from lewel_bench.evals import transfer

        return transfer.run(self, inputs, context)

    def choose(self, results: Sequence["CandidateResult"]) -> "Outcome":
        """The candidate with the best score on the held-out images."""
        from lewel_bench.evals.choose import choose

        grids = {"lr": self.lrs, "weight_decay": self.weight_decays}
        return choose(self.name, results, score=self.score, grids=grids, lower="lrs")

    def clear(self, folder: Path) -> None:
        """Remove the checkpoints, those of an engine too."""
        from lewel_bench.evals import transfer

        super().clear(folder)
        transfer.clear(folder)

    @abstractmethod
    def fine_tune(
        self,
        candidate: Candidate,
        inputs: "Inputs",
        context: "Context",
        rivals: Sequence[float] = (),
    ) -> "Outcome":
        """Fine-tune at one candidate with the engine and measure it.

        `rivals` are the scores of other candidates after half of their steps, where it prunes.
        """

    @abstractmethod
    def _read(self, data: Dataset) -> tuple[Any, Any]:
        """The training and the reported images, with their annotations."""

    @abstractmethod
    def _setting(self) -> str:
        """What is done, in words."""

    def describe(self) -> Description:
        """The task and its schedule; the learning rates and weight decays of the grid."""
        searched = f"lr {number_list(self.lrs)}; weight decay {number_list(self.weight_decays)}"
        grid = len(self.grid())
        return Description(
            self._setting(),
            searched,
            f"{self.held_out} held-out training images",
            measured_note(self.name, self.engine, self.held_out, grid, refit=self.refit),
        )


class Detection(Dense):
    """Faster or Mask R-CNN, as detectron2 computes it with MoCo's and InfoMin's configurations.

    `model` c4: RoI features from res4, res5 with an extra norm as the head; fpn: feature pyramid,
    4conv1fc box head, norm in every head. `min_sizes` are the shortest edges drawn in training,
    `test_size` the one at test; the longest is at most `max_size`. `anchors` are the sizes of the
    square anchors at ratios 1/2, 1, 2: all on c4's single level, one per level of fpn (P2 to P6).
    `rois` are sampled from an image for the heads, `rpn_samples` for the RPN; of its proposals
    `pre_nms` and `post_nms` (train, test) are kept before and after suppression, per level before.
    `precise_bn` batches re-estimate the batch-norm statistics before evaluation (0: none).
    Norm parameters have no weight decay. The learning rate falls tenfold at each of `milestones`
    (steps) and rises from `warmup_factor` linearly over `warmup` steps. `metric`: PASCAL's AP with
    11 points of recall (voc07) or all (voc12), or COCO's.
    """

    engines: ClassVar[tuple[str, ...]] = ("native", "detectron2")
    score: ClassVar[str] = "box_ap"

    runner: Literal["detection"] = "detection"
    engine: Literal["native", "detectron2"] = "native"
    model: Literal["c4", "fpn"]
    masks: bool
    metric: Literal["voc07", "voc12", "coco"]
    min_sizes: Annotated[tuple[Pixels, ...], Field(min_length=1)]
    test_size: Pixels = 800
    max_size: Pixels = 1333
    milestones: tuple[Positive, ...]
    warmup: Annotated[int, Field(ge=0)]
    warmup_factor: Rate = 0.001
    anchors: tuple[Ratio, ...] = (32, 64, 128, 256, 512)
    rpn_samples: Positive = 256
    rois: Positive = 512
    pre_nms: tuple[Positive, Positive]
    post_nms: tuple[Positive, Positive]
    head_width: Positive = 256  # channels of FPN, of its heads and of the mask heads
    fc_width: Positive = 1024  # of the fully connected layer of fpn's box head
    precise_bn: Annotated[int, Field(ge=0)] = 200

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_milestones(self.milestones, self.steps, "steps")
        # detectron2 warms up to the full learning rate: a milestone before the end would be lost
        last = self.milestones[0] - 1 if self.milestones else self.steps
        if self.warmup > last:
            raise ValueError(
                f"warmup {self.warmup} must be at most {last}, with steps {self.steps} and "
                f"milestones {self.milestones}: scale them together"
            )
        if self.model == "fpn" and len(self.anchors) != 5:
            raise ValueError(
                f"fpn has five levels (P2 to P6): anchors needs 5 sizes, not {len(self.anchors)}"
            )
        if self.masks and self.metric != "coco":
            raise ValueError("masks need metric coco: VOC's detection metric has boxes only")
        if not self.anchors:
            raise ValueError("anchors is empty: give at least one size in pixels")
        return self

    def fine_tune(
        self,
        candidate: Candidate,
        inputs: "Inputs",
        context: "Context",
        rivals: Sequence[float] = (),
    ) -> "Outcome":
        """Fine-tune a detector; see `detection.run`."""
        from lewel_bench.evals.detection import run as detection

        splits = inputs.splits
        outcome = detection.run(
            self,
            candidate=candidate,
            backbone=inputs.backbone,
            splits=splits,
            python=inputs.pythons.get(self.engine),
            context=context,
            rivals=rivals,
        )
        if count := splits.train.without_mask + splits.report.without_mask:
            outcome.warnings.append(f"{count} objects have no mask: not trained on, not measured")
        return outcome

    def _read(self, data: Dataset) -> tuple[Any, Any]:
        from lewel_bench.evals import splits

        train, report = splits.read_scenes(data)
        return (train.with_masks(), report.with_masks()) if self.masks else (train, report)

    def _setting(self) -> str:
        edges, decays = self.min_sizes, " and ".join(map(str, self.milestones))
        parts = [
            "boxes and masks" if self.masks else "boxes",
            f"batch {self.batch}",
            f"{self.steps} steps",
            f"warm-up {self.warmup}",
            f"edge {min(edges)} to {max(edges)}",
            f"PreciseBN {self.precise_bn}",
            f"tenfold lower at {decays}",
            "norms not decayed",
            *([f"{self.trials} trials"] if self.trials > 1 else []),
        ]
        return ", ".join(parts)


class Segmentation(Dense):
    """A fully convolutional network of output stride 8, as mmseg's `fcn_r50-d8` computes it.

    Training images are resized to fit `scale` (long, short edge) times a ratio drawn from
    `ratios`, cropped to `crop` (again, up to ten times, while one class fills more than
    `max_class_share`), flipped, distorted in colour and padded; tested whole at `scale`. The
    learning rate falls as (1 - step / (steps - 1)) ^ `power` to `min_lr`. The head has `head_width`
    channels, the auxiliary head `aux_width` channels and a loss weight of `aux_weight`.
    """

    engines: ClassVar[tuple[str, ...]] = ("native", "mmseg")
    score: ClassVar[str] = "miou"

    runner: Literal["segmentation"] = "segmentation"
    engine: Literal["native", "mmseg"] = "native"
    scale: tuple[Pixels, Pixels] = (2048, 512)
    ratios: tuple[Ratio, Ratio] = (0.5, 2.0)
    crop: Pixels = 512
    max_class_share: Fraction = 0.75
    power: Rate = 0.9
    min_lr: Rate = 1e-4
    head_width: Positive = 512
    aux_width: Positive = 256
    aux_weight: Rate = 0.4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def fine_tune(
        self,
        candidate: Candidate,
        inputs: "Inputs",
        context: "Context",
        rivals: Sequence[float] = (),
    ) -> "Outcome":
        """Fine-tune a segmenter; see `segmentation.run`."""
        from lewel_bench.evals.segmentation import run as segmentation

        outcome = segmentation.run(
            self,
            candidate=candidate,
            backbone=inputs.backbone,
            splits=inputs.splits,
            python=inputs.pythons.get(self.engine),
            context=context,
            rivals=rivals,
        )
        classes: dict[str, float | None] = outcome.extra.get("per_class", {})
        absent = [name for name, iou in classes.items() if iou is None]
        if classes:
            outcome.extra["miou_classes"] = len(classes) - len(absent)
        if absent:
            outcome.warnings.append(
                f"miou is the mean over {len(classes) - len(absent)} of {len(classes)} classes: "
                f"the reported masks have no pixel of {', '.join(absent)}"
            )
        return outcome

    def _read(self, data: Dataset) -> tuple[Any, Any]:
        from lewel_bench.evals import splits

        return splits.read_labelled_images(data)

    def _setting(self) -> str:
        low, high = self.ratios
        parts = [
            f"scale {self.scale[0]}x{self.scale[1]} times {low:g} to {high:g}",
            f"crop {self.crop}",
            f"batch {self.batch}",
            f"{self.steps} steps",
            f"poly {self.power:g} to {self.min_lr:g}",
        ]
        return ", ".join(parts)
