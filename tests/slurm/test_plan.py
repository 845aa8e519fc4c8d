"""The planner's decisions, on a simulated store and a simulated cluster."""

import random
import resource
import time
from pathlib import Path

import pytest

from lewel_bench.slurm import ledger, plan
from lewel_bench.slurm.ledger import Entry, Submission
from lewel_bench.slurm.plan import Cell
from lewel_bench.slurm.queue import Task
from lewel_bench.slurm.retry import Verdict

PACK = {"semi": 2}


def decide(cells: list[Cell], done=(), live=(), judge=lambda key: None, **more) -> plan.Decision:
    options = {"pack": PACK, "max_array": 1001, "room": 100, **more}
    return plan.plan(cells, set(done), set(live), judge, **options)


CHAIN = [
    Cell("p", "pretrain"),
    Cell("s1", "semi", ("p",)),
    Cell("s2", "semi", ("p",)),
    Cell("s3", "semi", ("p",)),
    Cell("f", "light", ("s1", "s2", "s3")),
]


def test_readiness_comes_from_records() -> None:
    first = decide(CHAIN)
    assert [batch.tasks for batch in first.batches] == [(("p",),)]
    assert first.states["f"] == ("waiting", "needs 3 of 3 records")
    second = decide(CHAIN, done=["p"])
    assert [batch.tasks for batch in second.batches] == [(("s1", "s2"), ("s3",))]
    third = decide(CHAIN, done=["p", "s1"], live=["s2"])
    assert [batch.tasks for batch in third.batches] == [(("s3",),)]
    assert decide(CHAIN, done=["p", "s1", "s2", "s3", "f"]).batches == ()


def test_arrays_are_split_and_the_queue_is_not_overfilled() -> None:
    cells = [Cell(f"c{i}", "linear") for i in range(25)]
    split = decide(cells, max_array=11, room=23)
    assert [len(batch.tasks) for batch in split.batches] == [10, 10, 3]
    assert split.states["c24"] == ("held", "the queue is full (max_queued)")
    assert decide(cells, room=-4).batches == ()


def test_what_was_given_up_blocks_those_that_need_it_and_no_others() -> None:
    verdicts = {"s1": Verdict(False, "it failed: no"), "s2": Verdict(True, halvings=1)}
    found = decide(CHAIN, done=["p"], judge=verdicts.get)
    assert found.states["s1"] == ("given_up", "it failed: no")
    assert found.states["f"] == ("blocked", "needs s1, which is given_up")
    assert [(batch.halvings, batch.tasks) for batch in found.batches] == [
        (1, (("s2",),)),
        (0, (("s3",),)),
    ]


def test_only_a_person_starts_again_what_a_person_ended() -> None:
    judge = {"p": Verdict(True, "cancelled", cancelled=True)}.get
    assert decide(CHAIN, judge=judge).batches
    alone = decide(CHAIN, judge=judge, attended=False)
    assert not alone.batches and alone.states["s1"][0] == "blocked"


def test_the_next_pass_waits_for_what_unblocks_the_first_cell() -> None:
    live = {"p": "7", "q": "8_1"}
    cells = [*CHAIN, Cell("q", "pretrain"), Cell("t", "semi", ("q",))]
    states = decide(cells, live=live).states
    assert plan.wake_on(cells, states, live) == "afterany:7?afterany:8_1"
    searches = {"s1": "9_0", "s2": "9_0", "s3": "9_1"}
    states = decide(CHAIN, done=["p"], live=searches).states
    assert plan.wake_on(CHAIN, states, searches) == "afterany:9_0:9_1"
    states = decide(CHAIN, done=["p", "s1", "s2", "s3"], live=["f"]).states
    assert plan.wake_on(CHAIN, states, {"f": "11"}) == "afterany:11"
    assert plan.wake_on(CHAIN, states, {}) == ""
    many = {f"c{i}": f"12_{i}" for i in range(500)}
    cells = [Cell(key, "linear") for key in many]
    assert plan.wake_on(cells, decide(cells, live=many).states, many) == "afterany:12"


def test_cells_held_back_are_looked_at_when_anything_ends() -> None:
    live = {"c0": "5_0", "c1": "5_1"}
    cells = [Cell(f"c{i}", "linear") for i in range(4)]
    states = decide(cells, live=live, room=0).states
    assert states["c3"][0] == "held"
    assert plan.wake_on(cells, states, live) == "afterany:5_0?afterany:5_1"


def entry(uid: str = "u", id: str | None = "5", tasks=(("a",), ("b",))) -> Entry:
    return Entry(Submission(uid, "light", tasks), id)


def task(index: int, state: str, uid: str = "u", id: str = "5") -> Task:
    return Task(f"{id}_{index}", f"{ledger.PREFIX}{uid}", state)


def test_completing_lives_and_unknown_is_lost() -> None:
    one = entry()
    found = ledger.reconcile([one], [task(0, "COMPLETING")], {})
    assert set(found.live) == {"a"}
    assert one.ended == {1: "UNKNOWN"}


def test_a_job_id_that_was_handed_out_again_is_somebody_elses() -> None:
    one = entry(tasks=(("a",),))
    found = ledger.reconcile([one], [Task("5", "lewel-other", "RUNNING")], {})
    assert not found.live and one.ended == {0: "UNKNOWN"}


