"""What to submit now; pure: records, queued jobs and verdicts in, job arrays and states out.

Readiness is decided from records alone. SLURM's dependencies would start the children of a failed
parent once the controller has forgotten it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lewel_bench.slurm.retry import UNTRIED, Verdict


@dataclass(frozen=True)
class PlannedJob:
    """A job to run: its key, its kind (of the profile), and the keys whose records it reads."""

    key: str
    kind: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobArray:
    """Jobs of one kind that one sbatch submits; `tasks[i]` are the keys of array task i."""

    kind: str
    halvings: int
    tasks: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Decision:
    """What to submit, and the state of every job with its reason.

    done; live: in the queue or running; local: a run without the cluster computes it; submit:
    submitted now; held: ready, but the queue is full; waiting: for the record of another job;
    given_up: only `lewel-bench retry` submits it again; cancelled: only a run that a user starts
    submits it again; blocked: it needs a job that is given up, cancelled or blocked.
    """

    arrays: tuple[JobArray, ...]
    states: dict[str, tuple[str, str]]


def plan(
    jobs: Sequence[PlannedJob],
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
    """Decide about `jobs`, in their order.

    `judge(key)` is called only for jobs that nobody computes and whose needs have records; None
    means that there was no attempt. At most `room` tasks are submitted.
    """
    states: dict[str, tuple[str, str]] = {}
    ready: dict[tuple[str, int], list[str]] = {}
    unrunnable = {"given_up": "failed", "cancelled": "cancelled", "blocked": "blocked"}
    for job in jobs:
        if job.key in done:
            states[job.key] = ("done", "")
        elif job.key in live:
            states[job.key] = ("live", "")
        elif job.key in busy:
            states[job.key] = ("local", "")
        elif missing := [need for need in job.needs if need not in done]:
            blocking = [need for need in missing if states.get(need, ("",))[0] in unrunnable]
            states[job.key] = (
                (
                    "blocked",
                    f"needs {blocking[0]} ({unrunnable[states[blocking[0]][0]]})",
                )
                if blocking
                else ("waiting", f"needs {len(missing)} of {len(job.needs)} records")
            )
        else:
            verdict = judge(job.key) or UNTRIED
            if not verdict.again:
                states[job.key] = ("given_up", verdict.reason)
            elif verdict.cancelled and not attended:
                states[job.key] = ("cancelled", verdict.reason)
            else:
                states[job.key] = ("submit", verdict.reason)
                ready.setdefault((job.kind, verdict.halvings), []).append(job.key)
    arrays = []
    for (kind, halvings), keys in ready.items():
        size = pack.get(kind, 1)
        tasks = [tuple(keys[i : i + size]) for i in range(0, len(keys), size)]
        for held_keys in tasks[max(0, room) :]:
            states.update(dict.fromkeys(held_keys, ("held", "the queue is full (max_queued)")))
        tasks = tasks[: max(0, room)]
        room -= len(tasks)
        # MaxArraySize is one more than the highest index: one less is safe everywhere
        step = max(1, max_array - 1)
        for i in range(0, len(tasks), step):
            arrays.append(JobArray(kind, halvings, tuple(tasks[i : i + step])))
    return Decision(tuple(arrays), states)


def wake_dependency(
    jobs: Sequence[PlannedJob], states: Mapping[str, tuple[str, str]], ids: Mapping[str, str]
) -> str:
    """The dependency of the next planning job: on the tasks that unblock a job, else on all.

    `ids` are the ids of the unfinished tasks, by key. SLURM cannot combine `and` with `or`. Where
    jobs wait for a single task each, or for room in the queue, any of these tasks wakes the
    planner; otherwise all tasks that the nearest job needs. `afterany` counts a SLURM job that the
    controller has forgotten as ended, as it should here.
    """
    sets: list[frozenset[str]] = []
    for job in jobs:
        if states.get(job.key, ("",))[0] == "waiting":
            needs = frozenset(ids[need] for need in job.needs if need in ids)
            if needs:
                sets.append(needs)
    single = {next(iter(needs)) for needs in sets if len(needs) == 1}
    if any(state == "held" for state, _ in states.values()):
        single = set(ids.values())  # whichever ends makes room
    if single:
        return "?".join(f"afterany:{id}" for id in sorted(single)[:MAX_DEPENDENCY_IDS])
    sets.sort(key=len)
    nearest = sorted(sets[0] if sets else set(ids.values()))
    if len(nearest) > MAX_DEPENDENCY_IDS:
        nearest = sorted({id.partition("_")[0] for id in nearest})
    return "afterany:" + ":".join(nearest) if nearest else ""


MAX_DEPENDENCY_IDS = 100  # beyond it the dependency names whole arrays
