"""What every protocol answers: its jobs, images, limits and words, and how it is run.

The harness asks a protocol and never which type it is. Classification protocols are in
`classification`, detection and segmentation in `dense`, the paper's own values in `protocols`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lewel_bench.evals.dataset import Dataset
from lewel_bench.pretrain.recipe import Positive
from lewel_bench.value import Value

if TYPE_CHECKING:
    from lewel_bench.evals.context import Context
    from lewel_bench.evals.outcome import CandidateResult, Inputs, Outcome

Candidate = tuple[float, float]  # (lr, weight decay), or (backbone lr, head lr)

FORWARD = 256  # images of one forward pass of a frozen backbone, unless the machine says fewer


class Description(NamedTuple):
    """A protocol in words: what is done, what is searched, which images choose, and in one line
    how a table's number was measured."""

    setting: str
    searched: str
    chosen_on: str
    measured: str


class ForwardPass(NamedTuple):
    """The images that go through the network together.

    `batch` are those of a global step, `limit` is the most of one pass (None: no limit), `bn_group`
    how many share batch-norm statistics (None: batch norm is frozen), `undivided` whether a process
    needs all of its images in one pass.
    """

    batch: int
    limit: int | None = None
    bn_group: int | None = None
    undivided: bool = False


class Protocol(Value, ABC):
    """An evaluation: frozen values that name everything that determines its number.

    `name`, `label`, `source` and `published_lr` (the learning rate that the paper states) are not
    part of the identity. `job_class` names the settings of a cluster profile for its jobs,
    `engines` what can train it (empty: there is no choice).
    """

    NOT_IDENTITY: ClassVar[set[str]] = {"name", "label", "source", "published_lr"}
    job_class: ClassVar[str]
    engines: ClassVar[tuple[str, ...]] = ()

    runner: str
    name: str
    label: str
    source: str
    data: str = "imagenet"
    revision: Positive = 1

    def identity(self, candidate: Candidate | None = None) -> dict[str, Any]:
        """What determines the number, as plain data: of all, or of the one `candidate`."""
        assert candidate is None, f"{self.name} has no jobs of single candidates"
        return self.model_dump(mode="json", exclude=self.NOT_IDENTITY)

    def candidates(self) -> Sequence[Candidate]:
        """The candidates that are trained by a job each; empty where one job trains all."""
        return ()

    def final_trainings(self) -> int:
        """How many trainings of a backbone end in a number each, after the candidates' jobs.

        0: nothing is trained any more, the number is that of the chosen candidate.
        """
        return 1

    def choices(
        self, *, refit: bool = False, lrs: Sequence[float] = (), engine: str | None = None
    ) -> dict[str, Any]:
        """The fields that --refit, --lrs and --engine set here; empty for what has no use here."""
        return {}

    def engine_name(self) -> str | None:
        """The engine that trains and measures; None where there is no choice."""
        return None

    @abstractmethod
    def splits(self, data: Dataset, *, final: bool) -> Any:
        """The images that train, that choose among the candidates, and that are reported.

        `final`: of the job that ends in a number, not of a candidate's. Raises ValueError where
        more is to be held out than `data` has.
        """

    def training_count(self, total: int, classes: int, *, final: bool) -> int:
        """How many of `total` training images `splits` would train on. Raises as `splits` does."""
        return total

    def check_machine(self, processes: int, *, on_cpu: bool) -> None:
        """Raise ValueError where the processes or their device cannot run it."""
        return

    def check_batch(self, count: int, processes: int, micro_batch: int | None) -> None:
        """Raise ValueError where `count` training images make no batch for the processes."""
        return

    def needs_one_process(self, *, on_cpu: bool) -> bool:
        """Whether one process runs it, however many are asked for."""
        return False

    @abstractmethod
    def forward_pass(self) -> ForwardPass:
        """The images that go through the network together, which a micro-batch may divide."""

    @abstractmethod
    def run(self, inputs: "Inputs", context: "Context") -> "Outcome":
        """Compute a job that trains.

        Resumes from the checkpoints in the context's folder. Raises Stopped after saving,
        ValueError where nothing could be measured.
        """

    def choose(self, results: Sequence["CandidateResult"]) -> "Outcome":
        """The outcome of the best of its candidates. Raises ValueError where none can be chosen."""
        raise AssertionError(f"{self.name} has no jobs of single candidates")

    def clear(self, folder: Path) -> None:
        """Remove from a finished job's folder what an interrupted one resumes from."""
        from lewel_bench.pretrain import checkpoint

        checkpoint.clear(folder)

    @abstractmethod
    def describe(self) -> Description:
        """The protocol in words, for a person who reads a list or a table."""


def batch_of(batch: int, count: int, processes: int) -> int:
    """Images of a global step on `count` training images, which may be fewer than a `batch`. Raises
    ValueError where the processes cannot share them equally."""
    images = min(batch, count - count % processes)
    if images < processes or images % processes:
        raise ValueError(
            f"batch {images} is not divisible by {processes} processes: "
            "use a number of processes that divides it"
        )
    return images


def bn_group_of(
    bn_group: int | None, batch: int, processes: int, micro_batch: int | None
) -> tuple[int | None, list[str]]:
    """The batch-norm group of a protocol, or None (the whole batch) where it does not divide
    `batch`, with a warning. Raises ValueError where it does not divide a micro-batch."""
    group, warnings = bn_group, list[str]()
    if group is not None and batch % group:
        warnings.append(
            f"a batch of {batch} images cannot be divided into batch-norm groups of {group}: the "
            "whole batch is one group"
        )
        group = None
    micro, local = micro_batch or batch, batch // processes
    if micro < local and (group is None or micro % group):
        raise ValueError(
            f"micro-batch {micro} is not a multiple of the batch-norm group of {group or batch} "
            f"images: choose {group or batch} or a multiple"
        )
    return group, warnings


def check_held_out(name: str, held_out: int, count: int, most: int) -> None:
    """Raise ValueError where protocol `name` holds out more than `most` of `count` images."""
    if held_out > most:
        if most < 1:
            raise ValueError(
                f"{name}.held_out {held_out}: none of the {count} training images can be held out, "
                "as every class keeps at least one: add images"
            )
        raise ValueError(
            f"{name}.held_out {held_out}: at most {most} of the {count} training images can be "
            f"held out; try --set {name}.held_out={max(1, min(most, count // 5))}"
        )


def number_list(values: Sequence[float]) -> str:
    """`0.1, 1, 10`"""
    return ", ".join(f"{value:g}" for value in values)


def measured_note(
    name: str, engine: str | None, held_out: int | None, candidates: int, *, refit: bool
) -> str:
    """How a number was measured: protocol, engine, what chose the learning rate, a refit.

    `held_out` is None where nothing is trained.
    """
    parts = [name]
    if engine:
        parts.append(f"engine {engine}")
    if held_out is not None:
        has_grid = candidates > 1
        parts.append(f"chosen on {held_out} held-out images" if has_grid else "one learning rate")
    if refit:
        parts.append("trained again on all images")
    return ", ".join(parts)
