"""What a pre-training run is: frozen values that name everything that determines its result."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from lewel_bench.value import Value, explain, unknown

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
WIDEST = 4096  # channels of a stem; the widest ResNets in the literature have 1024


class Backbone(Value):
    """A ResNet, torchvision's but for what a foreign checkpoint may want otherwise.

    `cifar` is the 3x3 stride-1 stem without max-pooling; `small` is the 3x3 stride-2 stem without
    max-pooling (64 px in, 4x4 features out); width is the number of channels of the stem (64 in the
    literature). `stride` says which convolution of a bottleneck has the stride (1x1: Caffe's
    ResNets), `mean` what is taken from pixels in [0, 1] where it is not ImageNet's mean.
    """

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    stem: Literal["imagenet", "cifar", "small"] = "imagenet"
    width: Annotated[int, Field(gt=0, le=WIDEST)] = 64
    stride: Literal["3x3", "1x1"] = "3x3"
    mean: tuple[float, float, float] | None = None

    @model_validator(mode="after")
    def _has_bottlenecks(self) -> Self:
        if self.stride == "1x1" and self.expansion == 1:
            raise ValueError(f"stride 1x1: {self.arch} has no bottlenecks")
        return self

    @property
    def depth(self) -> int:
        """The number in the architecture's name."""
        return int(self.arch.removeprefix("resnet"))

    @property
    def expansion(self) -> int:
        """Channels that a block puts out to one inside it: 4 of a bottleneck, 1 of a basic one."""
        return 4 if self.depth >= 50 else 1

    @property
    def channels(self) -> int:
        """The dimension of its pooled features."""
        return 8 * self.width * self.expansion

    @property
    def stem_stride(self) -> int:
        """Pixels of the image to one of what the first stage sees."""
        return {"imagenet": 4, "small": 2, "cifar": 1}[self.stem]


class Optimizer(Value):
    """`lr` is absolute, at the recipe's batch. `exclude` names the parameters without weight decay
    and without LARS adaptation: `bias_and_norm` is every 1-D parameter; `log` leaves the gains of
    the heads' norms in the decayed group, as the published LEWEL_B log did. The excluded have
    `excluded_lr` times the rate. Parameters whose name begins with `constant` keep the initial rate
    throughout."""

    name: Literal["sgd", "lars"]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    momentum: Rate = 0.9
    weight_decay: Rate = 0.0
    trust: Rate = 0.001
    exclude: Literal["none", "bias_and_norm", "log"] = "none"
    excluded_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    constant: str = ""


class Schedule(Value):
    """Linear warm-up per step, then a cosine, updated once per `cosine_per`; or, with `decay_at`,
    a tenth of the rate after each of these shares of the epochs. Warm-up begins at `start` and the
    cosine ends at `end` times the rate."""

    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    cosine_per: Literal["epoch", "step"] = "epoch"
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()


class Ema(Value):
    """The momentum network: m is `start` throughout, or rises to 1 on a cosine. With `buffers` it
    averages the batch-norm statistics too and normalises with them (EMAN, arXiv 2101.08482)."""

    start: Annotated[float, Field(ge=0, le=1)]
    schedule: Literal["constant", "cosine"] = "constant"
    buffers: bool = False


class Own(Value):
    """Where the class of a user's own method is: `code` is the SHA-256 of the file that defines it,
    `file` a copy of that, `module` its name where it is part of an installed distribution (and is
    imported by it), and `release` that distribution and its version. `defaults` are those of its
    settings, so that planning need not run the file. `code` and `release` are part of an
    identity."""

    code: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    file: str
    module: str = ""
    release: str = ""
    defaults: dict[str, bool | int | float | str | None] = {}


class Recipe(Value):
    """One pre-training recipe. `name`, `label` and `source` are not part of its identity.

    `batch` is the global batch; `bn_group` the number of images whose statistics one batch norm
    shares (None: the whole global batch), so both mean the same on 1 device or 8. `ema` is None
    for methods without a momentum network. `own` is set where `method` is the name of a class of
    the user's own.
    """

    name: str
    label: str
    source: str
    method: str
    args: dict[str, bool | int | float | str] = {}
    backbone: Backbone = Backbone()
    data: str = "imagenet"
    image_size: Positive = 224
    epochs: Positive
    batch: Positive
    bn_group: Positive | None = None
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    ema: Ema | None = None
    augment: str
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    revision: Positive = 2  # 2: keys hold every argument and field, also those at their default
    own: Own | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bn_group and self.batch % self.bn_group:
            raise ValueError(
                f"batch {self.batch} is not divisible by bn_group {self.bn_group}: choose a batch "
                f"that is a multiple of {self.bn_group}, or set bn_group"
            )
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs:g} leaves nothing of "
                f"{self.epochs} epochs: set schedule.warmup_epochs below epochs"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Everything that determines the result of the recipe, as plain data."""
        identity = self.model_dump(exclude={"name", "label", "source", "own"})
        if self.own:
            identity["own"] = self.own.model_dump(
                include={"code", "release"}, exclude_defaults=True
            )
        return identity


def shares(recipe: Recipe, processes: int, micro_batch: int | None) -> tuple[int, int]:
    """Images of a step, and of a forward pass, on each of `processes`. Raises ValueError where they
    are not equally many, or no whole batch-norm groups."""
    if recipe.batch % processes:
        raise ValueError(
            f"batch {recipe.batch} is not divisible by {processes} processes: "
            f"use a number of processes that divides it"
        )
    local = recipe.batch // processes
    micro = micro_batch or local
    group = recipe.bn_group or recipe.batch
    if local % group and (group % local or recipe.batch % group):
        raise ValueError(
            f"bn_group {group} does not fit the {local} images of each of {processes} processes: "
            f"use a number of processes for which one divides the other"
        )
    if local % micro or (micro < local and micro % group):
        raise ValueError(
            f"micro-batch {micro} does not split the {local} images of a process into whole "
            f"batch-norm groups of {group}: choose a multiple of {group} that divides {local}"
        )
    return local, micro


def change(value: Value, settings: Mapping[str, Any]) -> Any:
    """`value` with dotted settings replaced (`optimizer.lr`), validated as if it were new.

    Raises ValueError naming the field, what was wrong and the nearest known field.
    """
    data = value.model_dump()
    for dotted, new in settings.items():
        node, parts = data, dotted.split(".")
        for depth, part in enumerate(parts):
            free = parts[0] == "args" and depth == 1 and len(parts) == 2  # checked by the method
            if not isinstance(node, dict) or (part not in node and not free):
                known = node if isinstance(node, dict) else {}
                where = ".".join(parts[:depth]) or type(value).__name__.lower()
                if node is None:
                    raise ValueError(f"{dotted}: there is no {where} here, it is not used")
                raise ValueError(unknown(f"field of {where}", part, known))
            if depth < len(parts) - 1:
                node = node[part]
        node[parts[-1]] = new
    try:
        return type(value).model_validate(data)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
