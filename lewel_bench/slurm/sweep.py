"""The front of this package: one planning pass, which submits what is ready.

A pass may be made any time, from any login node or from inside a job, and several at once: records
on disk are the truth, `squeue` says what lives, and the ledger connects the two.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lewel_bench.slurm import executor, ledger, plan, queue, snapshot
from lewel_bench.slurm.cluster import Cluster
from lewel_bench.slurm.executor import Rejected, Task
from lewel_bench.slurm.ledger import Ledger, Submission
from lewel_bench.slurm.plan import Batch, Cell, Decision
from lewel_bench.slurm.queue import Limits, Unreachable
from lewel_bench.slurm.seen import Seen, failing_log, judge_of, look

HELD = "JobHeldUser"  # of a planning job: somebody wants no more passes for now
LATER_S = 600  # until the next look where the end of no job can wake it


@dataclass(frozen=True)
class Sweep:
    """What a run root is filled with, and how.

    `command` follows the interpreter; `{folder}` in it becomes the folder of a cell. It writes
    `record` there when it is done and says with its exit code (inside.CODES) why it is not. `wake`
    follows the interpreter too: the command that makes the next pass. Files that match `marks` in a
    cell's folder show progress, see `files.newest_match`. `package` is copied for the jobs to run.
    `busy` says which of some keys somebody computes, or is about to, outside of the cluster.
    """

    root: Path
    cluster: Cluster
    command: tuple[str, ...]
    wake: tuple[str, ...] = ()
    package: Path = field(default_factory=executor.package)
    record: str = "record.json"
    marks: str = "checkpoint-*"
    busy: Callable[[Collection[str]], Collection[str]] = lambda keys: ()


@dataclass(frozen=True)
class Pass:
    """What one planning pass did: states and reasons by key, the job ids of what it submitted, jobs
    that will never start, and what was refused."""

    states: dict[str, tuple[str, str]]
    submitted: dict[str, Batch] = field(default_factory=dict)  # job id -> what went out with it
    stuck: dict[str, str] = field(default_factory=dict)  # key, or a planning job -> why
    wake: str = ""  # the job that plans next
    broken: str = ""
    warning: str = ""  # why the last planning job failed

    def count(self, state: str) -> int:
        """How many cells are in a state."""
        return sum(one == state for one, _ in self.states.values())


def advance(sweep: Sweep, cells: Sequence[Cell], *, attended: bool = True) -> Pass:
    """Submit what is ready; returns at once.

    Raises Unreachable when SLURM cannot be asked, Rejected when it refuses and nothing lives that
    would make room, Busy when another planner does not end, ValueError when the run root is another
    cluster's; nothing was submitted then.
    """
    books = Ledger(sweep.root)
    limits = queue.limits()
    with books.lock(ledger.LOCK_S if attended else ledger.WOKEN_LOCK_S):
        books.belongs(sweep.cluster.name, limits)
        seen = look(books)
        done = recorded(sweep.root, _asked(cells), sweep.record)
        decision = _decide(sweep, books, seen, cells, done, limits, attended)
        code = str(snapshot.take(sweep.package, books.folder / "code")) if decision.batches else ""
        submitted, refused = _send_all(sweep, books, decision, code)
        ids = {key: entry.task_id(i) for key, (entry, i, _) in seen.live.items() if entry.id}
        for id, batch in submitted.items():
            for index, keys in enumerate(batch.tasks):
                task = f"{id}_{index}" if len(batch.tasks) > 1 else id
                ids.update(dict.fromkeys(keys, task))
        wanted = {cell.key for cell in cells}
        mine = {key: id for key, id in ids.items() if key in wanted and key not in done}
        stuck = {key: t.stuck for key, (_, _, t) in seen.live.items() if t and t.stuck}
        runnable = {key: id for key, id in mine.items() if key not in stuck}
        broken = f"not all was submitted: {refused}" if refused else ""
        states = {
            key: ("held", str(refused)) if state == "submit" and key not in ids else (state, reason)
            for key, (state, reason) in decision.states.items()
        }
        if any(state == "held" for state, _ in states.values()):
            runnable |= _others(seen)
        if refused and not runnable:
            raise refused
        silent = {key for key, (_, _, task) in seen.live.items() if task is None}
        states |= dict.fromkeys(silent & wanted - done, ("held", "its sbatch has not answered yet"))
        wake = ""
        try:
            wake = _wake(sweep, books, seen, cells, states, runnable, bool(submitted))
        except (Unreachable, Rejected) as error:
            broken = broken or f"no job plans what comes next: {error}"
    stuck = {key: why for key, why in stuck.items() if key in wanted}
    pending = _wakes(sweep, seen)
    more = f"; job {wake} takes its place" if wake and wake not in {t.id for t in pending} else ""
    stuck |= {f"planning job {t.id}": t.stuck + more for t in pending if t.stuck}
    return Pass(states, submitted, stuck, wake, broken, _failed_wake(sweep, books, seen))


def _asked(cells: Sequence[Cell]) -> set[str]:
    """The cells' keys, and those of records that they need, which no cell of theirs may leave."""
    return {key for cell in cells for key in (cell.key, *cell.needs)}


