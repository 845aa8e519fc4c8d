"""Dense jobs: seeds of trials, rivals of a candidate, what a final takes from its candidates."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lewel_bench.evals.context import Context
from lewel_bench.evals.dense import Segmentation
from lewel_bench.evals.outcome import Inputs, Outcome
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.recipe import change
from lewel_bench.pretrain.report import Diverged, never, silent

CONTEXT = Context(3, Path(), Machine(), silent, never)
PROTOCOL = change(PROTOCOLS["voc12_seg_fcn_d8"], {"lrs": (0.01, 0.02, 0.03), "prune": 0.5})


def result(lr, select, report, half=None):
    """A finished candidate; `select` None: it diverged."""
    extra = {"select": {} if select is None else {"miou": select}}
    extra |= {} if half is None else {"half": {"miou": half}}
    return SimpleNamespace(
        key=f"key of {lr}",
        name=f"lr {lr}",
        metrics={} if select is None else {"miou": report},
        outcome={
            "extra": extra,
            "chosen": {"lr": lr, "weight_decay": 5e-4},
            "paper_rule": {},
        },
        warnings=() if select is not None else (f"lr {lr} diverged",),
    )


@pytest.fixture
def calls(monkeypatch):
    """The (candidate, seed, rivals) of each fine-tuning, none of which trains."""
    calls = []

    def fine_tune(self, candidate, inputs, context, rivals=()):
        calls.append((candidate, context.seed, list(rivals)))
        return Outcome({"miou": 50.0}, extra={"train_loss": 1.0}, warnings=["of the training"])

    monkeypatch.setattr(Segmentation, "fine_tune", fine_tune)
    return calls


def test_a_candidate_is_compared_with_the_finished_that_trained_to_the_end(calls):
    finished = [result(0.01, 40.0, 41.0, half=20.0), result(0.03, None, None, half=1.0)]
    finished.append(result(0.02, 45.0, 44.0))  # of a search that did not prune
    inputs = Inputs(Path(), None, candidate=(0.02, 5e-4), finished=lambda: finished)
    PROTOCOL.run(inputs, CONTEXT)
    change(PROTOCOL, {"prune": None}).run(inputs, CONTEXT)
    assert calls == [((0.02, 5e-4), 3, [20.0]), ((0.02, 5e-4), 3, [])]


def test_a_final_trains_the_chosen_candidate_with_the_seed_of_its_trial(calls):
    results = [result(0.01, 40.0, 48.0), result(0.02, 45.0, 44.0), result(0.03, None, None)]
    outcome = PROTOCOL.run(Inputs(Path(), None, trial=2, results=results), CONTEXT)
    assert calls == [((0.02, 5e-4), 3 + 2 * 1000, [])]
    assert outcome.metrics == {"miou": 50.0}  # of the training
    # of the candidates, which did not train on the held-out images
    assert outcome.paper_rule == {"miou": 48.0, "lr": 0.01, "weight_decay": 5e-4}
    assert outcome.selection_gap == {"miou": 4.0}
    assert [row["key"] for row in outcome.grid] == [r.key for r in results]
    assert outcome.warnings == ["of the training", "lr 0.03 diverged"]
    assert outcome.extra["candidate"] == "key of 0.02" and outcome.extra["train_loss"] == 1.0


def test_a_single_candidate_is_trained_without_a_search(calls):
    protocol = change(PROTOCOL, {"lrs": (0.02,)})
    outcome = protocol.run(Inputs(Path(), None), CONTEXT)
    assert calls == [((0.02, 5e-4), 3, [])] and outcome.grid == []


def test_a_final_that_diverges_says_what_to_set(monkeypatch):
    ended = Outcome({}, warnings=["diverged at step 5"])
    monkeypatch.setattr(Segmentation, "fine_tune", lambda *_: ended)
    with pytest.raises(Diverged, match="diverged at step 5; set lower learning rates with --lrs"):
        PROTOCOL.run(Inputs(Path(), None, results=[result(0.01, 40.0, 41.0)]), CONTEXT)
