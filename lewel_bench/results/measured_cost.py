"""What a pre-training cost, as its record tells it."""

from lewel_bench.results.record import Record
from lewel_bench.results.table import OVERHEAD

GIB = 2**30


def cost(record: Record) -> dict[str, float]:
    """What a pre-training's `record` says of its cost, by the metrics of Table 9.

    `seconds_per_epoch` and `device_hours` (a device is a GPU, or a process on a CPU) count every
    step once, whatever was lost to interruptions; `peak_memory`, of one device in GiB, is absent
    where it was not measured.
    """
    epochs = record.spec["recipe"]["epochs"]
    costs = {
        "seconds_per_epoch": record.seconds / epochs,
        "device_hours": device_hours(record),
    }
    if record.peak_memory is not None:
        costs["peak_memory"] = record.peak_memory / GIB
    return costs


def overhead(record: Record, baseline: Record) -> dict[str, float]:
    """By how many percent an epoch of `record` takes longer than one of `baseline`. Nothing where
    they were not measured alike (`machine`): a time is compared side by side only."""
    theirs = cost(baseline)["seconds_per_epoch"]
    if machine(record) != machine(baseline) or not theirs:
        return {}
    return {OVERHEAD: 100 * (cost(record)["seconds_per_epoch"] / theirs - 1)}


def machine(record: Record) -> str:
    """What a pre-training's time and memory depend on besides its recipe."""
    of = record.environment
    where = [devices(record), record.spec["recipe"]["precision"]]
    if of.get("micro_batch", "whole") != "whole":
        where.append(f"micro-batches of {of['micro_batch']}")
    if of.get("compile") == "true":
        where.append("compiled")
    return ", ".join(where)


def devices(record: Record) -> str:
    """What a record was computed on, as "8 x Tesla V100, 4 threads"."""
    of = record.environment
    count = of.get("threads")
    threads = f", {count} thread{'s' * (count != '1')}" if count else ""
    return f"{record.processes} x {of.get('device', 'unknown device')}{threads}"


def device_hours(record: Record) -> float:
    """The hours that its devices were at work."""
    return record.seconds * record.processes / 3600
