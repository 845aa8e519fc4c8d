"""What a job will cost: from finished jobs of like shape, else from what the paper published."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lewel_bench.harness.plan import Job
from lewel_bench.results.record import Record
from lewel_bench.results.table import load

V100_GPUS = 8  # what Table 9's seconds were measured on


@dataclass(frozen=True)
class Cost:
    """Device hours of one job and where the figure comes from; None where nothing is known."""

    hours: float | None
    basis: str


class Estimator:
    """Costs of jobs, from the records under one root."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.published = {row.id: row.values["seconds"] for row in load("9").rows}
        self.seconds: dict[Any, list[float]] = {}
        for record in records.values():
            shape, units = _shape(record.kind, record.spec)
            if record.seconds:
                spent = record.seconds * record.processes / units
                self.seconds.setdefault(shape, []).append(spent)

    def cost(self, job: Job) -> Cost:
        """The estimate for one job."""
        return self.cost_of(job.model_dump(mode="json"))

    def cost_of(self, job: Mapping[str, Any]) -> Cost:
        """The estimate for the content of a spec.json."""
        if job["kind"] == "final" and job.get("upstream") not in job.get("needs", ()):
            return Cost(0.0, "reads records")
        shape, units = _shape(job["kind"], {**job, "data": job["data"]["id"]})
        if shape in self.seconds:
            known = self.seconds[shape]
            return Cost(statistics.median(known) * units / 3600, f"{len(known)} like it here")
        recipe = job.get("recipe")
        if recipe and _as_table_9(recipe) and recipe["method"] in self.published:
            seconds = self.published[recipe["method"]] * recipe["epochs"]
            return Cost(seconds * V100_GPUS / 3600, "Table 9, V100")
        return Cost(None, "unknown until one like it has run")


# Fields of a protocol that its cost an epoch or a step depends on
ALIKE = (
    *("runner", "optimizer", "fraction", "image_size", "engine", "model", "masks", "metric"),
    *("min_sizes", "scale", "crop", "batch", "rois"),
)


def _as_table_9(recipe: Mapping[str, Any]) -> bool:
    published = ("resnet50", "imagenet", 224, "imagenet")
    backbone = recipe["backbone"]
    asked = (backbone["arch"], backbone["stem"], recipe["image_size"], recipe["data"])
    return asked == published


def _shape(kind: str, spec: Mapping[str, Any]) -> tuple[Any, float]:
    """What jobs of one cost share, and the units (epochs) that it is proportional to."""
    if recipe := spec.get("recipe"):
        same = ("method", "backbone", "image_size", "batch", "precision")
        return (kind, spec["data"], str([recipe[f] for f in same])), float(recipe["epochs"])
    protocol = spec["protocol"]
    shape = (spec["data"], str([protocol[f] for f in ALIKE if f in protocol]))
    # a dense search and the training after it take the same steps
    kind = "dense" if "steps" in protocol else kind
    return (kind, *shape), float(protocol.get("epochs") or protocol.get("steps") or 1)
