"""The planner's decisions, on a simulated store and a simulated cluster."""

import random
import resource
import time
from pathlib import Path

import pytest

from lewel_bench.slurm import ledger, plan
from lewel_bench.slurm.ledger import LedgerEntry, Submission
from lewel_bench.slurm.plan import PlannedJob
from lewel_bench.slurm.queue import QueuedTask
from lewel_bench.slurm.retry import Verdict

PACK = {"semi": 2}


def decide(
    jobs: list[PlannedJob], done=(), live=(), judge=lambda key: None, **more
) -> plan.Decision:
    options = {"pack": PACK, "max_array": 1001, "room": 100, **more}
    return plan.plan(jobs, set(done), set(live), judge, **options)


CHAIN = [
    PlannedJob("p", "pretrain"),
    PlannedJob("s1", "semi", ("p",)),
    PlannedJob("s2", "semi", ("p",)),
    PlannedJob("s3", "semi", ("p",)),
    PlannedJob("f", "light", ("s1", "s2", "s3")),
]


def test_readiness_comes_from_records() -> None:
    first = decide(CHAIN)
    assert [batch.tasks for batch in first.arrays] == [(("p",),)]
    assert first.states["f"] == ("waiting", "needs 3 of 3 records")
    second = decide(CHAIN, done=["p"])
    assert [batch.tasks for batch in second.arrays] == [(("s1", "s2"), ("s3",))]
    third = decide(CHAIN, done=["p", "s1"], live=["s2"])
    assert [batch.tasks for batch in third.arrays] == [(("s3",),)]
    assert decide(CHAIN, done=["p", "s1", "s2", "s3", "f"]).arrays == ()


def test_arrays_are_split_and_the_queue_is_not_overfilled() -> None:
    jobs = [PlannedJob(f"c{i}", "linear") for i in range(25)]
    split = decide(jobs, max_array=11, room=23)
    assert [len(batch.tasks) for batch in split.arrays] == [10, 10, 3]
    assert split.states["c24"] == ("held", "the queue is full (max_queued)")
    assert decide(jobs, room=-4).arrays == ()


def test_a_failed_job_blocks_only_jobs_that_need_it() -> None:
    verdicts = {"s1": Verdict(False, "failed: no"), "s2": Verdict(True, halvings=1)}
    decision = decide(CHAIN, done=["p"], judge=verdicts.get)
    assert decision.states["s1"] == ("given_up", "failed: no")
    assert decision.states["f"] == ("blocked", "needs s1 (failed)")
    assert [(batch.halvings, batch.tasks) for batch in decision.arrays] == [
        (1, (("s2",),)),
        (0, (("s3",),)),
    ]


def test_only_an_attended_pass_submits_cancelled_jobs() -> None:
    judge = {"p": Verdict(True, "cancelled", cancelled=True)}.get
    assert decide(CHAIN, judge=judge).arrays
    alone = decide(CHAIN, judge=judge, attended=False)
    assert not alone.arrays and alone.states["s1"][0] == "blocked"


def test_the_next_pass_waits_for_tasks_that_unblock_jobs() -> None:
    live = {"p": "7", "q": "8_1"}
    jobs = [*CHAIN, PlannedJob("q", "pretrain"), PlannedJob("t", "semi", ("q",))]
    states = decide(jobs, live=live).states
    assert plan.wake_dependency(jobs, states, live) == "afterany:7?afterany:8_1"
    searches = {"s1": "9_0", "s2": "9_0", "s3": "9_1"}
    states = decide(CHAIN, done=["p"], live=searches).states
    assert plan.wake_dependency(CHAIN, states, searches) == "afterany:9_0:9_1"
    states = decide(CHAIN, done=["p", "s1", "s2", "s3"], live=["f"]).states
    assert plan.wake_dependency(CHAIN, states, {"f": "11"}) == "afterany:11"
    assert plan.wake_dependency(CHAIN, states, {}) == ""
    many = {f"c{i}": f"12_{i}" for i in range(500)}
    jobs = [PlannedJob(key, "linear") for key in many]
    assert plan.wake_dependency(jobs, decide(jobs, live=many).states, many) == "afterany:12"


