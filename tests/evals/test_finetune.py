"""The steps of a fine-tuning with a learner small enough to follow."""

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from lewel_bench.evals import finetune
from lewel_bench.evals.clock import Clock
from lewel_bench.evals.context import Context
from lewel_bench.evals.dense import Detection
from lewel_bench.evals.outcome import DenseSplits
from lewel_bench.pretrain import checkpoint, pacer
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.recipe import change
from lewel_bench.pretrain.report import Stopped, never, silent
from tests.evals.conftest import Killed, killed_after

STEPS = 12
TINY = Detection(
    name="tiny",
    label="tiny",
    source="none",
    data="none",
    model="c4",
    masks=False,
    metric="voc07",
    min_sizes=(64,),
    batch=4,
    steps=STEPS,
    milestones=(8,),
    warmup=0,
    lrs=(0.1,),
    weight_decays=(0.0,),
    held_out=1,
    pre_nms=(10, 10),
    post_nms=(10, 10),
)


class Learner:
    """A line with batch norm and dropout; batch k is a function of k, noise is torch's."""

    def __init__(self, lr: float, breaks_at: int | None = None, rank: int = 0) -> None:
        self.rank = rank
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(
                nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)
            )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.breaks_at = breaks_at
        self.prepared, self.rates = 0, list[float]()

    def batches(self, start):
        for step in range(start, 10**6):
            yield (
                step,
                torch.randn(4, 3, generator=torch.Generator().manual_seed(step + 99 * self.rank)),
            )

    def loss(self, forward, batch):
        step, x = batch
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        if step + 1 == self.breaks_at:
            return forward(x).mean() * float("nan")
        return ((forward(x) - x.sum(1, keepdim=True)) ** 2).mean()

    def prepare_evaluation(self):
        self.prepared += 1
        for _, x in (next(self.batches(999)), next(self.batches(1000))):
            self.model(x)  # moves batch norm and draws random numbers

    @torch.no_grad()
    def evaluate(self, role):
        assert not self.model.training
        x = torch.full((4, 3), 0.3 if role == "select" else 0.7)
        return {"box_ap": float(self.model(x).mean()), "per_class": {"a": 1.0}}


def state(folder):
    saved = checkpoint.load(folder, silent)
    return saved["model"] | {"rng": saved["generators"][0]["cpu"]}


@pytest.fixture
def run(tmp_path):
    def go(
        learner=None,
        protocol=TINY,
        *,
        folder="a",
        stop=never,
        save_s=1e9,
        rivals=(),
        select=1,
        report=silent,
    ):
        at = Context(1, tmp_path / folder, Machine(save_every_s=save_s), report, stop)
        splits = DenseSplits([0], [0] if select else None, [0])
        candidate = (protocol.lrs[0], 0.0)
        learner = learner or Learner(0.1)
        return finetune.run(learner, protocol, candidate, splits, lambda s: 1 / (s + 1), at, rivals)

    return go


def test_every_step_has_its_rate_and_the_outcome_its_numbers(run):
    learner = Learner(0.5)
    outcome = run(learner)
    assert learner.rates == [0.1 * (1 / (s + 1)) for s in range(STEPS)]
    assert outcome.chosen == {"lr": 0.1, "weight_decay": 0.0}
    assert set(outcome.metrics) == set(outcome.extra["select"]) == {"box_ap"}
    assert outcome.metrics != outcome.extra["select"]
    assert outcome.extra["per_class"] == {"a": 1.0}
    assert learner.prepared == 1 and learner.model.training


def test_without_a_select_split_there_is_nothing_to_choose_by(run):
    assert run(select=0).extra["select"] == {}
    assert run(select=0, folder="b").metrics == run(folder="c").metrics


