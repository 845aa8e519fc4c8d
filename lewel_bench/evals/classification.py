"""Protocols that classify the images of class folders: linear probe, kNN, few labels."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.grid import Decays, Fraction, Grid, Lr, check_grid, check_milestones
from lewel_bench.evals.protocol import (
    FORWARD,
    Candidate,
    Description,
    ForwardPass,
    Protocol,
    batch_of,
    bn_group_of,
    check_held_out,
    measured_note,
    number_list,
)
from lewel_bench.pretrain.recipe import Positive, Rate

if TYPE_CHECKING:
    from lewel_bench.evals.context import Context
    from lewel_bench.evals.outcome import CandidateResult, Inputs, Outcome, Splits


class Linear(Protocol):
    """A linear classifier on a frozen backbone; every (lr, weight decay) of the grid is one head.

    `lrs` are absolute, at `batch`. `milestones` are epochs at which the learning rate falls to a
    tenth; none means a cosine to zero that moves once per epoch. `held_out` training images choose
    among the heads. `refit` trains once more on all training images with the chosen head's
    settings. `knn_k` is the number of neighbours of the kNN accuracy that is reported too (0: not
    measured), whose bank is what the heads were trained on: the training images less those held
    out, or with `refit` all.
    """

    job_class: ClassVar[str] = "linear"

    runner: Literal["linear"] = "linear"
    image_size: Positive = 224
    resize: Positive = 256
    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_grid("lrs", self.lrs)
        check_grid("weight_decays", self.weight_decays)
        check_milestones(self.milestones, self.epochs, "epochs")
        return self

    def grid(self) -> list[Candidate]:
        """The heads: every (lr, weight decay). One job trains all of them."""
        return list(product(self.lrs, self.weight_decays))

    def choices(
        self, *, refit: bool = False, lrs: Sequence[float] = (), engine: str | None = None
    ) -> dict[str, Any]:
        """--refit trains the chosen head again; a linear probe has its own grid and one engine."""
        return {"refit": True} if refit else {}

    def splits(self, data: Dataset, *, final: bool) -> "Splits":
        """All training images but those held out, the held-out ones, and the validation images."""
        from lewel_bench.evals import splits

        return splits.of_linear(self, data)

    def training_count(self, total: int, classes: int, *, final: bool) -> int:
        """All but the held-out images; a class keeps one at least."""
        check_held_out(self.name, self.held_out, total, total - classes)
        return total - self.held_out

    def check_batch(self, count: int, processes: int, micro_batch: int | None) -> None:
        """Raise ValueError where the processes cannot share a batch equally."""
        batch_of(self.batch, count, processes)

    def forward_pass(self) -> ForwardPass:
        """Any division of a batch gives the same features of a frozen backbone."""
        return ForwardPass(self.batch, limit=FORWARD)

    def run(self, inputs: "Inputs", context: "Context") -> "Outcome":
        """Train every head of the grid in one pass over the images; see `linear.run`."""
        from lewel_bench.evals import linear

        return linear.run(self, backbone=inputs.backbone, splits=inputs.splits, context=context)

    def clear(self, folder: Path) -> None:
        """Remove the checkpoints of the heads and of the refit."""
        super().clear(folder)
        super().clear(folder / "refit")

    def describe(self) -> Description:
        """Optimizer, batch and epochs; the learning rates of the grid."""
        return Description(
            f"{self.optimizer}, batch {self.batch}, {self.epochs} epochs",
            f"lr {number_list(self.lrs)}",
            f"{self.held_out} held-out training images",
            measured_note(self.name, None, self.held_out, len(self.grid()), refit=self.refit),
        )


class Knn(Protocol):
    """Weighted k-nearest neighbours on centre crops; the first of `ks` is the table's."""

    job_class: ClassVar[str] = "linear"

    runner: Literal["knn"] = "knn"
    image_size: Positive = 224
    resize: Positive = 256
    ks: Annotated[tuple[Positive, ...], Field(min_length=1)] = (200, 20)
    temperature: Lr = 0.07

    def splits(self, data: Dataset, *, final: bool) -> "Splits":
        """All training images as the bank; nothing is chosen, so nothing is held out."""
        from lewel_bench.evals import splits

        return splits.of_knn(data)

    def forward_pass(self) -> ForwardPass:
        """Any division gives the same features of a frozen backbone."""
        return ForwardPass(FORWARD, limit=FORWARD)

    def run(self, inputs: "Inputs", context: "Context") -> "Outcome":
        """Measure the accuracy of each k; see `knn.run`."""
        from lewel_bench.evals import knn

        return knn.run(self, backbone=inputs.backbone, splits=inputs.splits, context=context)

    def describe(self) -> Description:
        """The numbers of neighbours and the temperature; nothing is searched."""
        setting = f"k {', '.join(map(str, self.ks))}, T {self.temperature:g}"
        measured = measured_note(self.name, None, None, 1, refit=False)
        return Description(setting, "–", "–", measured)