def test_held_jobs_are_planned_when_any_task_ends() -> None:
    live = {"c0": "5_0", "c1": "5_1"}
    jobs = [PlannedJob(f"c{i}", "linear") for i in range(4)]
    states = decide(jobs, live=live, room=0).states
    assert states["c3"][0] == "held"
    assert plan.wake_dependency(jobs, states, live) == "afterany:5_0?afterany:5_1"


def entry(uid: str = "u", id: str | None = "5", tasks=(("a",), ("b",))) -> LedgerEntry:
    return LedgerEntry(Submission(uid, "light", tasks), id)


def task(index: int, state: str, uid: str = "u", id: str = "5") -> QueuedTask:
    return QueuedTask(f"{id}_{index}", f"{ledger.PREFIX}{uid}", state)


def test_completing_is_alive_and_unknown_is_lost() -> None:
    submitted = entry()
    reconciled = ledger.reconcile([submitted], [task(0, "COMPLETING")], {})
    assert set(reconciled.live) == {"a"}
    assert submitted.ended == {1: "UNKNOWN"}


def test_a_reused_job_id_is_another_submission() -> None:
    submitted = entry(tasks=(("a",),))
    reconciled = ledger.reconcile([submitted], [QueuedTask("5", "lewel-other", "RUNNING")], {})
    assert not reconciled.live and submitted.ended == {0: "UNKNOWN"}


def test_a_requeued_job_is_alive_again() -> None:
    submitted = entry(tasks=(("a",),))
    ledger.reconcile([submitted], [task(0, "NODE_FAIL")], {})
    assert submitted.is_over
    reconciled = ledger.reconcile([submitted], [task(0, "PENDING")], {})
    assert (
        set(reconciled.live) == {"a"} and reconciled.ended == [submitted] and not submitted.is_over
    )
    # the last final state counts, whether or not a pass saw the task alive in between
    for state in ("FAILED", "TIMEOUT"):
        reconciled = ledger.reconcile([submitted], [task(0, state)], {})
        assert submitted.ended == {0: state} and reconciled.ended == [submitted]
    assert not ledger.reconcile([submitted], [], {}).ended and submitted.ended == {0: "TIMEOUT"}


def test_a_submission_without_an_answer_is_identified_by_name() -> None:
    lost, new = entry("x", None), entry("y", None)
    waits = entry("z", None, (("c",), ("d",)))
    reconciled = ledger.reconcile([lost, new, waits], [task(0, "PENDING", "y", "9")], {"z": True})
    assert reconciled.adopted == [(lost, None), (new, "9")]
    assert lost.void and new.id == "9"
    assert reconciled.live["a"][0] is new and reconciled.live["c"] == (waits, 0, None)
    assert waits.id is None and not waits.void


# A simulated cluster for planners: whatever happens, no key may be submitted while its job is
# alive, and every job ends.


