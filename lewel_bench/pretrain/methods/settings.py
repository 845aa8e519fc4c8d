"""The settings of every pre-training method: types, defaults and rules. Importing this imports no
torch.

A recipe's `args` are the fields of one class here; the method that they configure is the class of
the same name without "Settings", in `methods/<name>.py`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lewel_bench.pretrain.recipe import Positive, Rate, Recipe
from lewel_bench.value import Value

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, le=1)]
Counts = Annotated[str, Field(pattern=r"^[1-9]\d*(,[1-9]\d*)*$")]  # "10,20"

# What the constructor of a method may ask for by keyword, besides its settings, backbone and norm
OFFERED = ("ema", "seed", "images", "classes")


class Settings(Value):
    """The settings of a method and the rules that they obey. Every field has a default.

    `summary` describes the method in listings. `needs_ema`: it has a momentum network, so its
    recipe must set `ema`. `whole_batch`: gradients flow from one image to another, so a batch is
    never split into micro-batches. `joint_views`: all views pass through the networks together, so
    the group of a batch norm is the whole batch.
    """

    summary: ClassVar[str] = ""
    needs_ema: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False
    joint_views: ClassVar[bool] = False

    @property
    def full_loss_epoch(self) -> int:
        """The epoch (0-based) from which all losses are in use."""
        return 0

    def check(self, recipe: Recipe) -> None:
        """Raise ValueError where the settings do not fit the recipe around them."""
        if self.joint_views and recipe.bn_group:
            raise ValueError(
                f"bn_group {recipe.bn_group}: the views pass through the networks together, so a "
                "group would hold other images on another number of devices; leave bn_group out: "
                "the group is the whole batch"
            )

    def check_images(self, images: int) -> None:
        """Raise ValueError where a training set of `images` images is too small."""

    def libraries(self) -> dict[str, str]:
        """The libraries that the result depends on besides torch, with their versions."""
        return {}

    def class_path(self, method: str) -> tuple[str, str]:
        """The module in `pretrain/methods` and the class in it that implement `method`."""
        return method, type(self).__name__.removesuffix("Settings")


class BarlowTwinsSettings(Settings):
    """`dim` and `hidden` are the widths of the projector; `lam` is λ of Eq. 1."""

    summary = "make the cross-correlation of two views' embeddings the identity"
    whole_batch = True

    dim: Positive = 8192
    hidden: Positive = 8192
    lam: Weight = 0.0051


class BYOLSettings(Settings):
    """`bias` False: no Linear has a bias (EMAN, and so LEWEL's reproduction). True: the first
    Linear of a head has one, and heads start as in the original's framework, Haiku."""

    summary = "predict the momentum network's embedding of the other view"
    needs_ema = True

    dim: Positive = 256
    hidden: Positive = 4096
    bias: bool = False


class DenseCLSettings(Settings):
    """`lam` weighs the dense loss (Eq. 3)."""

    summary = "MoCo v2, and the same for every position of the feature map"
    needs_ema = True

    dim: Positive = 128
    hidden: Positive = 2048
    tau: Temperature = 0.2
    queue: Positive = 65536
    lam: Weight = 0.5

    def check(self, recipe: Recipe) -> None:
        """The queue holds a whole batch of keys."""
        super().check(recipe)
        _check_queue(self.queue, recipe.batch)


class InstDiscSettings(Settings):
    """`m` noise samples an image; `keep` is what remains of a remembered embedding when its image
    is seen again."""

    summary = "tell an image from all others in a memory bank"

    dim: Positive = 128
    m: Positive = 4096
    tau: Temperature = 0.07
    keep: Weight = 0.5


class LewelBSettings(Settings):
    """`d` maps of `h` channel groups, aligned embeddings of dimension `c` (None: d). `beta` weighs
    the aligned loss (Eq. 3); `scale` divides the heat-maps before the softmax over positions (the
    code's default: 1)."""

    summary = "LEWEL on BYOL, aligned embeddings without negatives"
    needs_ema = True

    h: Positive = 4
    d: Positive = 256
    c: Positive | None = None
    hidden: Positive = 4096
    beta: Weight = 0.5
    scale: Temperature = 1.0

    def check(self, recipe: Recipe) -> None:
        """`h` groups divide the maps and the channels of the features (Section 3.2)."""
        super().check(recipe)
        _check_groups(self.h, self.d, recipe)


class LewelMSettings(Settings):
    """`h`, `d`, `c` and `beta` are as in `LewelBSettings`.

    `negatives` of the aligned loss are the aligned embeddings of the other images of the batch: all
    n ("other_images": "the quantity is sufficiently large", and Section 4.4 has their number depend
    on d and h) or the one of the same index. `maps` and `semantic` are the ablations of Tables 5
    and 6: see `lewel_ablations.py`.
    """

    summary = "LEWEL on MoCo v2, aligned embeddings with InfoNCE"
    needs_ema = True

    h: Positive = 4
    d: Positive = 128
    c: Positive | None = None
    hidden: Positive = 2048
    tau: Temperature = 0.2
    queue: Positive = 65536
    beta: Weight = 0.5
    negatives: Literal["other_images", "same_index"] = "other_images"
    maps: Literal["coupled", "uncoupled", "random", "uniform", "none"] = "coupled"
    semantic: bool = True

    @property
    def is_ablation(self) -> bool:
        """Whether this is a row of Table 5 or 6, not LEWEL_M itself."""
        return self.maps != "coupled" or not self.semantic

    def class_path(self, method: str) -> tuple[str, str]:
        """The module of `pretrain.methods` and the class that implement these settings."""
        return ("lewel_ablations", "AblatedLewelM") if self.is_ablation else (method, "LewelM")

    def check(self, recipe: Recipe) -> None:
        """As LEWEL_B, with MoCo's queue; without p, aligned embeddings have the dimension of z."""
        super().check(recipe)
        _check_queue(self.queue, recipe.batch)
        _check_groups(self.h, self.d, recipe)
        if not self.semantic and self.c not in (None, self.d):
            raise ValueError(
                f"args.c {self.c}: without a semantic projector it must be args.d, {self.d}"
            )


class MoCoV2Settings(Settings):
    """`head_norm` True puts LEWEL_M's projector (batch norm, no biases) in place of the official
    one: the control that differs from LEWEL_M by the aligned branch alone. `symmetric` True has
    each view be query and key, and sums the two losses (MoCo's CIFAR-10 notebook; SimSiam's
    paper)."""

    summary = "momentum contrast with a queue of negatives"
    needs_ema = True

    dim: Positive = 128
    hidden: Positive = 2048
    tau: Temperature = 0.2
    queue: Positive = 65536
    head_norm: bool = False
    symmetric: bool = False

    def check(self, recipe: Recipe) -> None:
        """The queue holds the keys of a step: two per image if symmetric."""
        super().check(recipe)
        _check_queue(self.queue, recipe.batch, keys=recipe.batch * (2 if self.symmetric else 1))


class PCLSettings(Settings):
    """`head` "mlp" is that of v2, "linear" that of v1. `clusters` are the sizes of the clusterings,
    made anew each epoch from epoch `warmup` on (0-based); until then this is MoCo. `negatives`
    prototypes are drawn each step."""

    summary = "MoCo, and the same with prototypes from clustering"
    needs_ema = True

    head: Literal["mlp", "linear"] = "mlp"
    dim: Positive = 128
    hidden: Positive = 2048
    tau: Temperature = 0.2
    queue: Positive = 16384
    clusters: Counts = "25000,50000,100000"
    negatives: Positive = 16384
    warmup: Size = 20

    @property
    def cluster_counts(self) -> tuple[int, ...]:
        """The number of clusters of each clustering."""
        return tuple(map(int, self.clusters.split(",")))

    @property
    def full_loss_epoch(self) -> int:
        """Prototypes join after the warm-up (Section 4.1 of the PCL paper)."""
        return self.warmup

    def check(self, recipe: Recipe) -> None:
        """The queue holds a batch, and the warm-up ends before training does."""
        super().check(recipe)
        _check_queue(self.queue, recipe.batch)
        _check_epoch("warmup", self.warmup, recipe.epochs)

    def check_images(self, images: int) -> None:
        """Each cluster of the largest clustering needs an image."""
        if images < (most := max(self.cluster_counts)):
            raise ValueError(
                f"args.clusters has {most} clusters, more than the {images} training images: use "
                f"fewer, for example --set args.clusters={max(1, images // 20)}"
            )

    def libraries(self) -> dict[str, str]:
        """The k-means implementation: another one finds other clusters."""
        from lewel_bench.pretrain.parts import kmeans

        return {"kmeans": kmeans.library()}  # another library finds other clusters


class PixProSettings(Settings):
    """`threshold` is the distance of near pixels in diagonals of a cell, `gamma` the sharpness of
    the propagation; `alpha` > 0 adds the instance branch (Section 3.3) with that weight."""

    summary = "pixels agree with their surroundings in the other view"
    needs_ema = True

    dim: Positive = 256
    hidden: Positive = 4096
    gamma: Rate = 2.0
    threshold: Rate = 0.7
    alpha: Rate = 0.0


class ReSimSettings(Settings):
    """`fpn` is the width of the pyramid. `near` is how many neighbouring images of the batch the
    negatives of C3 come from (those of one GPU in the code, for memory's sake); C4 has all."""

    summary = "MoCo v2, and the same for regions that both views show"
    needs_ema = True

    dim: Positive = 128
    hidden: Positive = 2048
    tau: Temperature = 0.2
    queue: Positive = 65536
    fpn: Positive = 256
    near: Positive = 32

    def check(self, recipe: Recipe) -> None:
        """The queue holds a whole batch of keys."""
        super().check(recipe)
        _check_queue(self.queue, recipe.batch)


class SimCLRSettings(Settings):
    """The projector has 2 `layers` (the paper) or 3 (SimSiam's reproduction)."""

    summary = "contrast with both views of all other images of a large batch"
    whole_batch = True
    joint_views = True

    dim: Positive = 128
    hidden: Positive = 2048
    layers: Literal[2, 3] = 2
    tau: Temperature = 0.1


class SimSiamSettings(Settings):
    """`hidden` is the width of the predictor's bottleneck, `layers` the number of the projector's
    (3; 2 on CIFAR-10)."""

    summary = "predict the other view's embedding, without a momentum network"

    dim: Positive = 2048
    hidden: Positive = 512
    layers: Literal[2, 3] = 3


class SupervisedSettings(Settings):
    """Training with labels has no settings of its own."""

    summary = "cross-entropy over the labels"


class SwAVSettings(Settings):
    """`queue` embeddings of earlier batches join the assignment from epoch `queue_from` on; the
    prototypes stand still for the first `frozen` epochs. The projector has 2 `layers` (the paper)
    or 3 (SimSiam's reproduction)."""

    summary = "predict the other view's assignment to prototypes, with multi-crop"
    whole_batch = True
    joint_views = True

    dim: Positive = 128
    hidden: Positive = 2048
    layers: Literal[2, 3] = 2
    prototypes: Positive = 3000
    tau: Temperature = 0.1
    epsilon: Temperature = 0.05
    sinkhorn: Positive = 3
    frozen: Size = 1
    queue: Size = 0
    queue_from: Size = 15

    @property
    def full_loss_epoch(self) -> int:
        """The queue joins at `queue_from` (0-based); without a queue nothing joins later."""
        return self.queue_from if self.queue else 0

    def check(self, recipe: Recipe) -> None:
        """The queue, if any, holds a batch and is used before training ends."""
        super().check(recipe)
        if self.queue:
            _check_queue(self.queue, recipe.batch)
            _check_epoch("queue_from", self.queue_from, recipe.epochs)


def _check_queue(queue: int, batch: int, keys: int | None = None) -> None:
    """A queue takes the `keys` of a whole step (by default one an image)."""
    least = keys or batch
    if queue < least:
        raise ValueError(
            f"args.queue {queue} is smaller than the batch {batch}; set args.queue to at least "
            f"{least}"
        )


def _check_groups(h: int, d: int, recipe: Recipe) -> None:
    """Groups of channels and of maps are of equal size (Eq. 2)."""
    channels = recipe.backbone.channels
    if d % h or channels % h:
        raise ValueError(
            f"args.h {h} must divide args.d {d} and the {channels} channels of "
            f"{recipe.backbone.arch}"
        )


def _check_epoch(name: str, epoch: int, epochs: int) -> None:
    """A loss that begins at an epoch must be in use before the run ends."""
    if epoch >= epochs:
        raise ValueError(
            f"args.{name} {epoch} must be less than epochs {epochs}: before it, a part of the loss "
            "is not in use"
        )
