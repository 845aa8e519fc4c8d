"""The front of this package: one planning pass, what lives, cancelling, trying again, logs.

A pass may be made any time, from any login node or from inside a job, and several at once: records
on disk are the truth, `squeue` says what lives, and the ledger connects the two.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lewel_bench.slurm import attempt, executor, ledger, plan, queue, retry, snapshot
from lewel_bench.slurm.attempt import Attempt
from lewel_bench.slurm.cluster import Cluster
from lewel_bench.slurm.executor import Rejected, Task
from lewel_bench.slurm.ledger import Entry, Ledger, Submission
from lewel_bench.slurm.plan import Batch, Cell, Decision
from lewel_bench.slurm.queue import Limits, Unreachable
from lewel_bench.slurm.retry import End, Verdict

HELD = "JobHeldUser"  # of a planning job: somebody wants no more passes for now
LATER_S = 600  # until the next look where the end of no job can wake it


@dataclass(frozen=True)
class Sweep:
    """What a run root is filled with, and how.

    `command` follows the interpreter; `{folder}` in it becomes the folder of a cell. It writes
    `record` there when it is done and says with its exit code (inside.CODES) why it is not. `wake`
    follows the interpreter too: the command that makes the next pass. Files that match `marks` in a
    cell's folder show progress, see `attempt.mark`. `package` is copied for the jobs to run.
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
        seen = _reconcile(books)
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
    return Pass(states, submitted, stuck, wake, broken)


@dataclass
class Seen:
    """The ledger and the queue at one moment."""

    entries: list[Entry]
    live: dict[str, tuple[Entry, int, queue.Task | None]]
    tasks: list[queue.Task]


def _reconcile(books: Ledger, write: bool = True) -> Seen:
    """Bring the ledger up to date; the order of the looks is what makes it safe: submissions, then
    the processes behind those without an answer, then the queue, and records after that."""
    entries = books.entries()
    now = time.time()
    open_ = [e for e in entries if e.id is None and not e.void]
    orphans = {e.submission.uid: ledger.at_work(e.submission, now) for e in open_}
    tasks = queue.tasks()
    found = ledger.reconcile(entries, tasks, orphans)
    if write:
        for entry, id in found.adopted:
            books.submitted(entry.submission.uid, id)
            if id is not None:
                executor.mend(books, entry.submission, id)
        _explain(found.ended)
        for entry in found.ended:
            books.ended(entry)
    return Seen(entries, found.live, tasks)


def _explain(ended: Sequence[Entry]) -> None:
    """Ask accounting, where there is one, about tasks that the controller has forgotten."""
    unknown = {
        entry.task_id(index): (entry, index)
        for entry in ended
        for index, state in entry.ended.items()
        if state == "UNKNOWN"
    }
    names = {id: entry.submission.name for id, (entry, _) in unknown.items()}
    for id, state in queue.endings(names).items():
        entry, index = unknown[id]
        entry.ended[index] = state


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
    ends = _ends(seen.entries)
    open_ = {cell.key for cell in cells} - seen.live.keys() - set(done)

    def judge(key: str) -> Verdict | None:
        profile = sweep.cluster
        return _judge(books.root / key, ends.get(key, ()), sweep.marks, profile.max_attempts)

    occupied = sum(t.lives and t.name.startswith(ledger.PREFIX) for t in seen.tasks)
    return plan.plan(
        cells,
        done,
        seen.live.keys(),
        judge,
        pack={name: one.pack for name, one in sweep.cluster.kinds.items()},
        max_array=limits.max_array,
        room=min(sweep.cluster.max_queued, limits.max_jobs - 1) - occupied,
        busy=sweep.busy(open_),
        attended=attended,
    )


def _ends(entries: Sequence[Entry]) -> dict[str, list[End]]:
    ends: dict[str, list[End]] = {}
    for entry in entries:
        one = entry.submission
        for index, state in entry.ended.items():
            for key in one.tasks[index]:
                end = End(one.uid, index, state, one.time, one.tasks[index])
                ends.setdefault(key, []).append(end)
    return ends


def _judge(folder: Path, ends: Sequence[End], marks: str, max_attempts: int) -> Verdict | None:
    """The verdict on the cell of a folder; None when it was never tried."""
    attempts = attempt.history(folder)
    if not attempts and not ends:
        return None
    started = {(one.uid, one.task) for one in attempts}
    seen = [
        replace(end, state=retry.UNREACHED)
        if (end.uid, end.task) not in started and _began(folder.parent, end)
        else end
        for end in ends
    ]
    settled = {one.name for one in attempts if one.outcome and _settled(folder, one, ends)}
    return retry.judge(attempts, seen, attempt.mark(folder, marks), max_attempts, settled)


def _settled(folder: Path, one: Attempt, ends: Sequence[End]) -> bool:
    """Whether another cell of its pack began after an attempt had ended: what ended the task later
    has not ended this attempt."""
    packs = [end.pack for end in ends if (end.uid, end.task) == (one.uid, one.task)]
    others = {key for pack in packs for key in pack} - {folder.name}
    start = one.uid, one.task, one.restart
    return any(
        (other.uid, other.task, other.restart) == start and other.started >= one.seen
        for key in others
        for other in attempt.history(folder.parent / key)
    )