def test_a_job_that_slurm_started_again_lives_though_it_was_seen_to_end() -> None:
    one = entry(tasks=(("a",),))
    ledger.reconcile([one], [task(0, "NODE_FAIL")], {})
    assert one.over
    found = ledger.reconcile([one], [task(0, "PENDING")], {})
    assert set(found.live) == {"a"} and found.ended == [one] and not one.over
    # how it ended the last time counts, whether anybody saw it live in between or not
    for state in ("FAILED", "TIMEOUT"):
        found = ledger.reconcile([one], [task(0, state)], {})
        assert one.ended == {0: state} and found.ended == [one]
    assert not ledger.reconcile([one], [], {}).ended and one.ended == {0: "TIMEOUT"}


def test_a_submission_without_an_answer_is_found_by_its_name() -> None:
    lost, new = entry("x", None), entry("y", None)
    waits = entry("z", None, (("c",), ("d",)))
    found = ledger.reconcile([lost, new, waits], [task(0, "PENDING", "y", "9")], {"z": True})
    assert found.adopted == [(lost, None), (new, "9")]
    assert lost.void and new.id == "9"
    assert found.live["a"][0] is new and found.live["c"] == (waits, 0, None)
    assert waits.id is None and not waits.void


# A cluster in a few lines, to let planners loose on: whatever happens, no key may be computed
# twice as long as its job lives, and everything ends.


class Simulated:
    """Cells, records, a ledger and a queue in memory."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.cells = list(CHAIN)
        self.done: set[str] = set()
        self.entries: list[Entry] = []
        self.queue: list[Task] = []
        self.started: dict[str, int] = {}
        self.reachable = True
        self.doubled = 0

    def pass_(self, mutant: str = "") -> None:
        queue = list(self.queue)
        if not self.reachable:
            if mutant != "failure is an empty queue":
                return  # Unreachable
            queue = []
        if mutant == "no lookup by name":
            queue = [t for t in queue if t.id.partition("_")[0] in {e.id for e in self.entries}]
        live = set(ledger.reconcile(self.entries, queue, {}).live)
        if mutant == "live jobs ignored":
            live = set()
        for batch in decide(self.cells, self.done, live).batches:
            self.submit(batch.kind, batch.tasks)

    def submit(self, kind: str, tasks: tuple[tuple[str, ...], ...]) -> None:
        uid = f"u{len(self.entries)}"
        one = Entry(Submission(uid, kind, tasks))
        self.entries.append(one)
        fate = self.random.random()
        if fate < 0.1:
            return  # killed before sbatch
        id = str(len(self.entries))
        alive = {key for t in self.queue if t.lives for key in self._keys(t)}
        self.doubled += sum(key in alive for keys in tasks for key in keys)
        self.queue += [task(i, "PENDING", uid, id) for i in range(len(tasks))]
        if fate > 0.2:  # else killed after it
            one.id = id

    def _keys(self, one: Task) -> tuple[str, ...]:
        uid = one.name.removeprefix(ledger.PREFIX)
        found = next(e for e in self.entries if e.submission.uid == uid)
        return found.submission.tasks[one.index]

    def time_passes(self) -> None:
        for i, one in enumerate(self.queue):
            if one.lives and self.random.random() < 0.5:
                fate = self.random.random()
                if fate < 0.6:
                    self.done |= set(self._keys(one))
                state = "COMPLETED" if fate < 0.6 else "FAILED"
                self.queue[i] = Task(one.id, one.name, state)
        if self.random.random() < 0.1:
            self.queue = [t for t in self.queue if t.lives]  # MinJobAge
        self.reachable = self.random.random() < 0.8


def simulate(seed: int, mutant: str = "") -> Simulated:
    world = Simulated(seed)
    for _ in range(200):
        world.pass_(mutant)
        world.time_passes()
    return world


def test_whatever_happens_everything_ends_and_nothing_is_doubled() -> None:
    for seed in range(50):
        world = simulate(seed)
        assert world.done == {cell.key for cell in CHAIN}, seed
        assert world.doubled == 0, seed


@pytest.mark.parametrize(
    "mutant", ["failure is an empty queue", "no lookup by name", "live jobs ignored"]
)
def test_mutants_are_caught(mutant: str) -> None:
    assert sum(simulate(seed, mutant).doubled for seed in range(20)) > 0


def resident() -> int:
    """The bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_ten_thousand_cells(tmp_path: Path) -> None:
    """30,000 jobs: 10,000 pretrainings done, as many searches live, as many finals waiting."""
    before = resident()  # other tests share this process
    books = ledger.Ledger(tmp_path)
    n = 10_000
    cells = [
        job
        for i in range(n)
        for job in (
            Cell(f"p{i:011d}", "pretrain"),
            Cell(f"s{i:011d}", "semi", (f"p{i:011d}",)),
            Cell(f"f{i:011d}", "light", (f"s{i:011d}",)),
        )
    ]
    queue = []
    for stage in ("p", "s"):
        for begin in range(0, n, 1000):
            keys = tuple((f"{stage}{i:011d}",) for i in range(begin, begin + 1000))
            one = books.intend(kind="pretrain", tasks=keys)
            books.submitted(one.uid, str(begin))
            state = "RUNNING" if stage == "s" else "COMPLETED"
            queue += [Task(f"{begin}_{i}", one.name, state) for i in range(1000)]
    done = {f"p{i:011d}" for i in range(n)}
    began = time.process_time()
    found = ledger.reconcile(books.entries(), queue, {})
    decision = decide(cells, done, found.live, room=2000)
    wake = plan.wake_on(
        cells, decision.states, {k: e.task_id(i) for k, (e, i, _) in found.live.items()}
    )
    spent = time.process_time() - began
    assert len(found.live) == n and decision.batches == ()
    assert len(decision.states) == 3 * n and wake
    assert spent < 3, spent
    assert resident() - before < 500 * 2**20  # all of it still lives