def recorded(root: Path, keys: Collection[str], record: str) -> set[str]:
    """The keys that have a record."""
    return {key for key in keys if (root / key / record).exists()}


def _decide(
    sweep: Sweep,
    books: Ledger,
    seen: Seen,
    cells: Sequence[Cell],
    done: Collection[str],
    limits: Limits,
    attended: bool,
) -> Decision:
    profile, judge = sweep.cluster, judge_of(books, seen.entries)
    open_ = {cell.key for cell in cells} - seen.live.keys() - set(done)
    occupied = sum(t.mine and t.lives and t.name.startswith(ledger.PREFIX) for t in seen.tasks)
    return plan.plan(
        cells,
        done,
        seen.live.keys(),
        lambda key: judge(key, sweep.marks, profile.max_attempts),
        pack={name: one.pack for name, one in sweep.cluster.kinds.items()},
        max_array=limits.max_array,
        room=min(sweep.cluster.max_queued, limits.max_jobs - 1) - occupied,
        busy=sweep.busy(open_),
        attended=attended,
    )


def _send_all(
    sweep: Sweep, books: Ledger, decision: Decision, code: str
) -> tuple[dict[str, Batch], Rejected | None]:
    """What was submitted, by job id, and the first refusal: one of a kind keeps no other back."""
    submitted: dict[str, Batch] = {}
    refused = None
    for batch in decision.batches:
        try:
            submitted[_send(sweep, books, batch, code)] = batch
        except Rejected as error:
            refused = refused or error
    return submitted, refused


def _send(sweep: Sweep, books: Ledger, batch: Batch, code: str) -> str:
    submission = books.intend(
        kind=batch.kind,
        tasks=batch.tasks,
        halvings=batch.halvings,
        command=sweep.command,
        code=code,
        record=sweep.record,
        marks=sweep.marks,
        max_attempts=sweep.cluster.max_attempts,
        requeue=sweep.cluster.requeue,
    )
    return _submit(sweep, books, submission, Task(sweep.cluster.kinds[batch.kind]))


def _submit(sweep: Sweep, books: Ledger, submission: Submission, how: Task) -> str:
    """The job id, written down."""
    try:
        id = executor.submit(sweep.cluster, books, submission, how)
    except Rejected:
        id = _heard(books, submission)
        if not id:
            raise
    books.submitted(submission.uid, id)
    return id


def _heard(books: Ledger, submission: Submission) -> str:
    """The id of a submission that was refused, where SLURM has it all the same; else it is written
    down that it never was (rule 2): a pass on another host could not tell it from an sbatch that
    still waits to be let in."""
    try:
        named = [task.id for task in queue.tasks() if task.name == submission.name]
    except Unreachable:
        return ""
    if not named:
        books.submitted(submission.uid, None)
        return ""
    id = named[0].partition("_")[0]
    executor.mend(books, submission, id)
    return id


