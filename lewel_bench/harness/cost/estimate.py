"""What jobs will cost: from finished jobs of like shape, else a probe, else what was published."""

import heapq
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lewel_bench.files import newest_match, read_json
from lewel_bench.harness.cost.classes import Shape, shape, work
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.rundir import CHECKPOINTS, SPEC, JobDir
from lewel_bench.pretrain import methods
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.recipes import RECIPES, family
from lewel_bench.results.record import Record
from lewel_bench.results.table import load
from lewel_bench.value import format_bytes

V100_GPUS = 8
# Device-hours an epoch of ImageNet-1K with ResNet-50, and where that is from: facebookresearch/moco
# @ 7397dfe (53 hours for 200 epochs on 8 V100) and the seconds of a step in LEWEL's published log
# (8 V100, mixed precision). Each pair of Table 9 has the ratio that it has there.
_MOCO, _LEWEL_B = 424 / 200, 229 / 100
ANCHORS = {
    "moco_v2": ("moco_v2", _MOCO, "MoCo's README, 8 V100"),
    "lewel_m": ("moco_v2", _MOCO, "MoCo's README and Table 9, 8 V100"),
    "lewel_b": ("lewel_b", _LEWEL_B, "LEWEL's log, 8 V100"),
    "byol": ("lewel_b", _LEWEL_B, "LEWEL's log and Table 9, 8 V100"),
}
# Weights of a backbone of width 64, in millions (torchvision), without its classifier.
MILLIONS = {"resnet18": 11.2, "resnet34": 21.3, "resnet50": 23.5, "resnet101": 42.5}
# Of a backbone in a checkpoint: itself, its target, the momentum of the optimizer, heads of its
# size; twice that while one is written beside the one before it. Barlow Twins' heads and InstDisc's
# memory are larger.
COPIES = 4
LOOKED_AT = 3  # folders of like jobs whose size is measured


@dataclass(frozen=True)
class Cost:
    """Device-hours of one job and where the figure is from (None where nothing is known), and the
    number of devices that they are for."""

    hours: float | None
    basis: str
    devices: int = 1


class _Like(NamedTuple):
    """Of one job: device-seconds a unit; devices, their model, threads of each; its key."""

    seconds: float
    devices: int
    model: str
    threads: str
    key: str