@pytest.mark.parametrize("prune", [None, 0.5])
@pytest.mark.parametrize("question", [1, 6, 7, STEPS])
def test_killed_and_run_again_is_the_same_bitwise(run, tmp_path, prune, question):
    protocol = change(TINY, {"prune": prune})
    whole = run(protocol=protocol, folder="whole")
    with pytest.raises(Killed):
        run(protocol=protocol, folder="killed", save_s=0, stop=killed_after(question))
    assert run(protocol=protocol, folder="killed") == whole
    a, b = state(tmp_path / "whole"), state(tmp_path / "killed")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_while_evaluating_is_the_same_bitwise(run, call):
    """Calls 1: half-way; 2: select after the last step; 3: report."""
    protocol = change(TINY, {"prune": 0.5})
    whole = run(protocol=protocol, folder="whole")

    class Dies(Learner):
        calls = 0

        def evaluate(self, role):
            self.calls += 1
            if self.calls == call:
                raise Killed
            return super().evaluate(role)

    with pytest.raises(Killed):
        run(Dies(0.1), protocol=protocol, folder="killed")
    again = Learner(0.1)
    assert run(again, protocol=protocol, folder="killed") == whole
    assert len(again.rates) == (STEPS - STEPS // 2 if call == 1 else 0)


def test_the_seconds_of_earlier_attempts_are_counted(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Clock, "seconds", lambda self: 1000.0)
        run(save_s=0, stop=killed_after(5))
    clock = Clock()
    run(report=clock.follow(silent))
    assert 1000 < clock.seconds() < 1100
    # one that was written before seconds were kept
    old = checkpoint.load(tmp_path / "a", silent)
    del old["seconds"]
    checkpoint.save(tmp_path / "old", STEPS, old)
    clock.restart(7.0)
    assert run(folder="old", report=clock.follow(silent)) == run()
    assert clock.seconds() < 7


def test_a_stop_saves_first(run):
    with pytest.raises(Stopped, match="saved at step 1 of 12"):
        run(stop=lambda: True)
    with pytest.raises(Stopped, match="saved at step 2 of 12"):
        run(stop=lambda: True)


def test_a_look_half_way_changes_nothing_that_is_trained(run, tmp_path):
    assert run().metrics == run(protocol=change(TINY, {"prune": 0.5}), folder="b").metrics
    a, b = state(tmp_path / "a"), state(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_look_half_way_is_the_last_save_by_the_clock(run, monkeypatch):
    restarted = []
    restart = pacer.Pacer.restart_save
    monkeypatch.setattr(pacer.Pacer, "restart_save", lambda p: restarted.append(restart(p)))
    run(protocol=change(TINY, {"prune": 0.5}))
    assert len(restarted) == 4  # at the start, half-way, with what was measured there, at the end


def test_a_candidate_far_below_its_rivals_is_pruned_and_stays_so(run):
    protocol = change(TINY, {"prune": 0.5})
    half = run(protocol=protocol).extra["half"]
    assert half["step"] == 6
    rivals = (half["box_ap"] * 2.1, half["box_ap"])
    for _ in range(2):  # the second goes on from the first one's checkpoint
        outcome = run(protocol=protocol, folder="b", rivals=rivals)
        rivals = ()
        assert outcome.metrics == outcome.extra["select"] == {}
        assert outcome.extra["half"] == half
        assert "stopped after 6 of 12 steps: select box_ap" in outcome.extra["pruned"]
        assert outcome.warnings == [f"lr 0.1, weight decay 0: {outcome.extra['pruned']}"]
    kept = run(protocol=protocol, folder="c", rivals=(half["box_ap"] * 1.9,))
    assert kept.metrics and "pruned" not in kept.extra


@pytest.mark.parametrize("step", [1, 7, STEPS])
def test_divergence_is_named_by_its_step(run, tmp_path, monkeypatch, step):
    for checks in (1, 5):
        look_every(monkeypatch, checks)
        folder = f"{checks}"
        outcome = run(Learner(0.1, step), folder=folder)
        assert outcome.metrics == {} and outcome.extra["select"] == {}
        assert outcome.extra["diverged_at_step"] == step
        assert outcome.warnings == [f"diverged at step {step} of 12 at lr 0.1, weight decay 0"]
        saved = checkpoint.load(tmp_path / folder, silent)
        assert saved is None or saved["step"] < step


def look_every(monkeypatch, steps):
    """Fetch losses as where that costs."""
    start = finetune._Loop.__init__

    def dear(self, *arguments):
        start(self, *arguments)
        self.check_every = steps

    monkeypatch.setattr(finetune._Loop, "__init__", dear)


def test_a_last_step_that_breaks_the_weights_diverges(run):
    learner = Learner(0.1)
    learner.optimizer.register_step_post_hook(
        lambda *_: learner.model[0].weight.data.mul_(
            float("inf") if len(learner.rates) == 12 else 1
        )
    )
    assert run(learner).extra["diverged_at_step"] == STEPS


def test_losses_are_fetched_at_fixed_steps_where_that_costs(run, monkeypatch):
    fetched = []
    check = finetune._Loop._check

    def counted(self):
        fetched.extend([self.state.step] if self.pending else [])
        check(self)

    monkeypatch.setattr(finetune._Loop, "_check", counted)
    look_every(monkeypatch, 5)
    run()
    assert fetched == [5, 10, 12]


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pacer, "LOG_EVERY_S", 0)
    told = []
    at = Context(1, tmp_path, Machine(), lambda event, **f: told.append((event, f)), never)
    splits = DenseSplits([0], [0], [0])
    finetune.run(Learner(0.1), TINY, (0.1, 0.0), splits, lambda s: 0.5, at)
    steps = [f for event, f in told if event == "step"]
    assert [f["step"] for f in steps] == list(range(1, STEPS + 1))
    assert set(steps[0]) == {"step", "steps", "loss", "lr", "images_per_s"}
    assert steps[0]["lr"] == 0.05 and steps[0]["steps"] == STEPS
    ends = [(f["split"], f["step"]) for event, f in told if event == "evaluated"]
    assert ends == [("select", STEPS), ("report", STEPS)]


def test_mixed_precision_trains_and_resumes(run):
    protocol = change(TINY, {"precision": "bf16"})
    whole = run(protocol=protocol, folder="whole")
    assert whole != run()
    with pytest.raises(Killed):
        run(protocol=protocol, folder="killed", save_s=0, stop=killed_after(5))
    assert run(protocol=protocol, folder="killed") == whole


def work(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    pacer.ASK_EVERY = 4
    scores = []
    for place, stops in (("whole", [never]), ("stopped", [lambda: rank == 1, never])):
        for stop in stops:
            learner = Learner(0.1, rank=rank)
            at = Context(1, folder / place, Machine(), silent, stop)
            try:
                splits = DenseSplits([0], [0], [0])
                outcome = finetune.run(learner, TINY, (0.1, 0.0), splits, lambda s: 1.0, at)
            except Stopped as stopped:
                scores.append(str(stopped))
                dist.barrier()
        scores.append((outcome, learner.model.state_dict()))
    torch.save(scores, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_stop_together_and_go_on(tmp_path):
    multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for whole, stopped, again in ranks:
        assert stopped == "saved at step 4 of 12"
        assert again[0].extra["train_loss"] == whole[0].extra["train_loss"]
        assert all(torch.equal(v, again[1][k]) for k, v in whole[1].items() if "running" not in k)
    assert ranks[0][2][0] == ranks[0][0][0]  # rank 0's norms are saved: elsewhere they are shared
    first, second = (whole[1] for whole, *_ in ranks)
    assert torch.equal(first["0.weight"], second["0.weight"])  # gradients are shared


def test_splits_are_checked():
    class Some(list):
        classes, root = ("a",), "here"

        def unmeasurable(self):
            return "no object counts" if self == [2] else None

        def untrainable(self):
            return None

    class Other(Some):
        classes = ("a", "b")

    DenseSplits(Some([1]), None, Some([1])).check()
    with pytest.raises(ValueError, match="the select split has no images"):
        DenseSplits(Some([1]), Some(), Some([1])).check()
    with pytest.raises(ValueError, match=r"on the 1 images of the select split \(here\): no obj"):
        DenseSplits(Some([2]), Some([2]), Some([1])).check()
    with pytest.raises(
        ValueError, match=r"the classes of the report split differ from .*\(2 and 1\)"
    ):
        DenseSplits(Some([1]), None, Other([1])).check()
