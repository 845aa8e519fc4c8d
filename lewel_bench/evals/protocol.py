"""What an evaluation is: frozen values that name everything that determines its number."""

from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lewel_bench.evals.dense import Detection, Segmentation
from lewel_bench.evals.grid import Decays, Grid, Lr, Share, check_grid, check_milestones
from lewel_bench.pretrain.recipe import Positive, Rate
from lewel_bench.value import Value

NOT_IDENTITY = {"name", "label", "source", "published_lr"}


class Linear(Value):
    """A linear classifier on a frozen backbone; every (lr, weight decay) of the grid is one head.

    `lrs` are absolute, at `batch`. `milestones` are epochs at which the rate falls to a tenth;
    none means a cosine to zero that moves once per epoch. `held_out` training images choose among
    the heads. `refit` trains once more on all training images with the chosen head's settings.
    `knn_k` is the number of neighbours of the kNN accuracy beside it (0: none), whose bank is what
    the heads were trained on: the training images less those held out, or with `refit` all.
    `name`, `label`, `source` and `published_lr` (the rate that the paper states) are not part of
    the identity.
    """

    runner: Literal["linear"] = "linear"
    name: str
    label: str
    source: str
    data: str = "imagenet"
    image_size: Positive = 224
    resize: Positive = 256
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    optimizer: Literal["sgd", "lars"]
    lrs: Grid
    weight_decays: Decays = (0.0,)
    published_lr: Lr | None = None
    momentum: Rate = 0.9
    trust: Rate = 0.001
    init_std: Rate = 0.01
    batch: Positive
    epochs: Positive
    milestones: tuple[Positive, ...] = ()
    eval_every: Positive = 5
    held_out: Positive = 10_009
    refit: bool = False
    knn_k: Annotated[int, Field(ge=0)] = 200
    knn_temperature: Lr = 0.07
    revision: Positive = 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_grid("lrs", self.lrs)
        check_grid("weight_decays", self.weight_decays)
        check_milestones(self.milestones, self.epochs, "epochs")
        return self

    def grid(self) -> list[tuple[float, float]]:
        """The heads: every (lr, weight decay)."""
        return list(product(self.lrs, self.weight_decays))

    def identity(self) -> dict[str, Any]:
        """Everything that determines the numbers of this protocol, as plain data."""
        return self.model_dump(mode="json", exclude=NOT_IDENTITY)


class Knn(Value):
    """Weighted k-nearest neighbours on centre crops; the first of `ks` is the table's."""

    runner: Literal["knn"] = "knn"
    name: str
    label: str
    source: str
    data: str = "imagenet"
    image_size: Positive = 224
    resize: Positive = 256
    ks: Annotated[tuple[Positive, ...], Field(min_length=1)] = (200, 20)
    temperature: Lr = 0.07
    revision: Positive = 1

    def identity(self) -> dict[str, Any]:
        """Everything that determines the numbers of this protocol, as plain data."""
        return self.model_dump(mode="json", exclude=NOT_IDENTITY)


class Semi(Value):
    """Fine-tuning of the whole network on a `fraction` of the labels; one run per pair of rates.

    `bn_group` is the number of images whose statistics one batch norm shares (None: the whole
    batch). The `held_out` images that choose among the pairs are outside the labelled subset.
    `published_lr` is the paper's (backbone rate, head rate).
    """

    runner: Literal["semi"] = "semi"
    name: str
    label: str
    source: str
    data: str = "imagenet"
    fraction: Share
    image_size: Positive = 224
    resize: Positive = 256
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    backbone_lrs: Grid
    head_lrs: Grid
    published_lr: tuple[Lr, Lr] | None = None
    momentum: Rate = 0.9
    weight_decay: Rate = 1e-4
    batch: Positive = 256
    bn_group: Positive | None = 64
    epochs: Positive = 50
    milestones: tuple[Positive, ...] = (30, 40)
    eval_every: Positive = 5
    held_out: Positive = 10_009
    revision: Positive = 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_grid("backbone_lrs", self.backbone_lrs)
        check_grid("head_lrs", self.head_lrs)
        check_milestones(self.milestones, self.epochs, "epochs")
        if self.bn_group and self.batch % self.bn_group:
            raise ValueError(
                f"batch {self.batch} is not divisible by bn_group {self.bn_group}: choose a batch "
                f"that is a multiple of {self.bn_group}, or set bn_group"
            )
        return self

    def grid(self) -> list[tuple[float, float]]:
        """The candidates: every (backbone lr, head lr)."""
        return list(product(self.backbone_lrs, self.head_lrs))

    def identity(self, lr: tuple[float, float] | None = None) -> dict[str, Any]:
        """What determines the number: of the whole search, or of its one candidate `lr`."""
        own = self.model_dump(mode="json", exclude=NOT_IDENTITY)
        if lr is not None:
            del own["backbone_lrs"], own["head_lrs"]
            own["lr"] = list(lr)
        return own


Protocol = Annotated[Linear | Knn | Semi | Detection | Segmentation, Field(discriminator="runner")]


def check_held_out(
    protocol: Linear | Semi | Detection | Segmentation, count: int, most: int
) -> None:
    """Raise ValueError where a protocol holds out more than `most` of `count` training images."""
    if protocol.held_out > most:
        name = f"{protocol.name}.held_out"
        raise ValueError(
            f"{name} {protocol.held_out}: of {count} training images at most {most} can be held "
            f"out, such as --set {name}={max(1, min(most, count // 5))}"
        )


def batch_of(protocol: Linear | Semi, count: int, processes: int) -> int:
    """Images of a global step on `count` training images, which may be fewer than a batch. Raises
    ValueError where the processes cannot share them equally."""
    batch = min(protocol.batch, count - count % processes)
    if batch < processes or batch % processes:
        raise ValueError(
            f"a batch of {batch} cannot be shared by {processes} processes: "
            "use a number of processes that divides it"
        )
    return batch


def bn_group_of(
    protocol: Semi, batch: int, processes: int, micro_batch: int | None
) -> tuple[int | None, list[str]]:
    """The protocol's batch-norm group, or None (the whole batch) where `batch` is not made of
    groups, with a warning. Raises ValueError where a micro-batch is not made of them."""
    group, warnings = protocol.bn_group, list[str]()
    if group is not None and batch % group:
        warnings.append(f"a batch of {batch} images is not made of groups of {group}: one group")
        group = None
    micro, local = micro_batch or batch, batch // processes
    if micro < local and (group is None or micro % group):
        raise ValueError(
            f"micro-batch {micro} is not made of whole batch-norm groups of "
            f"{group or batch}: choose a multiple of {group or batch}"
        )
    return group, warnings