def _began(root: Path, end: End) -> bool:
    """Whether a pack that has ended, and was not cancelled, had started a cell of it."""
    if end.state == "CANCELLED" or len(end.pack) < 2:
        return False
    tried = (one for key in end.pack for one in attempt.history(root / key))
    return any((one.uid, one.task) == (end.uid, end.task) for one in tried)


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
    ours = [t for t in seen.tasks if t.name.startswith(ledger.PREFIX) and t.lives and not t.stuck]
    return {t.id: t.id for t in ours if not t.name.startswith(wakes)}


def _wakes(sweep: Sweep, seen: Seen) -> list[queue.Task]:
    """The planning jobs of this command that have not started."""
    prefix = f"{ledger.PREFIX}wake-{_tag(sweep)}-"
    return [t for t in seen.tasks if t.name.startswith(prefix) and t.state == "PENDING"]


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
    )
    light = sweep.cluster.kinds["light"]
    how = Task(light, dependency, LATER_S if later else sweep.cluster.wake_delay_s)
    id = _submit(sweep, books, submission, how)
    if pending:
        with suppress(Unreachable):  # one too many does no harm
            queue.cancel([t.id for t in pending])
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
    seen = _reconcile(books, write=False)
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


@dataclass(frozen=True)
class Live:
    """A cell that SLURM has: `state` is running, queued or stuck, `place` its place among this
    user's pending tasks."""

    key: str
    state: str
    job: str
    reason: str = ""
    place: int = 0
    elapsed: str = ""
    nodes: str = ""


def survey(root: Path) -> dict[str, Live]:
    """What lives under a run root, by key, with one SLURM call, a second where it shows no job of
    ours, and nothing written. Raises Unreachable, and Foreign where SLURM is another cluster's."""
    books = Ledger(root)
    seen = _reconcile(books, write=False)
    ours = {entry.submission.name for entry in seen.entries}
    if ours.isdisjoint(task.name for task in seen.tasks):
        books.check(queue.limits())
    pending = sorted((t for t in seen.tasks if t.state == "PENDING"), key=lambda t: -t.priority)
    places = {task.id: place for place, task in enumerate(pending, 1)}
    found = {}
    for key, (entry, index, task) in seen.live.items():
        if task is None:
            found[key] = Live(key, "queued", "", "its sbatch has not answered yet")
            continue
        state = "stuck" if task.stuck else "queued" if task.state == "PENDING" else "running"
        pack = entry.submission.tasks[index]
        if state == "running" and len(pack) > 1 and _waits(root, key, entry.submission):
            state = "queued"
        found[key] = Live(
            key,
            state,
            task.id,
            task.stuck or ("" if task.reason in ("None", "") else task.reason),
            places.get(task.id, 0),
            task.elapsed,
            task.nodes,
        )
    return found


def _waits(root: Path, key: str, submission: Submission) -> bool:
    """Whether a cell in a running pack has not been started by it yet."""
    return not any(one.uid == submission.uid for one in attempt.history(root / key))


def given_up(root: Path, keys: Collection[str]) -> dict[str, Verdict]:
    """The verdict on each cell that has neither a record nor a living job but was tried, as the
    pass that submitted it last would judge."""
    entries = Ledger(root).entries()
    ends = _ends(entries)
    last = {key: e.submission for e in entries for pack in e.submission.tasks for key in pack}
    found = {}
    for key in keys:
        one = last.get(key, Submission("", "", ()))  # its file may be damaged
        if verdict := _judge(root / key, ends.get(key, ()), one.marks, one.max_attempts):
            found[key] = verdict
    return found


def cancel(root: Path, keys: Collection[str]) -> dict[str, list[str]]:
    """End the living jobs of `keys`; what each ended job held. A pass that a person starts submits
    them again. Raises Unreachable, and Foreign where SLURM is another cluster's."""
    books = Ledger(root)
    books.check(queue.limits())
    with books.lock():
        seen = _reconcile(books)
        ended: dict[str, list[str]] = {}
        waiting: dict[str, Entry] = {}
        for key in keys:
            if key in seen.live:
                entry, index, task = seen.live[key]
                if task is not None:
                    ended.setdefault(task.id, list(entry.submission.tasks[index]))
                    if task.state == "PENDING":  # it will never write an attempt
                        entry.ended[index] = "CANCELLED"
                        waiting[entry.submission.uid] = entry
        queue.cancel(list(ended))
        for entry in waiting.values():
            books.ended(entry)
    return ended


def again(root: Path, keys: Collection[str]) -> list[str]:
    """Forget failed attempts at `keys`, so that the next pass tries them; those that had any."""
    ends = _ends(Ledger(root).entries())  # one that never started has no attempts
    tried = [key for key in keys if key in ends or attempt.history(root / key)]
    for key in tried:
        attempt.forgive(root / key)
    return tried


def logs(root: Path, key: str) -> list[Path]:
    """The log files of every job that held a cell, newest last."""
    books = Ledger(root)
    found: list[Path] = []
    for entry in books.entries():
        for index, keys in enumerate(entry.submission.tasks):
            if key in keys and entry.id:
                name = entry.task_id(index)
                found += sorted(books.logs(entry.submission.uid).glob(f"{name}_*_log.*"))
    return found


def unfinished_elsewhere(root: Path) -> Collection[str]:
    """The keys that the ledger says may be alive, without asking SLURM."""
    return {
        key
        for entry in Ledger(root).entries()
        if not entry.over
        for index, keys in enumerate(entry.submission.tasks)
        if index not in entry.ended
        for key in keys
    }