class Simulated:
    """Jobs, records, a ledger and a queue in memory."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.jobs = list(CHAIN)
        self.done: set[str] = set()
        self.entries: list[LedgerEntry] = []
        self.queue: list[QueuedTask] = []
        self.started: dict[str, int] = {}
        self.reachable = True
        self.doubled = 0

    def pass_(self, mutant: str = "") -> None:
        queue = list(self.queue)
        if not self.reachable:
            if mutant != "failure is an empty queue":
                return  # SlurmUnreachable
            queue = []
        if mutant == "no lookup by name":
            queue = [t for t in queue if t.id.partition("_")[0] in {e.id for e in self.entries}]
        live = set(ledger.reconcile(self.entries, queue, {}).live)
        if mutant == "live jobs ignored":
            live = set()
        for batch in decide(self.jobs, self.done, live).arrays:
            self.submit(batch.kind, batch.tasks)

    def submit(self, kind: str, tasks: tuple[tuple[str, ...], ...]) -> None:
        uid = f"u{len(self.entries)}"
        submission_entry = LedgerEntry(Submission(uid, kind, tasks))
        self.entries.append(submission_entry)
        fate = self.random.random()
        if fate < 0.1:
            return  # killed before sbatch
        id = str(len(self.entries))
        alive = {key for t in self.queue if t.is_alive for key in self._keys(t)}
        self.doubled += sum(key in alive for keys in tasks for key in keys)
        self.queue += [task(i, "PENDING", uid, id) for i in range(len(tasks))]
        if fate > 0.2:  # else killed after it
            submission_entry.id = id

    def _keys(self, queued: QueuedTask) -> tuple[str, ...]:
        uid = queued.name.removeprefix(ledger.PREFIX)
        entry = next(e for e in self.entries if e.submission.uid == uid)
        return entry.submission.tasks[queued.index]

    def time_passes(self) -> None:
        for i, queued in enumerate(self.queue):
            if queued.is_alive and self.random.random() < 0.5:
                fate = self.random.random()
                if fate < 0.6:
                    self.done |= set(self._keys(queued))
                state = "COMPLETED" if fate < 0.6 else "FAILED"
                self.queue[i] = QueuedTask(queued.id, queued.name, state)
        if self.random.random() < 0.1:
            self.queue = [t for t in self.queue if t.is_alive]  # MinJobAge
        self.reachable = self.random.random() < 0.8


def simulate(seed: int, mutant: str = "") -> Simulated:
    world = Simulated(seed)
    for _ in range(200):
        world.pass_(mutant)
        world.time_passes()
    return world


def test_every_job_ends_and_none_is_submitted_twice() -> None:
    for seed in range(50):
        world = simulate(seed)
        assert world.done == {job.key for job in CHAIN}, seed
        assert world.doubled == 0, seed


@pytest.mark.parametrize(
    "mutant", ["failure is an empty queue", "no lookup by name", "live jobs ignored"]
)
def test_mutants_are_caught(mutant: str) -> None:
    assert sum(simulate(seed, mutant).doubled for seed in range(20)) > 0


def resident() -> int:
    """The resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_thirty_thousand_jobs(tmp_path: Path) -> None:
    """10,000 pre-trainings are done, as many searches are running, as many finals are waiting."""
    before = resident()  # other tests share this process
    books = ledger.Ledger(tmp_path)
    n = 10_000
    jobs = [
        job
        for i in range(n)
        for job in (
            PlannedJob(f"p{i:011d}", "pretrain"),
            PlannedJob(f"s{i:011d}", "semi", (f"p{i:011d}",)),
            PlannedJob(f"f{i:011d}", "light", (f"s{i:011d}",)),
        )
    ]
    queue = []
    for stage in ("p", "s"):
        for begin in range(0, n, 1000):
            keys = tuple((f"{stage}{i:011d}",) for i in range(begin, begin + 1000))
            submission = books.record_intent(kind="pretrain", tasks=keys)
            books.record_submitted(submission.uid, str(begin))
            state = "RUNNING" if stage == "s" else "COMPLETED"
            queue += [QueuedTask(f"{begin}_{i}", submission.name, state) for i in range(1000)]
    done = {f"p{i:011d}" for i in range(n)}
    began = time.process_time()
    reconciled = ledger.reconcile(books.entries(), queue, {})
    decision = decide(jobs, done, reconciled.live, room=2000)
    wake = plan.wake_dependency(
        jobs, decision.states, {k: e.task_id(i) for k, (e, i, _) in reconciled.live.items()}
    )
    spent = time.process_time() - began
    assert len(reconciled.live) == n and decision.arrays == ()
    assert len(decision.states) == 3 * n and wake
    assert spent < 3, spent
    assert resident() - before < 500 * 2**20  # nothing of it is freed yet
