"""Whether a job without a record is submitted again, given how its attempts ended; pure.

Node failure, preemption: always. Time limit: as long as each attempt leaves a newer checkpoint.
Out of memory: once more, with half the micro-batch. An error in the code or a non-finite loss:
never automatically, since it would happen again. A full disk, a kill: by the next run.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lewel_bench.slurm.attempt import Attempt

# outcomes that the process inside a SLURM job records
DONE, STOPPED, FENCED, RETRY = "done", "stopped", "fenced", "retry"
ERROR, NAN, OOM, KILLED, IO, DISK_FULL = "error", "nan", "oom", "killed", "io", "disk full"
FINAL = (ERROR, NAN)
# causes that the attempt itself reports, although the end of its task may have provoked them
ATTEMPT_CAUSES = (*FINAL, OOM, IO, DISK_FULL)
TIME_LIMIT = "time limit"  # the message of an attempt that was warned of the limit and saved
WARN_AFTER = 3  # allocations in a row that started for longer than they trained, until status warns
UNREACHED = "UNREACHED"  # the task ended while it ran another job of its pack
BLAMELESS = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REQUEUED", UNREACHED)
NEVER_STARTED = "never started"
MAX_HALVINGS = 1


@dataclass(frozen=True)
class Verdict:
    """Whether to submit a job again. `cancelled`: only when a user repeats the `run` command."""

    again: bool
    reason: str = ""
    halvings: int = 0
    cancelled: bool = False


UNTRIED = Verdict(True)


@dataclass(frozen=True)
class TaskEnd:
    """How SLURM says that a task with a job ended; `time` is that of its submission, `pack` all the
    jobs of the task."""

    uid: str
    task: int
    state: str
    time: float
    pack: tuple[str, ...] = ()


def judge(
    attempts: Sequence[Attempt],
    ends: Sequence[TaskEnd],
    mark: str,
    max_attempts: int,
    settled: Collection[str] = (),
) -> Verdict:
    """The verdict on a job that has no record and is not in the queue.

    `ends` are its finished tasks, oldest first; `mark` is the newest checkpoint now; `settled`
    names attempts that had ended before another job of their task began.
    """
    recent = since_retry(attempts)
    since = attempts[-len(recent) - 1].started if len(recent) < len(attempts) else 0.0
    tried = [attempt for attempt in recent if attempt.outcome not in (DONE, FENCED)]
    fenced = _count_fenced([attempt for attempt in recent if attempt.outcome != DONE], mark)
    if fenced >= max_attempts:
        return Verdict(
            False,
            f"{fenced} attempts in a row lost their claim to another attempt without progress: "
            "is another user or cluster submitting jobs of this run root?",
        )
    states = {(end.uid, end.task): end.state for end in ends}
    causes = [
        attempt.outcome
        if attempt.outcome == NAN or (attempt.outcome in ATTEMPT_CAUSES and attempt.name in settled)
        else _cause(attempt, tried[i + 1 :], states)
        for i, attempt in enumerate(tried)
    ]
    for attempt, cause in zip(tried, causes, strict=True):
        if cause in FINAL:
            what = "non-finite loss" if cause == NAN else "failed"
            return Verdict(False, f"{what}: {attempt.message or 'see the log'}")
    halvings = 0
    for attempt, cause in zip(tried, causes, strict=True):
        if cause == OOM:
            if attempt.halvings >= MAX_HALVINGS:
                return Verdict(False, "out of memory, also with half the micro-batch")
            halvings = attempt.halvings + 1
    short = short_allocations(tried, causes)
    if len(short) >= max_attempts:
        return Verdict(False, short_allocations_message(short))
    fruitless = 0
    marks = [*(attempt.mark for attempt in tried[1:]), mark][: len(tried)]
    for attempt, cause, after in reversed(list(zip(tried, causes, marks, strict=True))):
        if after != attempt.mark:
            since = attempt.started
            break
        fruitless += cause not in BLAMELESS and cause not in (OOM, "CANCELLED")
    started = {(attempt.uid, attempt.task) for attempt in attempts}
    unstarted = [
        end.state for end in ends if (end.uid, end.task) not in started and end.time >= since
    ]
    fruitless += sum(state not in BLAMELESS and state != "CANCELLED" for state in unstarted)
    if fruitless >= max_attempts:
        cause = causes[-1] if causes else f"{NEVER_STARTED} ({unstarted[-1]})"
        if tried and tried[-1].message:
            cause += f", {tried[-1].message}"
        return Verdict(False, f"no progress in {fruitless} attempts; last cause: {cause}")
    if ends and ends[-1].state == "CANCELLED":
        return Verdict(True, "cancelled", halvings, cancelled=True)
    last = ends[-1] if ends else None
    if last and (last.uid, last.task) not in started and last.state not in BLAMELESS:
        return Verdict(True, f"{NEVER_STARTED} ({last.state})", halvings)
    if causes and causes[-1] in (OOM, IO, DISK_FULL, KILLED) and tried[-1].message:
        return Verdict(True, f"{causes[-1]}, {tried[-1].message}", halvings)
    return Verdict(True, causes[-1] if causes else "", halvings)


def since_retry(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts after the last `lewel-bench retry`."""
    reset = max((i for i, attempt in enumerate(attempts) if attempt.outcome == RETRY), default=-1)
    return list(attempts[reset + 1 :])


