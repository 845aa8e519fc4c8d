"""What a dense evaluation is: detectors and segmenters fine-tuned from a backbone.

Every field is a number of the paper's set-up; an engine renders them (native modules, a
detectron2 config, an mmseg config). Boxes are in pixels, learning rates at the global batch.
"""

from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lewel_bench.evals.grid import Decays, Grid, Lr, Share, check_grid, check_milestones
from lewel_bench.pretrain.recipe import Backbone, Positive, Rate
from lewel_bench.value import Value

Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Positive  # pixels
# ImageNet's red, green, blue of 0..255: the backbones' weights are torchvision's, not Caffe's
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def mean_of(spec: Backbone) -> tuple[float, ...]:
    """What is taken from pixels of 0 to 255 for a backbone, before they are padded with zeros."""
    return tuple(255 * value for value in spec.mean) if spec.mean else MEAN


def for_pixels_of_its_own(spec: Backbone) -> Backbone:
    """`spec` for a model that takes the mean off itself."""
    return spec.model_copy(update={"mean": None})


NOT_IDENTITY = {"name", "label", "source", "published_lr", "lrs", "weight_decays", "trials"}


class _Dense(Value):
    """What detection and segmentation share; a candidate is a pair (lr, weight decay).

    `held_out` training images choose among the candidates. With `refit` the chosen candidate is
    trained again on all training images, in `trials` runs of other seeds; without, the number is
    that of the candidate itself. `prune`: a candidate whose score on the held-out images after half
    of the steps is below this share of the best finished candidate's then is stopped (None: never).
    """

    name: str
    label: str
    source: str
    data: str
    batch: Positive = 16
    steps: Positive
    lrs: Grid
    weight_decays: Decays
    published_lr: tuple[Lr, Rate] | None = None
    momentum: Rate = 0.9
    held_out: Positive
    refit: bool = True
    trials: Positive = 1
    prune: Share | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    revision: Positive = 1

    @model_validator(mode="after")
    def _grid_is_sound(self) -> Self:
        if self.trials > 1 and not self.refit:
            raise ValueError(
                f"trials {self.trials}: without refit the number is that of the candidate; "
                "set refit, or trials to 1"
            )
        check_grid("lrs", self.lrs)
        check_grid("weight_decays", self.weight_decays)
        return self

    def grid(self) -> list[tuple[float, float]]:
        """The candidates: every (lr, weight decay)."""
        return list(product(self.lrs, self.weight_decays))

    def identity(self, candidate: tuple[float, float] | None = None) -> dict[str, Any]:
        """What determines the number: of the whole search, or of its one `candidate`."""
        own = self.model_dump(mode="json", exclude=NOT_IDENTITY)
        grid = {"lrs": sorted(self.lrs), "weight_decays": sorted(self.weight_decays)}
        if candidate is None:
            if self.refit and len(self.grid()) == 1:
                del own["held_out"], own["prune"]  # nothing is searched
            return own | grid
        del own["refit"]
        # whether a candidate is stopped depends on the others
        return own | {"candidate": list(candidate)} | (grid if self.prune else {})


class Detection(_Dense):
    """Faster or Mask R-CNN, as detectron2 computes it with MoCo's and InfoMin's configurations.

    `model` c4: RoI features from res4, res5 with an extra norm as the head; fpn: feature pyramid,
    4conv1fc box head, norm in every head. `min_sizes` are the shortest edges drawn in training,
    `test_size` the one at test; the longest is at most `max_size`. `anchors` are the sides of the
    square anchors at ratios 1/2, 1, 2: all at the one level of c4, one a level of fpn (P2 to P6).
    `rois` are sampled from an image for the heads, `rpn_samples` for the RPN; of its proposals
    `pre_nms` and `post_nms` (train, test) are kept before and after suppression, per level before.
    `precise_bn` batches measure the batch-norm statistics anew before evaluation (0: none).
    Weight decay spares norm parameters. The rate falls tenfold at each of `milestones` (steps) and
    rises from `warmup_factor` linearly over `warmup` steps. `metric`: PASCAL's AP with 11 points
    of recall (voc07) or all (voc12), or COCO's.
    """

    runner: Literal["detection"] = "detection"
    engine: Literal["native", "detectron2"] = "native"
    model: Literal["c4", "fpn"]
    masks: bool
    metric: Literal["voc07", "voc12", "coco"]
    min_sizes: Annotated[tuple[Side, ...], Field(min_length=1)]
    test_size: Side = 800
    max_size: Side = 1333
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
        # detectron2 rises to the rate after the warm-up: beyond a milestone that is another
        last = self.milestones[0] - 1 if self.milestones else self.steps
        if self.warmup > last:
            raise ValueError(
                f"warmup {self.warmup} must be at most {last}, with steps {self.steps} and "
                f"milestones {self.milestones}: scale them together"
            )
        if self.model == "fpn" and len(self.anchors) != 5:
            raise ValueError(
                f"fpn has five levels (P2 to P6): anchors needs 5 sides, not {len(self.anchors)}"
            )
        if self.masks and self.metric != "coco":
            raise ValueError("masks need metric coco: VOC's detection metric has boxes only")
        if not self.anchors:
            raise ValueError("anchors is empty: give at least one side in pixels")
        return self

    @property
    def score(self) -> str:
        """The metric that chooses among candidates."""
        return "box_ap"


class Segmentation(_Dense):
    """A fully convolutional network of output stride 8, as mmseg's `fcn_r50-d8` computes it.

    Training images are resized to fit `scale` (long, short edge) times a ratio drawn from
    `ratios`, cropped to `crop` (again, up to ten times, while one class fills more than
    `max_class_share`), flipped, distorted in colour and padded; tested whole at `scale`. The rate
    falls as (1 - step / (steps - 1)) ^ `power` to `min_lr`. The heads have `head_width` channels,
    the auxiliary one `aux_width` and a loss weight of `aux_weight`.
    """

    runner: Literal["segmentation"] = "segmentation"
    engine: Literal["native", "mmseg"] = "native"
    scale: tuple[Side, Side] = (2048, 512)
    ratios: tuple[Ratio, Ratio] = (0.5, 2.0)
    crop: Side = 512
    max_class_share: Share = 0.75
    power: Rate = 0.9
    min_lr: Rate = 1e-4
    head_width: Positive = 512
    aux_width: Positive = 256
    aux_weight: Rate = 0.4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @property
    def score(self) -> str:
        """The metric that chooses among candidates."""
        return "miou"
