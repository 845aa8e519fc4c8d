"""Whether a cell that has no record is tried again, by what ended its attempts; pure.

A node failure and a preemption are nobody's fault: always again. A time limit: again while a newer
checkpoint comes out of it. Out of memory: once more with half the micro-batch. An error of the
code or a loss that is not finite: never by itself, it would only happen again. A full disk: again
by the next run, as a kill.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lewel_bench.slurm.attempt import Attempt

# outcomes that what runs inside a job writes down
DONE, STOPPED, FENCED, RETRY = "done", "stopped", "fenced", "retry"
ERROR, NAN, OOM, KILLED, IO, FULL = "error", "nan", "oom", "killed", "io", "disk full"
FINAL = (ERROR, NAN)
OWN = (
    *FINAL,
    OOM,
    IO,
    FULL,
)  # what an attempt itself says, which the end of its task may have caused
TIME_LIMIT = "time limit"  # the message of an attempt that was warned of it, and saved
FEW = 3  # allocations that trained for less than they took to start, before a person is told
UNREACHED = "UNREACHED"  # the task ended in another cell of its pack
BLAMELESS = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REQUEUED", UNREACHED)
NEVER_STARTED = "never started"
MAX_HALVINGS = 1


@dataclass(frozen=True)
class Verdict:
    """Whether to try a cell again. `cancelled`: only when a person asks by running again."""

    again: bool
    reason: str = ""
    halvings: int = 0
    cancelled: bool = False


FIRST = Verdict(True)


@dataclass(frozen=True)
class End:
    """How a task that held a cell ended, as SLURM says; `time` is that of its submission, `pack`
    all the cells that it held."""

    uid: str
    task: int
    state: str
    time: float
    pack: tuple[str, ...] = ()


def judge(
    attempts: Sequence[Attempt],
    ends: Sequence[End],
    mark: str,
    max_attempts: int,
    settled: Collection[str] = (),
) -> Verdict:
    """The verdict on a cell without a record and without a living job.

    `ends` are its tasks that are over, oldest first; `mark` is the newest checkpoint now; `settled`
    names attempts that had ended when another cell of their task began.
    """
    recent = since_retry(attempts)
    since = attempts[-len(recent) - 1].started if len(recent) < len(attempts) else 0.0
    tried = [one for one in recent if one.outcome not in (DONE, FENCED)]
    fenced = _fenced([one for one in recent if one.outcome != DONE], mark)
    if fenced >= max_attempts:
        return Verdict(
            False,
            f"{fenced} attempts in a row were taken over by another without progress: "
            "does somebody else plan for the same run root?",
        )
    states = {(one.uid, one.task): one.state for one in ends}
    causes = [
        one.outcome
        if one.outcome == NAN or (one.outcome in OWN and one.name in settled)
        else _cause(one, tried[i + 1 :], states)
        for i, one in enumerate(tried)
    ]
    for one, cause in zip(tried, causes, strict=True):
        if cause in FINAL:
            what = "its loss was not finite" if cause == NAN else "it failed"
            return Verdict(False, f"{what}: {one.message or 'see its log'}")
    halvings = 0
    for one, cause in zip(tried, causes, strict=True):
        if cause == OOM:
            if one.halvings >= MAX_HALVINGS:
                return Verdict(False, "out of memory, with half the micro-batch too")
            halvings = one.halvings + 1
    short = unpaid(tried, causes)
    if len(short) >= max_attempts:
        return Verdict(False, unpaid_message(short))
    fruitless = 0
    marks = [*(one.mark for one in tried[1:]), mark][: len(tried)]
    for one, cause, after in reversed(list(zip(tried, causes, marks, strict=True))):
        if after != one.mark:
            since = one.started
            break
        fruitless += cause not in BLAMELESS and cause not in (OOM, "CANCELLED")
    started = {(one.uid, one.task) for one in attempts}
    unstarted = [
        one.state for one in ends if (one.uid, one.task) not in started and one.time >= since
    ]
    fruitless += sum(state not in BLAMELESS and state != "CANCELLED" for state in unstarted)
    if fruitless >= max_attempts:
        cause = causes[-1] if causes else f"{NEVER_STARTED} ({unstarted[-1]})"
        if tried and tried[-1].message:
            cause += f", {tried[-1].message}"
        return Verdict(False, f"no progress in {fruitless} attempts, the last: {cause}")
    if ends and ends[-1].state == "CANCELLED":
        return Verdict(True, "cancelled", halvings, cancelled=True)
    last = ends[-1] if ends else None
    if last and (last.uid, last.task) not in started and last.state not in BLAMELESS:
        return Verdict(True, f"{NEVER_STARTED} ({last.state})", halvings)
    if causes and causes[-1] in (OOM, IO, FULL, KILLED) and tried[-1].message:
        return Verdict(True, f"{causes[-1]}, {tried[-1].message}", halvings)
    return Verdict(True, causes[-1] if causes else "", halvings)


def since_retry(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts after the last `retry` of a person."""
    forgiven = max((i for i, one in enumerate(attempts) if one.outcome == RETRY), default=-1)
    return list(attempts[forgiven + 1 :])


def unpaid(attempts: Sequence[Attempt], causes: Sequence[str] = ()) -> list[Attempt]:
    """The newest attempts in a row that the time limit ended before they had trained for as long as
    they took to start; those that a lost node or a preemption ended do not count. `causes` are
    what ended them (default: their own words)."""
    found: list[Attempt] = []
    words = list(causes) or [one.outcome for one in attempts]
    for one, cause in reversed(list(zip(attempts, words, strict=True))):
        if cause == "TIMEOUT" or (cause == STOPPED and one.message == TIME_LIMIT):
            if not one.ready or one.seen - one.ready >= one.ready - one.started:
                break  # it paid, or did not come to a step, which counts as no progress
            found.insert(0, one)
        elif cause not in (*BLAMELESS, STOPPED, ""):
            break
    return found


def unpaid_message(attempts: Sequence[Attempt]) -> str:
    """What attempts that `unpaid` found mean."""
    start = sum(one.ready - one.started for one in attempts) / len(attempts)
    train = sum(one.seen - one.ready for one in attempts) / len(attempts)
    return (
        f"the last {len(attempts)} allocations spent more time starting (about {start:.0f} s) than "
        f"training (about {train:.0f} s): raise timeout_min of this kind in the profile"
    )


def _fenced(attempts: Sequence[Attempt], mark: str) -> int:
    """How many attempts have lost their claim to another since the last progress of any."""
    marks = [*(one.mark for one in attempts[1:]), mark][: len(attempts)]
    moved = [i for i, one in enumerate(attempts) if marks[i] != one.mark]
    return sum(one.outcome == FENCED for one in attempts[max(moved, default=-1) + 1 :])


def _cause(one: Attempt, later: Sequence[Attempt], states: Mapping[tuple[str, int], str]) -> str:
    """What ended an attempt: its own word, or SLURM's when it was killed."""
    if any((other.uid, other.task) == (one.uid, one.task) for other in later):
        # an error before that came of what SLURM started it again for, such as a lost node
        return one.outcome if one.outcome == STOPPED else "REQUEUED"
    state = states.get((one.uid, one.task), "UNKNOWN")
    if state in ("NODE_FAIL", "PREEMPTED"):
        return state
    if one.outcome in OWN:
        return one.outcome
    if state == "OUT_OF_MEMORY":
        return OOM
    if state in (*BLAMELESS, "CANCELLED", "TIMEOUT"):
        return state
    return one.outcome or KILLED