def short_allocations(attempts: Sequence[Attempt], causes: Sequence[str] = ()) -> list[Attempt]:
    """The latest consecutive attempts that the time limit ended before they had trained for as long
    as they took to start. Attempts that ended by node failure or preemption are skipped. `causes`
    tell how the attempts ended (default: their recorded outcomes)."""
    short: list[Attempt] = []
    words = list(causes) or [attempt.outcome for attempt in attempts]
    for attempt, cause in reversed(list(zip(attempts, words, strict=True))):
        if cause == "TIMEOUT" or (cause == STOPPED and attempt.message == TIME_LIMIT):
            if not attempt.ready or attempt.seen - attempt.ready >= attempt.ready - attempt.started:
                break  # it trained long enough, or finished no step, which counts as no progress
            short.insert(0, attempt)
        elif cause not in (*BLAMELESS, STOPPED, ""):
            break
    return short


def short_allocations_message(attempts: Sequence[Attempt]) -> str:
    """The message about the attempts that `short_allocations` returns."""
    start = sum(attempt.ready - attempt.started for attempt in attempts) / len(attempts)
    train = sum(attempt.seen - attempt.ready for attempt in attempts) / len(attempts)
    return (
        f"the last {len(attempts)} allocations spent more time starting (about {start:.0f} s) than "
        f"training (about {train:.0f} s): increase timeout_min of this kind in the profile"
    )


def _count_fenced(attempts: Sequence[Attempt], mark: str) -> int:
    """The number of attempts that lost their claim since the last progress of any attempt."""
    marks = [*(attempt.mark for attempt in attempts[1:]), mark][: len(attempts)]
    moved = [i for i, attempt in enumerate(attempts) if marks[i] != attempt.mark]
    return sum(attempt.outcome == FENCED for attempt in attempts[max(moved, default=-1) + 1 :])


def _cause(
    attempt: Attempt, later: Sequence[Attempt], states: Mapping[tuple[str, int], str]
) -> str:
    """What ended an attempt: its recorded outcome, or SLURM's state if it was killed."""
    if any((other.uid, other.task) == (attempt.uid, attempt.task) for other in later):
        # an error before that had the same cause as the requeue, such as a node failure
        return attempt.outcome if attempt.outcome == STOPPED else "REQUEUED"
    state = states.get((attempt.uid, attempt.task), "UNKNOWN")
    if state in ("NODE_FAIL", "PREEMPTED"):
        return state
    if attempt.outcome in ATTEMPT_CAUSES:
        return attempt.outcome
    if state == "OUT_OF_MEMORY":
        return OOM
    if state in (*BLAMELESS, "CANCELLED", "TIMEOUT"):
        return state
    return attempt.outcome or KILLED