class Estimator:
    """Costs of jobs, from the records under one root. `threads` of the jobs to come, and `device`,
    the model that they run on where that is known: records of the same are gone by, where there are
    any. Jobs are asked about in dependency order."""

    device: str | None = None

    def __init__(
        self,
        records: Mapping[str, Record],
        root: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self.records, self.root, self.threads = records, root, str(threads)
        self.published = {row.id: row.values["seconds"] for row in load("9").rows}
        self.probed: dict[Any, tuple[float, int | None]] = {}
        self.backbones: dict[str, str | None] = {}  # of what evaluations are of, by key

    @cached_property
    def _known(self) -> dict[Any, list[_Like]]:
        """What is known of jobs by what they share."""
        alike: dict[Any, list[_Like]] = {}
        for key, record in self.records.items():
            if not record.seconds or record.kind == "import":
                continue
            of = self._shape({"kind": record.kind, **record.spec})
            seconds = record.seconds * record.processes / of.units
            model, threads = (record.environment.get(x, "") for x in ("device", "threads"))
            sample = _Like(seconds, record.processes, model, threads, key)
            for level, _ in of.levels:
                alike.setdefault(level, []).append(sample)
        return alike

    def _shape(self, job: Mapping[str, Any]) -> Shape:
        """The shape of the content of a spec.json, or of a record's spec with its kind."""
        if job.get("recipe") and job.get("key"):
            self.backbones[job["key"]] = str(job["recipe"]["backbone"])
        data = job["data"] if isinstance(job["data"], str) else job["data"]["id"]
        upstream = job.get("upstream")
        return shape(job["kind"], job, data, self._backbone(upstream) if upstream else None)

    def _backbone(self, key: str) -> str | None:
        """The backbone of a pre-training or an import: of its record, or as it is planned."""
        if key not in self.backbones:
            self.backbones[key] = None
            if record := self.records.get(key):
                of = record.spec.get("recipe", record.spec)
                self.backbones[key] = str(of.get("backbone"))
            elif self.root:
                spec = read_json(self.root / key / SPEC) or {}
                with suppress(KeyError, TypeError):
                    self.backbones[key] = str(spec["recipe"]["backbone"])
        return self.backbones[key]

    def cost(self, job: Job) -> Cost:
        """The estimate for one job; of one that was interrupted, for what is left of it."""
        whole, done = self.cost_of(job.model_dump(mode="json")), self._done(job)
        if not whole.hours or not done:
            return whole
        basis = f"{whole.basis}, {done:.0%} of it done"
        return replace(whole, hours=whole.hours * (1 - done), basis=basis)

    def _done(self, job: Job) -> float:
        """What a job need not do again: nothing without a checkpoint that it goes on from."""
        folder = self.root / job.key if self.root else None
        if folder is None or job.key in self.records or not newest_match(folder, CHECKPOINTS):
            return 0.0
        come = JobDir(folder).progress()
        return come.share if come else 0.0

    def cost_of(self, job: Mapping[str, Any]) -> Cost:
        """The estimate for the whole of a job, by the content of its spec.json."""
        if job["kind"] == "final" and job.get("upstream") not in job.get("needs", ()):
            return Cost(0.0, "reads records")
        of = self._shape(job)
        recipe = job.get("recipe")
        if of.exact in self.probed:
            seconds, steps = self.probed[of.exact]
            basis = f"probe of {f'{steps} steps' if steps else 'a whole job'} here"
            basis += _dearer(recipe) if recipe and steps else ""
            return Cost(seconds * of.units / 3600, basis)
        for level, wording in of.levels:
            if known := self._known.get(level):
                return self._median(known, of.units, wording)
        method = family(recipe["name"]) if recipe else ""
        if recipe and method in ANCHORS and _as_published(recipe, job["data"]["id"]):
            of_it, hours, source = ANCHORS[method]
            ratio = self.published[method] / self.published[of_it]
            return Cost(hours * ratio * recipe["epochs"], source, V100_GPUS)
        return Cost(None, "unknown: add --probe 50, or finish a comparable run")

    def _median(self, known: Sequence[_Like], units: float, basis: str) -> Cost:
        counts = Counter(sorted(sample.model for sample in known))
        model = self.device if self.device in counts else counts.most_common(1)[0][0]
        same = [sample for sample in known if sample.model == model]
        same = [sample for sample in same if sample.threads == self.threads] or same
        alone = self._models == {model} and self.device in (None, model)
        where = "here" if alone else f"on {model or 'an unknown device'}"
        hours = statistics.median(sample.seconds for sample in same) * units / 3600
        devices = round(statistics.median(sample.devices for sample in same))
        return Cost(hours, f"{len(same)} {basis} {where}", devices)

    @cached_property
    def _models(self) -> set[str]:
        return {sample.model for samples in self._known.values() for sample in samples}

    def lacks(self, job: Job) -> Any:
        """What a probe of a job would stand for; None where records of `device` (of any, where that
        is not known) are like it."""
        exact = self._shape(job.model_dump(mode="json")).exact
        models = {sample.model for sample in self._known.get(exact, ())}
        return None if models and self.device in {None, *models} else exact

    def learn(self, job: Job, seconds: float, steps: int | None) -> None:
        """Take a job's device-seconds, told from `steps` steps of it (None: from all of it), for
        all of its shape."""
        of = self._shape(job.model_dump(mode="json"))
        self.probed[of.exact] = (seconds / of.units, steps)

    def disk(self, job: Job) -> int:
        """Bytes that a finished job keeps: as like jobs do, else the weights of a pre-training."""
        of = self._shape(job.model_dump(mode="json"))
        near = of.levels[:-1] if job.recipe else of.levels[:1]  # the same networks
        known = next((self._known[level] for level, _ in near if level in self._known), ())
        if known and self.root:
            folders = [self.root / sample.key for sample in known[:LOOKED_AT]]
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
        final, temporary = format_bytes(self.disk), format_bytes(self.working)
        disk = f"disk: {final} final, at least {temporary} temporary"
        unknown = f" ({self.unknown} with unknown cost)" if self.unknown else ""
        if self.unknown and not self.hours:
            return f"{self.jobs} jobs{unknown}; {disk}"
        least = "at least " if self.unknown else ""
        slots = f"{self.slots} job{'s' * (self.slots != 1)} at a time"
        return (
            f"{self.jobs} jobs{unknown}: {least}{self.hours:.3g} device-hours, "
            f"{duration(self.wall_hours)} with {slots}; {disk}"
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
    """Hours until the last of `jobs` ends where `slots` run at once: a free place takes the first
    of them, in their order, whose needs are done."""
    order = {job.key: place for place, job in enumerate(jobs)}
    waits = {job.key: {need for need in job.needs if need in order} for job in jobs}
    followers: dict[str, list[str]] = {}
    for job in jobs:
        for need in waits[job.key]:
            followers.setdefault(need, []).append(job.key)
    ready = [order[key] for key, needs in waits.items() if not needs]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < max(1, slots):
            place = heapq.heappop(ready)
            cost = costs[jobs[place].key]
            heapq.heappush(running, (now + (cost.hours or 0.0) / cost.devices, place))
        now, place = heapq.heappop(running)
        for key in followers.get(jobs[place].key, ()):
            waits[key].discard(jobs[place].key)
            if not waits[key]:
                heapq.heappush(ready, order[key])
    return now


def duration(hours: float) -> str:
    """Hours as a person reads them."""
    if hours < 1.5:
        return f"{60 * hours:.2g} min" if 60 * hours < 10 else f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _dearer(recipe: Mapping[str, Any]) -> str:
    """From when on an epoch costs more than the first steps told."""
    begins = methods.full_loss_epoch(Recipe.model_validate(recipe))
    return f"; slower from epoch {begins} on" if begins else ""


def _as_published(recipe: Mapping[str, Any], data: str) -> bool:
    """Whether a recipe of a family with an anchor costs an epoch what the anchor did."""
    if data != "imagenet" or recipe["name"] not in RECIPES:
        return False
    named = RECIPES[recipe["name"]].model_dump(mode="json")
    same = all(recipe[field] == named[field] for field in ("backbone", "image_size"))
    return same and work(recipe) == work(named)


def _weights(job: Job) -> int:
    """Bytes of the backbone that a pre-training leaves."""
    if job.recipe is None:
        return 0
    backbone = job.recipe.backbone
    return int(4e6 * MILLIONS[backbone.arch] * (backbone.width / 64) ** 2)