def _others(seen: Seen) -> dict[str, str]:
    """The tasks of other sweeps that fill the queue, which make room when they end."""
    wakes = f"{ledger.PREFIX}wake-"
    ours = [t for t in seen.tasks if t.mine and t.name.startswith(ledger.PREFIX)]
    return {t.id: t.id for t in ours if t.lives and not t.stuck and not t.name.startswith(wakes)}


def _wakes(sweep: Sweep, seen: Seen) -> list[queue.Task]:
    """The planning jobs of this command that have not started."""
    prefix = f"{ledger.PREFIX}wake-{_tag(sweep)}-"
    return [t for t in seen.tasks if t.name.startswith(prefix) and t.state == "PENDING"]


def _failed_wake(sweep: Sweep, books: Ledger, seen: Seen) -> str:
    """How the last planning job of this command failed; empty where it did not."""
    mine = [e for e in seen.entries if e.id and sweep.wake and e.submission.wakes == _tag(sweep)]
    if not mine or mine[-1].ended.get(0) != "FAILED":
        return ""
    log, line = failing_log(books, mine[-1], 0)
    return f"planning job {mine[-1].id} failed; see {log} ({line})" if log else ""


def _tag(sweep: Sweep) -> str:
    return hashlib.sha256("\0".join(sweep.wake).encode()).hexdigest()[:8]


def _wake(
    sweep: Sweep,
    books: Ledger,
    seen: Seen,
    cells: Sequence[Cell],
    states: Mapping[str, tuple[str, str]],
    ids: Mapping[str, str],
    changed: bool,
) -> str:
    """Have SLURM make the next pass when something has ended (rule 10); losing it loses nothing."""
    if not sweep.wake or not sweep.cluster.wake:
        return ""
    pending = _wakes(sweep, seen)
    going = [t for t in pending if not t.stuck or t.reason == HELD]
    changed = changed and not any(t.reason == HELD for t in going)
    dependency = plan.wake_on(cells, states, ids)
    later = not dependency and any(state in ("held", "here") for state, _ in states.values())
    if not (dependency or later) or (going and not changed):
        return going[0].id if going else ""
    submission = books.intend(
        kind="light",
        tasks=((),),
        command=sweep.wake,
        code=str(snapshot.take(sweep.package, books.folder / "code")),
        requeue=True,
        wakes=_tag(sweep),
        profile=sweep.cluster.model_dump(mode="json"),
    )
    light = sweep.cluster.kinds["light"]
    how = Task(light, dependency, LATER_S if later else sweep.cluster.wake_delay_s)
    id = _submit(sweep, books, submission, how)
    if pending:
        with suppress(Unreachable):  # one too many does no harm
            queue.cancel([t.id for t in pending if t.mine])
    return id


@dataclass(frozen=True)
class Preview:
    """What a pass would submit: the states, the batches, and one sbatch script of each shape."""

    decision: Decision
    scripts: dict[str, str]


def preview(sweep: Sweep, cells: Sequence[Cell]) -> Preview:
    """The next pass, without submitting or writing anything. Raises Unreachable, and ValueError as
    `advance` does."""
    books = Ledger(sweep.root)
    limits = queue.limits()
    books.check(limits)
    seen = look(books, write=False)
    done = recorded(sweep.root, _asked(cells), sweep.record)
    decision = _decide(sweep, books, seen, cells, done, limits, True)
    scripts: dict[str, str] = {}
    for batch in decision.batches:
        shape = batch.kind + (" with half the micro-batch" if batch.halvings else "")
        one = Submission("UID", batch.kind, batch.tasks, batch.halvings, sweep.command)
        one = replace(one, code=str(books.folder / "code" / "HASH"), requeue=sweep.cluster.requeue)
        if shape not in scripts:
            how = Task(sweep.cluster.kinds[batch.kind])
            scripts[shape] = executor.script(sweep.cluster, books, one, how)
    return Preview(decision, scripts)
