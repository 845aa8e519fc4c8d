"""What goes into an evaluation and what comes out of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from lewel_bench.pretrain.folder import Images

DataT = TypeVar("DataT")  # the images and annotations of a dense task


@dataclass(frozen=True)
class Splits:
    """`train` fits, `select` (held out of the training set) chooses, `report` is only measured."""

    train: Images
    select: Images
    report: Images

    def check(self) -> None:
        """Raise ValueError for an empty split or splits that have different classes."""
        for role in ("train", "select", "report"):
            images: Images = getattr(self, role)
            if len(images) == 0:
                raise ValueError(f"the {role} split has no images")
            if images.classes != self.train.classes:
                raise ValueError(
                    f"the classes of the {role} split differ from those of the train split "
                    f"({len(images.classes)} and {len(self.train.classes)})"
                )
        if len(self.train.classes) < 2:
            only = self.train.classes[0]
            raise ValueError(f"classification needs at least two classes, got 1: {only}")


@dataclass(frozen=True)
class DenseSplits(Generic[DataT]):
    """`train` fits, `select` (held out of the training set; None where the choice is made)
    chooses, `report` is only measured."""

    train: DataT
    select: DataT | None
    report: DataT

    def check(self) -> None:
        """Raise ValueError for an empty split, splits that have different classes, or one from
        which nothing can be learnt or on which nothing can be measured."""
        for role in ("train", "select", "report"):
            split: Any = getattr(self, role)
            if split is None:
                continue
            if len(split) == 0:
                raise ValueError(f"the {role} split has no images")
            train: Any = self.train
            if split.classes != train.classes:
                raise ValueError(
                    f"the classes of the {role} split differ from those of the train split "
                    f"({len(split.classes)} and {len(train.classes)})"
                )
            if role == "train" and (reason := split.untrainable()):
                raise ValueError(f"{split.root}: {reason}")
            if role != "train" and (reason := split.unmeasurable()):
                raise ValueError(
                    f"nothing can be measured on the {len(split)} images of the {role} split "
                    f"({split.root}): {reason}"
                )


class CandidateResult(Protocol):
    """What a choice reads of a finished candidate: its record, without what it was computed on."""

    @property
    def key(self) -> str:
        """The key of its record."""

    @property
    def name(self) -> str:
        """The name of its job, for messages."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the select split, in percent."""

    @property
    def outcome(self) -> Mapping[str, Any]:
        """Details of the run, such as the candidate itself."""

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings that the chosen result keeps."""


@dataclass(frozen=True)
class Inputs:
    """What an evaluation job reads: a backbone, the splits of its protocol, and its part of them.

    `candidate` is that of a candidate's job, `trial` counts the final trainings of one backbone,
    `results` are the finished candidates that a final chooses among, `finished` those that a
    candidate's job can be compared with. `pythons` are interpreters by engine.
    """

    backbone: Path
    splits: Any
    candidate: tuple[float, float] | None = None
    trial: int = 0
    results: Sequence[CandidateResult] = ()
    finished: Callable[[], Sequence[CandidateResult]] = tuple
    pythons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The numbers of one evaluation, in percent.

    `metrics` is what a table shows. `paper_rule` is the same run read as the paper does, best over
    evaluated epochs and candidates on the report split (with the top-5 of the best top-1);
    `selection_gap` is the paper rule's minus the reported metric, in points. `chosen` are the
    settings behind `metrics`, `grid` every candidate's numbers (None after it diverged).
    """

    metrics: dict[str, float]
    paper_rule: dict[str, float] = field(default_factory=dict)
    selection_gap: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    grid: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def gap(paper_rule: dict[str, float], reported: dict[str, float]) -> dict[str, float]:
    """The paper rule's minus the reported value for each metric that both have."""
    return {name: paper_rule[name] - reported[name] for name in reported if name in paper_rule}


def join(first: Images, second: Images) -> Images:
    """The images of both, which must share their root and their list of classes."""
    assert (first.root, first.classes) == (second.root, second.classes)
    labels = np.concatenate([first.labels, second.labels])
    return replace(first, files=first.files + second.files, labels=labels)
