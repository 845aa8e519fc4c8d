"""What jobs will cost: from finished jobs of like shape, else a probe, else what was published."""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lewel_bench.harness.gc import size
from lewel_bench.harness.plan import Job
from lewel_bench.results.record import Record
from lewel_bench.results.table import load

V100_GPUS = 8
# Device-hours an epoch of ImageNet-1K with ResNet-50, and where that is from: facebookresearch/moco
# @ 7397dfe (53 hours for 200 epochs on 8 V100) and the seconds of a step in LEWEL's published log
# (8 V100, mixed precision). Each pair of Table 9 has the ratio that it has there.
_MOCO, _LEWEL_B = 424 / 200, 229 / 100
ANCHORS = {
    "moco_v2": ("moco_v2", _MOCO, "MoCo's README, V100"),
    "lewel_m": ("moco_v2", _MOCO, "MoCo's README and Table 9, V100"),
    "lewel_b": ("lewel_b", _LEWEL_B, "LEWEL's log, V100"),
    "byol": ("lewel_b", _LEWEL_B, "LEWEL's log and Table 9, V100"),
}
# Weights of a backbone of width 64, in millions (torchvision), without its classifier.
MILLIONS = {"resnet18": 11.2, "resnet34": 21.3, "resnet50": 23.5, "resnet101": 42.5}
# Of a backbone in a checkpoint: itself, its target, the momentum of the optimizer, heads of its
# size. Barlow Twins' heads and InstDisc's memory are larger.
COPIES = 4
LOOKED_AT = 3  # folders of like jobs whose size is measured


@dataclass(frozen=True)
class Cost:
    """Device-hours of one job and where the figure is from (None where nothing is known), and the
    number of devices that they are for."""

    hours: float | None
    basis: str
    devices: int = 1


@dataclass
class _Known:
    """What is known of one shape: device-seconds a unit, devices, and keys, of each like job."""

    seconds: list[float] = field(default_factory=list)
    devices: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


class Estimator:
    """Costs of jobs, from the records under one root."""

    def __init__(self, records: Mapping[str, Record], root: Path | None = None) -> None:
        self.records, self.root = records, root
        self.published = {row.id: row.values["seconds"] for row in load("9").rows}
        self.probed: dict[Any, tuple[float, int]] = {}

    @cached_property
    def _alike(self) -> tuple[dict[Any, _Known], dict[Any, _Known]]:
        """What is known of jobs by what they share, and by what those of about one cost do."""
        found: tuple[dict[Any, _Known], dict[Any, _Known]] = {}, {}
        for key, record in self.records.items():
            if not record.seconds or record.kind == "import":
                continue
            *shapes, units = _shape(record.kind, record.spec)
            for known, shape in zip(found, shapes, strict=True):
                one = known.setdefault(shape, _Known())
                one.seconds.append(record.seconds * record.processes / units)
                one.devices.append(record.processes)
                one.keys.append(key)
        return found

    def cost(self, job: Job) -> Cost:
        """The estimate for one job."""
        return self.cost_of(job.model_dump(mode="json"))

    def cost_of(self, job: Mapping[str, Any]) -> Cost:
        """The estimate for the content of a spec.json."""
        if job["kind"] == "final" and job.get("upstream") not in job.get("needs", ()):
            return Cost(0.0, "reads records")
        exact, wide, units = _shape_of(job)
        alike, about = self._alike
        if known := alike.get(exact):
            return _median(known, units, "like it here")
        if exact in self.probed:
            seconds, steps = self.probed[exact]
            return Cost(seconds * units / 3600, f"probe of {steps} steps here")
        if known := about.get(wide):
            said = "of other methods here" if job.get("recipe") else "about like it here"
            return _median(known, units, said)
        recipe = job.get("recipe")
        if recipe and _as_published(recipe, job["data"]["id"]) and recipe["method"] in ANCHORS:
            of, hours, source = ANCHORS[recipe["method"]]
            ratio = self.published[recipe["method"]] / self.published[of]
            return Cost(hours * ratio * recipe["epochs"], source, V100_GPUS)
        return Cost(None, "unknown: add --probe 50, or run one like it")

    def lacks(self, job: Job) -> Any:
        """What a probe of a job would stand for; None where records are like it."""
        exact = _shape_of(job.model_dump(mode="json"))[0]
        return None if exact in self._alike[0] else exact

    def learn(self, job: Job, seconds: float, steps: int) -> None:
        """Take a job's device-seconds, told from `steps` steps of it, for all of its shape."""
        exact, _, units = _shape_of(job.model_dump(mode="json"))
        self.probed[exact] = (seconds / units, steps)

    def disk(self, job: Job) -> int:
        """Bytes that a finished job keeps: as like jobs do, else the weights of a pre-training."""
        known = self._alike[0].get(_shape_of(job.model_dump(mode="json"))[0])
        if known and self.root:
            folders = [self.root / key for key in known.keys[:LOOKED_AT]]
            return int(statistics.median(map(_size, folders)))
        return _weights(job)