class Semi(Protocol):
    """Fine-tuning of the whole network on a `fraction` of the labels; one run per pair of learning
    rates.

    `bn_group` is the number of images whose statistics one batch norm shares (None: the whole
    batch). The `held_out` images that choose among the pairs are outside the labelled subset.
    `published_lr` is the paper's (backbone learning rate, head learning rate).
    """

    job_class: ClassVar[str] = "semi"

    runner: Literal["semi"] = "semi"
    fraction: Fraction
    image_size: Positive = 224
    resize: Positive = 256
    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
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

    def grid(self) -> list[Candidate]:
        """Every (backbone lr, head lr)."""
        return list(product(self.backbone_lrs, self.head_lrs))

    def identity(self, candidate: Candidate | None = None) -> dict[str, Any]:
        """What determines the number: of the whole search, or of its one `candidate`."""
        own = self.model_dump(mode="json", exclude=self.NOT_IDENTITY)
        if candidate is not None:
            del own["backbone_lrs"], own["head_lrs"]
            own["lr"] = list(candidate)
        return own

    def candidates(self) -> Sequence[Candidate]:
        """Each pair of learning rates fine-tunes its own network, in a job of its own."""
        return self.grid()

    def final_trainings(self) -> int:
        """The number is that of the chosen candidate."""
        return 0

    def splits(self, data: Dataset, *, final: bool) -> "Splits":
        """The labelled subset, the held-out images outside it, and the validation images."""
        from lewel_bench.evals import splits

        return splits.of_semi(self, data)

    def training_count(self, total: int, classes: int, *, final: bool) -> int:
        """The labelled subset: a fraction of each class, one image at least."""
        check_held_out(self.name, self.held_out, total, total - classes)
        return classes * max(1, round(self.fraction * total / classes))

    def check_batch(self, count: int, processes: int, micro_batch: int | None) -> None:
        """Raise ValueError where processes or micro-batches cannot share a batch equally."""
        bn_group_of(self.bn_group, batch_of(self.batch, count, processes), processes, micro_batch)

    def forward_pass(self) -> ForwardPass:
        """Batch norm takes its statistics over whole groups."""
        return ForwardPass(self.batch, bn_group=self.bn_group or self.batch)

    def run(self, inputs: "Inputs", context: "Context") -> "Outcome":
        """Fine-tune the whole network at the candidate's learning rates; see `semi.run`."""
        from lewel_bench.evals import semi

        assert inputs.candidate is not None
        return semi.run(
            self,
            lr=inputs.candidate,
            backbone=inputs.backbone,
            splits=inputs.splits,
            context=context,
        )

    def choose(self, results: Sequence["CandidateResult"]) -> "Outcome":
        """The candidate with the best top-1 on the held-out images."""
        from lewel_bench.evals.choose import choose

        grids = {"backbone_lr": self.backbone_lrs, "head_lr": self.head_lrs}
        return choose(self.name, results, score="top1", grids=grids, lower="head_lrs")

    def describe(self) -> Description:
        """The share of the labels, batch and epochs; both grids of learning rates."""
        return Description(
            f"{self.fraction:.0%} of the labels, batch {self.batch}, {self.epochs} epochs",
            f"backbone {number_list(self.backbone_lrs)}; head {number_list(self.head_lrs)}",
            f"{self.held_out} held-out training images",
            measured_note(self.name, None, self.held_out, len(self.grid()), refit=False),
        )
