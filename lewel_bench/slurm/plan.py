"""What to submit now; pure: records, live jobs and verdicts in, batches and states out.

Readiness comes from records alone. SLURM's dependencies would start the children of a failed
parent once the controller has forgotten it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lewel_bench.slurm.retry import FIRST, Verdict


@dataclass(frozen=True)
class Cell:
    """One unit of work: its key, the kind of job, and the keys whose records it reads."""

    key: str
    kind: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Cells of one shape that go out together; `tasks[i]` are the keys of one task."""

    kind: str
    halvings: int
    tasks: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Decision:
    """What to submit, and the state of every cell with the reason for it.

    done; live: a job of it may run or start; here: a run computes it on one machine; submit: goes
    out now; held: ready, but the queue is full; waiting: a cell that it needs is on its way;
    given_up: only `retry` tries it again; cancelled: only a run that a person starts tries it
    again; blocked: one of these needs it not.
    """

    batches: tuple[Batch, ...]
    states: dict[str, tuple[str, str]]


def plan(
    cells: Sequence[Cell],
    done: Collection[str],
    live: Collection[str],
    judge: Callable[[str], Verdict | None],
    *,
    pack: Mapping[str, int],
    max_array: int,
    room: int,
    busy: Collection[str] = (),
    attended: bool = True,
) -> Decision:
    """Decide about `cells`, in their order.

    `judge(key)` is asked only about cells that nobody computes and whose needs have records; None
    means that nothing has been tried. At most `room` tasks go out.
    """
    states: dict[str, tuple[str, str]] = {}
    ready: dict[tuple[str, int], list[str]] = {}
    broken = ("given_up", "cancelled", "blocked")
    for cell in cells:
        if cell.key in done:
            states[cell.key] = ("done", "")
        elif cell.key in live:
            states[cell.key] = ("live", "")
        elif cell.key in busy:
            states[cell.key] = ("here", "")
        elif missing := [need for need in cell.needs if need not in done]:
            stopped = [need for need in missing if states.get(need, ("",))[0] in broken]
            states[cell.key] = (
                ("blocked", f"needs {stopped[0]}, which is {states[stopped[0]][0]}")
                if stopped
                else ("waiting", f"needs {len(missing)} of {len(cell.needs)} records")
            )
        else:
            verdict = judge(cell.key) or FIRST
            if not verdict.again:
                states[cell.key] = ("given_up", verdict.reason)
            elif verdict.cancelled and not attended:
                states[cell.key] = ("cancelled", verdict.reason)
            else:
                states[cell.key] = ("submit", verdict.reason)
                ready.setdefault((cell.kind, verdict.halvings), []).append(cell.key)
    batches = []
    for (kind, halvings), keys in ready.items():
        size = pack.get(kind, 1)
        tasks = [tuple(keys[i : i + size]) for i in range(0, len(keys), size)]
        for keys_held in tasks[max(0, room) :]:
            states.update(dict.fromkeys(keys_held, ("held", "the queue is full (max_queued)")))
        tasks = tasks[: max(0, room)]
        room -= len(tasks)
        # MaxArraySize is one more than the highest index: one less is safe everywhere
        step = max(1, max_array - 1)
        for i in range(0, len(tasks), step):
            batches.append(Batch(kind, halvings, tuple(tasks[i : i + step])))
    return Decision(tuple(batches), states)


def wake_on(
    cells: Sequence[Cell], states: Mapping[str, tuple[str, str]], ids: Mapping[str, str]
) -> str:
    """The dependency of the job that plans next: on what unblocks the first cell, else on all.

    `ids` are the ids of the tasks that live, by key. SLURM has no mixture of `and` and `or`, so
    where several cells wait for one task each, or are held back until the queue has room, any of
    these wakes, otherwise all that the nearest cell needs. `afterany` counts a job that SLURM has
    forgotten as ended, which is right here.
    """
    sets: list[frozenset[str]] = []
    for cell in cells:
        if states.get(cell.key, ("",))[0] == "waiting":
            needs = frozenset(ids[need] for need in cell.needs if need in ids)
            if needs:
                sets.append(needs)
    alone = {next(iter(one)) for one in sets if len(one) == 1}
    if any(state == "held" for state, _ in states.values()):
        alone = set(ids.values())  # whichever ends makes room
    if alone:
        return "?".join(f"afterany:{id}" for id in sorted(alone)[:MOST_IDS])
    sets.sort(key=len)
    nearest = sorted(sets[0] if sets else set(ids.values()))
    if len(nearest) > MOST_IDS:
        nearest = sorted({id.partition("_")[0] for id in nearest})
    return "afterany:" + ":".join(nearest) if nearest else ""


MOST_IDS = 100  # in one dependency; whole arrays beyond
