"""kNN against a loop written as the definition reads."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lewel_bench.evals import features, knn
from lewel_bench.evals.classification import Knn
from lewel_bench.evals.context import Context
from lewel_bench.pretrain import pacer
from lewel_bench.pretrain.report import Stopped, never, silent

BANK, QUERIES, FEATURES, CLASSES = 200, 40, 16, 7


@pytest.fixture
def clouds():
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, FEATURES, generator=rng)

    def sample(count):
        labels = torch.randint(CLASSES, (count,), generator=rng)
        return centres[labels] + 1.5 * torch.randn(count, FEATURES, generator=rng), labels

    return sample(BANK), sample(QUERIES)


def naive(bank, query, k, temperature):
    """Votes of one query, in double precision."""
    cosines = []
    for x, label in zip(bank[0].double().tolist(), bank[1].tolist(), strict=True):
        dot = sum(a * b for a, b in zip(x, query, strict=True))
        norms = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in query))
        cosines.append((dot / norms, label))
    votes = [0.0] * CLASSES
    for cosine, label in sorted(cosines, reverse=True)[:k]:
        votes[label] += math.exp(cosine / temperature)
    return votes


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (50, 0.1), (BANK, 1.0)])
def test_votes_equal_the_loop(clouds, monkeypatch, k, temperature):
    bank, queries = clouds
    monkeypatch.setattr(knn, "SIMILARITIES", 7 * BANK)  # several chunks, the last one short
    votes = knn.vote(bank, queries[0], k, temperature, CLASSES)
    expected = torch.tensor([naive(bank, q, k, temperature) for q in queries[0].tolist()])
    assert torch.equal(votes > -torch.inf, expected > 0)
    weights = votes.clamp_min(0) / votes.clamp_min(0).sum(1, keepdim=True)
    shares = (expected / expected.sum(1, keepdim=True)).float()
    torch.testing.assert_close(weights, shares, rtol=2e-5, atol=1e-6)
    accuracy, warnings = knn.measure(bank, queries, [k, 5], temperature, CLASSES)
    hits = (expected.argmax(1) == queries[1]).double().mean()
    assert accuracy["top1"] == pytest.approx(100 * float(hits))
    assert set(accuracy) == {"top1", "top5", "top1_k5"} and not warnings


@pytest.mark.parametrize("k", [1, 3, 200])
def test_top5_counts_only_classes_with_a_vote(k):
    rng = torch.Generator().manual_seed(0)
    bank, queries = (
        (torch.randn(count, 4, generator=rng), torch.randint(50, (count,), generator=rng))
        for count in (200, 300)
    )
    cosines = torch.nn.functional.cosine_similarity(queries[0][:, None], bank[0][None], dim=2)
    hits = {1: 0, 5: 0}
    for row, label in zip(cosines, queries[1].tolist(), strict=True):
        votes: dict[int, float] = {}
        for i in row.argsort(descending=True)[:k].tolist():
            voted = int(bank[1][i])
            votes[voted] = votes.get(voted, 0) + math.exp(row[i] / 0.07)
        ranked = sorted(votes, key=lambda c: -votes[c])
        hits = {n: hits[n] + (label in ranked[:n]) for n in hits}
    accuracy, _ = knn.measure(bank, queries, [k], 0.07, 50)
    assert accuracy == pytest.approx({f"top{n}": 100 * hits[n] / 300 for n in hits})
    assert k > 1 or accuracy["top5"] == accuracy["top1"]


def test_a_low_temperature_follows_the_nearest_neighbour(clouds):
    bank, queries = clouds
    nearest = knn.measure(bank, queries, [1], 0.07, CLASSES)[0]["top1"]
    assert knn.measure(bank, queries, [20], 1e-4, CLASSES)[0]["top1"] == nearest


def test_a_bank_smaller_than_k_warns(clouds):
    bank, queries = clouds
    accuracy, warnings = knn.measure(bank, queries, [500], 0.07, CLASSES)
    assert accuracy == knn.measure(bank, queries, [BANK], 0.07, CLASSES)[0]
    assert warnings == ["kNN: k 500 exceeds the bank of 200 images: all are used"]


def test_reports_progress_and_stops(splits, backbone_file, machine, tmp_path, monkeypatch):
    """72 and 36 images: 5 and 3 batches of at most 16."""
    monkeypatch.setattr(features, "FORWARD", 16)
    monkeypatch.setattr(pacer, "LOG_EVERY_S", 0.0)
    protocol = Knn(name="x", label="x", source="x", image_size=32, resize=36, ks=(5, 1))
    seen = []

    def report(event, /, **fields):
        seen.append(fields["step"])
        assert event == "step" and fields["steps"] == 8

    context = Context(0, tmp_path, machine, report, never)
    knn.run(protocol, backbone=backbone_file, splits=splits, context=context)
    assert seen == list(range(1, 9))
    with pytest.raises(Stopped, match="will restart from the beginning"):
        context = replace(context, stop=lambda: len(seen) == 8 + 3)
        knn.run(protocol, backbone=backbone_file, splits=splits, context=context)
    assert len(seen) == 8 + 3


@pytest.mark.parametrize("k", [5, 1])
def test_run(splits, backbone_file, machine, tmp_path, k):
    protocol = Knn(name="x", label="x", source="x", image_size=32, resize=36, ks=(k, 2))
    outcome = knn.run(
        protocol,
        backbone=backbone_file,
        splits=splits,
        context=Context(0, tmp_path, machine, silent, never),
    )
    assert outcome.metrics["top1"] > 100 / 6 + 15
    saved = np.load(tmp_path / "predictions.npz")
    assert list(saved["files"]) == list(splits.report.files)
    hits = saved["top5"] == saved["label"][:, None]
    assert 100 * hits[:, 0].mean() == pytest.approx(outcome.metrics["top1"])
    assert 100 * hits.any(1).mean() == pytest.approx(outcome.metrics["top5"])
    assert ((saved["top5"] == -1) == (saved["probability"] == 0)).all()
    assert (saved["top5"] == -1).any() and saved["probability"].sum(1) == pytest.approx(1)
    assert outcome.extra["note"] == "bank: all 72 training images"
    assert outcome.warnings == (
        [] if k == 5 else ["top5 counts the classes that neighbours vote for: at most 1"]
    )