@dataclass(frozen=True)
class Total:
    """What jobs cost together: device-hours (`unknown` jobs not counted), hours from start to end
    on `slots` places, bytes kept, and bytes of the checkpoints of those that run at once."""

    jobs: int
    hours: float
    unknown: int
    wall_hours: float
    slots: int
    disk: int
    working: int

    def __str__(self) -> str:
        more = f", and {self.unknown} jobs of unknown cost" if self.unknown else ""
        at_once = f"{self.slots} job{'s' * (self.slots != 1)} at once"
        return (
            f"{self.jobs} jobs: {self.hours:.3g} device-hours{more}; {duration(self.wall_hours)} "
            f"with {at_once}; {size(self.disk)} kept, {size(self.working)} of checkpoints or more "
            "meanwhile"
        )


def total(jobs: Sequence[Job], estimator: Estimator, slots: int = 1) -> Total:
    """What `jobs` (those to do, in dependency order) cost together, `slots` of them at once."""
    costs = {job.key: estimator.cost(job) for job in jobs}
    working = sorted((2 * COPIES * _weights(job) for job in jobs), reverse=True)
    return Total(
        jobs=len(jobs),
        hours=sum(cost.hours or 0.0 for cost in costs.values()),
        unknown=sum(cost.hours is None for cost in costs.values()),
        wall_hours=wall(jobs, costs, slots),
        slots=slots,
        disk=sum(map(estimator.disk, jobs)),
        working=sum(working[:slots]),
    )


def wall(jobs: Sequence[Job], costs: Mapping[str, Cost], slots: int) -> float:
    """Hours until the last of `jobs` ends where `slots` run at once, each as soon as what it needs
    is done."""
    ends: dict[str, float] = {}
    free = [0.0] * max(1, min(slots, len(jobs)))
    for job in jobs:
        ready = max((ends.get(need, 0.0) for need in job.needs), default=0.0)
        cost = costs[job.key]
        begins = max(heapq.heappop(free), ready)
        ends[job.key] = begins + (cost.hours or 0.0) / cost.devices
        heapq.heappush(free, ends[job.key])
    return max(ends.values(), default=0.0)


def duration(hours: float) -> str:
    """Hours as a person reads them."""
    if hours < 1.5:
        return f"{60 * hours:.2g} min" if 60 * hours < 10 else f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _median(known: _Known, units: float, said: str) -> Cost:
    hours = statistics.median(known.seconds) * units / 3600
    return Cost(hours, f"{len(known.seconds)} {said}", round(statistics.median(known.devices)))


# Fields of a protocol that its cost an epoch or a step depends on
ALIKE = (
    *("runner", "optimizer", "fraction", "image_size", "engine", "model", "masks", "metric"),
    *("min_sizes", "scale", "crop", "batch", "rois"),
)

UNLIKE = ("optimizer", "fraction", "batch")  # but not by much


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _as_published(recipe: Mapping[str, Any], data: str) -> bool:
    published = ("resnet50", "imagenet", 224, "imagenet")
    backbone = recipe["backbone"]
    asked = (backbone["arch"], backbone["stem"], recipe["image_size"], data)
    return asked == published


def _weights(job: Job) -> int:
    """Bytes of the backbone that a pre-training leaves."""
    if job.recipe is None:
        return 0
    backbone = job.recipe.backbone
    return int(4e6 * MILLIONS[backbone.arch] * (backbone.width / 64) ** 2)


def _shape_of(job: Mapping[str, Any]) -> tuple[Any, Any, float]:
    """`_shape` of the content of a spec.json, where a record has only the id of the data."""
    return _shape(job["kind"], {**job, "data": job["data"]["id"]})


def _shape(kind: str, spec: Mapping[str, Any]) -> tuple[Any, Any, float]:
    """What jobs of one cost share, what those of about one cost do, and the units (epochs, steps)
    that it is proportional to."""
    if recipe := spec.get("recipe"):
        about = (kind, spec["data"], *(str(recipe[f]) for f in ("backbone", "image_size")))
        exact = (*about, *(recipe[f] for f in ("method", "batch", "precision")))
        return exact, about, float(recipe["epochs"])
    protocol = spec["protocol"]
    # a dense search and the training after it take the same steps
    kind = "dense" if "steps" in protocol else kind
    exact = (kind, spec["data"], *(str(protocol.get(f)) for f in ALIKE))
    about = (kind, *(str(protocol.get(f)) for f in ALIKE if f not in UNLIKE))
    share = protocol.get("fraction", 1)  # an epoch is one of the labelled images
    return exact, about, float(protocol.get("epochs") or protocol.get("steps") or 1) * share
