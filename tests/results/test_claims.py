"""Claims: that each quotes the paper, and what numbers say about it."""

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lewel_bench.evals.segmentation import metric
from lewel_bench.results import fill, noise, table
from lewel_bench.results.claims import claim, judge, paired
from lewel_bench.results.claims import output as judged
from lewel_bench.results.claims.claim import Claim, Pairs
from lewel_bench.results.fill import Slot

ONE = claim.find("linear:lewel_m")  # better by 1.6, floor .2


@dataclass(frozen=True)
class Run:
    metrics: Mapping[str, float]


def test_every_claim_is_about_cells_that_a_run_can_fill() -> None:
    assert len(claim.load()) >= 35
    for entry in claim.load():
        cells = {(r.id, c.id) for r, c in table.load(entry.table).cells()}
        for comparison in entry.comparisons():
            rows = [comparison.of] + ([comparison.over] if comparison.over else [])
            for row in rows:
                assert (row.id, comparison.column.id) in cells, (entry.id, row.id)
            if comparison.over:
                assert comparison.over.id != comparison.of.id


def test_differences_that_the_text_gives_are_those_of_the_tables() -> None:
    given = [
        c for entry in claim.load() for c in entry.comparisons() if c.by is not None and c.over
    ]
    assert len(given) >= 14
    for value in given:
        assert value.published == pytest.approx(value.by, abs=1e-6), (value.claim.id, value.text)


def test_a_claim_that_the_papers_tables_contradict_says_so_and_no_other_does() -> None:
    filled = {id: fill.fill(table.load(id), {}, {}, "paper", True) for id in table.TABLES}
    against = {
        entry.id
        for entry in claim.load()
        if judge.judge(entry, filled[entry.table], {}).own == "contradicted"
    }
    assert against == {entry.id for entry in claim.load() if entry.flaw}
    # methods.md, Part C: LEWEL_M's top-5 with 1 %, Table 4's ties and .6, Table 7's peak at h = 4
    assert {"semi:all", "coco:lewel_m", "groups:segmentation"} <= against


@pytest.mark.parametrize(
    ("id", "prefix", "epochs"),
    [("coco:best", "c4:", {90, 200}), ("voc:best", "", {90, 100, 200}), ("semi:1pct", "", {200})],
)
def test_a_claim_over_all_others_leaves_none_of_their_rows_out(
    id: str, prefix: str, epochs: set[int]
) -> None:
    finding = claim.find(id)
    others = [
        row
        for row in table.load(finding.table).rows
        if row.id.startswith(prefix) and row.epochs in epochs and "lewel" not in row.id
    ]
    for column in {c.column.id for c in finding.comparisons()}:
        compared = {c.over.id for c in finding.comparisons() if c.over and c.column.id == column}
        assert compared == {row.id for row in others if column in row.values}, column


def test_a_comparison_is_judged_by_the_noise_of_its_own_quantity() -> None:
    for entry in claim.load():
        for comparison in entry.comparisons():
            assert comparison.noise == noise.find(str(comparison.column.noise))
    floors = claim.floors(claim.find("voc:lewel_m"))
    assert floors == "VOC07+12 AP 0.4, AP50 0.4, AP75 0.8, VOC12 mIoU 0.3"
    assert claim.floors(ONE) == "0.2"
    # .5 above in all: more than the noise of all but AP75
    slots, records = {}, {}
    for row, value in (("lewel_m:100", 60.5), ("moco_v2:100", 60.0)):
        keys = [f"{row} {seed}" for seed in range(2)]
        metrics = {"box_ap": value, "box_ap50": value, "box_ap75": value, "miou": value}
        records |= {key: Run(metrics) for key in keys}
        for column in table.load("3").columns:
            slots[row, column.id] = [Slot(key, seed, "done") for seed, key in enumerate(keys)]
    filled = fill.fill(table.load("3"), slots, records, "paper", True)
    finding = judge.judge(claim.find("voc:lewel_m"), filled, records)
    assert {f.comparison.column.id: f.judgement for f in finding.findings[:4]} == {
        "ap": "supported", "ap50": "supported", "ap75": "inconclusive", "miou": "supported",
    }  # fmt: skip


def test_gains_within_the_noise_floor_are_named() -> None:
    filled = fill.fill(table.load("3"), {}, {}, "paper", True)
    finding = judge.judge(claim.find("voc:lewel_m"), filled, {})
    assert finding.own == "within noise" and finding.judgement == "missing"
    assert {f.comparison.column.id for f in finding.findings if f.own == "within noise"} == {
        "ap", "ap50", "ap75",
    }  # fmt: skip


def measured(
    first: Mapping[int, float],
    theirs: Mapping[int, float],
    *,
    of: Claim = ONE,
    comparable: bool = True,
    images: judge.Images | None = None,
) -> judge.ClaimResult:
    """A claim of one comparison with values by seed on its two sides."""
    (only,) = of.comparisons()
    records, slots = {}, {}
    for row, values in ((only.of, first), (only.over, theirs)):
        if row is None:
            continue
        for seed, value in values.items():
            records[f"{row.id}{seed}"] = Run({only.column.metric: value})
        slots[row.id, only.column.id] = [Slot(f"{row.id}{s}", s, "done") for s in values]
    filled = fill.fill(table.load(of.table), slots, records, "suite", comparable)
    return judge.judge(of, filled, records, images)


def test_seeds_are_compared_in_pairs() -> None:
    # the seeds differ by far more than the two methods do
    result = measured({0: 51.0, 1: 62.1, 2: 73.2}, {0: 50.0, 1: 61.0, 2: 72.0})
    (finding,) = result.findings
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of two degrees of freedom, scipy.stats.t.ppf(.975, 2)
    assert finding.difference == pytest.approx(1.1) and finding.n == 3
    assert (finding.low, finding.high) == pytest.approx((1.1 - half, 1.1 + half), abs=1e-5)
    assert result.judgement == "supported"


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ((51.0, 61.0, 71.5), "supported"),
        ((50.15, 60.15, 70.15), "inconclusive"),  # above, by less than the floor
        ((50.02, 59.98, 70.0), "contradicted"),  # no more than the floor, if at all
        ((49.0, 59.0, 69.1), "contradicted"),
        ((50.5, 60.0, 73.0), "inconclusive"),
    ],
)
def test_what_three_seeds_say(first: tuple[float, ...], expected: str) -> None:
    result = measured(dict(enumerate(first)), {0: 50.0, 1: 60.0, 2: 70.0})
    assert result.judgement == expected
    assert judge.exit_code([result]) == {"supported": 0, "contradicted": 1}.get(expected, 2)


def test_a_number_of_the_text_that_is_not_measured_is_said() -> None:
    first = {0: 60.4, 1: 60.5, 2: 60.6}
    result, small = (
        measured(first, dict.fromkeys(range(3), 60.0), comparable=known) for known in (True, False)
    )
    assert result.judgement == "supported"
    assert result.findings[0].reasons == ("the +1.6 stated in the text lies outside the interval",)
    assert not small.findings[0].reasons


def test_the_papers_noise_is_that_of_its_scale() -> None:
    first, theirs = {0: 60.04, 1: 60.05, 2: 60.06}, {0: 60.0, 1: 60.0, 2: 60.0}
    paper, small = (measured(first, theirs, comparable=known) for known in (True, False))
    assert (paper.judgement, paper.findings[0].floor) == ("inconclusive", 0.2)
    assert (small.judgement, small.findings[0].floor) == ("supported", 0.0)
    below = measured({0: 59.9, 1: 59.95}, {0: 60.0, 1: 60.05}, comparable=False)
    assert below.judgement == "contradicted"
    # and how near "on par" is, is not known there
    near = claim.find("handcrafted:1x").model_copy(update={"pairs": ONE.pairs, "table": ONE.table})
    for known, expected in ((True, "contradicted"), (False, "inconclusive")):
        worse = measured({0: 59.0, 1: 58.9}, theirs, of=near, comparable=known)
        assert worse.judgement == expected
    assert "how much difference counts as noise is unknown" in worse.findings[0].reasons[-1]
    assert "(0.2)." in judged.about(paper)[0]
    assert "(0.2; unknown at this scale, so 0)." in judged.about(small)[0]


def test_a_bound_is_that_of_the_papers_scale() -> None:
    cost = claim.find("time:lewel_m")
    assert cost.holds == "at most"
    (only,) = cost.comparisons()
    dear = {0: only.by + 30.0, 1: only.by + 31.0}
    paper, small, none = (
        measured(values, {}, of=cost, comparable=known)
        for values, known in ((dear, True), (dear, False), ({}, False))
    )
    assert (paper.judgement, small.judgement) == ("contradicted", "inconclusive")
    assert small.findings[0].reasons == ("the bound holds at the paper's scale only",)
    assert none.judgement == "missing"


def test_only_seeds_of_both_sides_count() -> None:
    (finding,) = measured({0: 52.0, 1: 53.0}, {1: 50.0, 2: 99.0}).findings
    assert finding.n == 1 and finding.difference == 3.0
    (finding,) = measured({0: 52.0}, {1: 50.0}).findings
    assert finding.judgement == "missing" and finding.reasons == (
        "the two sides have no seed in common",
    )
    (finding,) = measured({0: 52.0}, {}).findings
    assert finding.judgement == "missing" and "MoCov2* is missing" in finding.reasons


def test_seeds_that_are_left_out_are_said() -> None:
    (only,) = ONE.comparisons()
    assert only.over is not None
    values = {"a0": 52.0, "a1": 53.0, "a3": 54.0, "b0": 50.0, "b1": 51.0, "b2": 50.5, "b4": 40.0}
    records = {key: Run({"top1": value}) for key, value in values.items()}
    done = {key: Slot(key, int(key[1]), "done", setting="one way") for key in values}
    odd = Slot("b4", 4, "done", setting="another way")
    slots = {
        (only.of.id, only.column.id): [done["a0"], done["a1"], Slot("a2", 2, "failed"), done["a3"]],
        (only.over.id, only.column.id): [done["b0"], done["b1"], done["b2"], odd],
    }
    filled = fill.fill(table.load("1"), slots, records, "paper", True)
    message = judge.judge(ONE, filled, records).findings[0]
    assert message.n == 2
    assert message.reasons[:4] == (
        "excluded: seed 2 of LEWEL_M (failed)",
        "excluded: seed 3 of LEWEL_M (missing on the other side)",
        "excluded: seed 2 of MoCov2* (missing on the other side)",
        "excluded: seed 4 of MoCov2* (measured with another way)",
    )
    assert "excluded: seed 2 of LEWEL_M (failed)" in judged.measured(message)


def test_one_seed_has_the_images_and_the_noise_floor() -> None:
    def images(of: str, over: str, metric: str) -> tuple[paired.Interval, int]:
        assert (of, over, metric) == ("lewel_m0", "moco_v20", "top1")
        return (0.5, 1.5), 50_000

    result = measured({0: 51.0}, {0: 50.0}, images=images)
    (finding,) = result.findings
    assert (finding.low, finding.high) == pytest.approx((0.3, 1.7))
    assert result.judgement == "supported" and "50000 images" in finding.how
    assert measured({0: 51.0}, {0: 50.0}).judgement == "inconclusive"
    # at another scale nothing is known of how seeds differ
    small = measured({0: 51.0}, {0: 50.0}, images=images, comparable=False)
    assert small.judgement == "inconclusive" and small.findings[0].low == 0.5


def test_the_ways_a_claim_can_hold() -> None:
    decide = judge.decide
    assert decide("better", 0.2, 0.4, 0.1) == "supported"
    assert decide("better", -0.2, 0.4, 0.1) == "inconclusive"
    assert decide("better", 0.02, 0.08, 0.1) == "inconclusive"  # within noise, as the paper's own
    assert decide("better", -0.05, 0.08, 0.1) == "contradicted"
    assert decide("no better", 0.2, 0.4, 0.1) == "contradicted"
    assert decide("no better", -0.5, 0.05, 0.1) == "supported"
    assert decide("on par", -0.1, 3.0, 0.1) == "supported"
    assert decide("on par", -3.0, -0.2, 0.1) == "contradicted"
    assert decide("on par", -3.0, 1.0, 0.1) == "inconclusive"
    assert decide("at most", 3.0, 4.4, 0.5, 4.0) == "supported"
    assert decide("at most", 4.6, 5.0, 0.5, 4.0) == "contradicted"
    time = measured({0: 3.9, 1: 4.1}, {}, of=claim.find("time:lewel_b"))
    assert time.judgement == "inconclusive"  # 4 +- 1.3
    assert time.own == "holds" and time.findings[0].published == pytest.approx(4.382, abs=1e-3)


def test_the_gravest_comparison_decides_and_so_does_the_gravest_claim() -> None:
    supported = measured({0: 52.0, 1: 52.1}, {0: 50.0, 1: 50.0})
    contradicted = measured({0: 48.0, 1: 48.1}, {0: 50.0, 1: 50.0})
    missing = measured({}, {})
    assert judge.exit_code([supported]) == 0
    assert judge.exit_code([supported, missing]) == 2
    assert judge.exit_code([supported, missing, contradicted]) == 1
    baselines = claim.find("linear:baselines")
    slots = {("lewel_m", "100:top1"): [Slot("a", 0, "done"), Slot("b", 1, "done")],
             ("moco_v2", "100:top1"): [Slot("c", 0, "done"), Slot("d", 1, "done")]}  # fmt: skip
    records = {k: Run({"top1": v}) for k, v in zip("abcd", (48.0, 48.1, 50.0, 50.0), strict=True)}
    finding = judge.judge(baselines, fill.fill(table.load("1"), slots, records, "s", True), records)
    assert finding.judgement == "contradicted"


def write(path: Path, **arrays: Any) -> Path:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    path.write_bytes(content.getvalue())
    return path


def predictions(path: Path, right: np.ndarray[Any, Any], files: str = "n") -> Path:
    """Predictions whose first class is the label where `right`."""
    count = len(right)
    label = np.arange(count) % 10
    first = np.where(right, label, (label + 1) % 10)
    top5 = np.stack([first, *(np.full(count, 10 + i) for i in range(4))], 1)
    return write(
        path, files=np.array([f"{files}{i}" for i in range(count)]), label=label, top5=top5
    )


def test_the_bootstrap_of_images_is_the_binomials_own_interval(tmp_path: Path) -> None:
    # 60 images only ours has right, 40 only theirs, of 1,000: sd of the difference's mean is
    # sqrt(.1 - .02 ** 2) / sqrt(1000) = .9980 points
    kinds = np.arange(1000)
    first = predictions(tmp_path / "a.npz", kinds < 560)
    theirs = predictions(tmp_path / "b.npz", (kinds < 500) | (kinds >= 960))
    result = paired.interval(first, theirs, "top1")
    assert not isinstance(result, str)
    (low, high), count = result
    assert count == 1000
    assert (low, high) == pytest.approx((2 - 1.96 * 0.998, 2 + 1.96 * 0.998), abs=0.12)
    assert paired.interval(first, theirs, "top1") == result  # the same for the same files
    assert paired.interval(first, first, "top1") == ((0.0, 0.0), 1000)


def test_pictures_are_resampled_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 3, (40, 16, 16))
    confusions = []
    for share in (0.9, 0.5):
        guess = np.where(random.random(truth.shape) < share, truth, (truth + 1) % 3)
        confusions.append(
            np.stack([metric.confusion(g, t, 4) for g, t in zip(guess, truth, strict=True)])
        )
    first, theirs = (
        write(tmp_path / f"{i}.npz", files=np.arange(40), confusion=c)
        for i, c in enumerate(confusions)
    )
    values = [metric.scores(c.sum(0), tuple("abcd"))["miou"] for c in confusions]
    for value, c in zip(values, confusions, strict=True):
        assert paired.miou(c.sum(0, keepdims=True).astype(float))[0] == pytest.approx(value)
    result = paired.interval(first, theirs, "miou")
    assert not isinstance(result, str) and result[1] == 40
    assert result[0][0] < values[0] - values[1] < result[0][1]
    assert result[0][1] - result[0][0] < 5


def test_predictions_that_cannot_be_compared(tmp_path: Path) -> None:
    right = np.ones(10, bool)
    first, other = predictions(tmp_path / "a", right), predictions(tmp_path / "b", right, "m")
    assert "cover different images" in str(paired.interval(first, other, "top1"))
    assert "No such file" in str(paired.interval(first, tmp_path / "none", "top1"))
    assert "confusion" in str(paired.interval(first, first, "miou"))
    assert paired.interval(first, first, "box_ap") == "no bootstrap over images for box_ap"
    other.write_bytes(b"PK\x03\x04 broken")
    message = paired.interval(first, other, "top1")
    assert isinstance(message, str) and message.startswith("no per-image predictions")
    result = measured({0: 51.0}, {0: 50.0}, images=lambda *_: str(message))
    assert result.judgement == "inconclusive" and message in result.findings[0].reasons[0]


@pytest.mark.parametrize(
    ("metric", "arrays", "message"),
    [
        ("top1", {"label": np.zeros(3, int), "top5": np.zeros(3, int)}, "has top5 of shape (3,)"),
        ("top1", {"label": np.zeros(2, int), "top5": np.zeros((3, 5), int)}, "has label of shape"),
        ("top5", {"label": np.zeros(3, int), "top5": np.full((3, 5), "a")}, "(3, 5), <U1"),
        ("miou", {"confusion": np.ones((3, 2, 4), int)}, "has confusion of shape (3, 2, 4)"),
        ("miou", {"confusion": np.zeros((3, 2, 2), int)}, "contain no labelled pixel"),
        ("miou", {"confusion": np.zeros((0, 2, 2), int), "files": np.zeros(0)}, "shape (0,)"),
    ],
)
def test_predictions_of_an_odd_shape_are_no_interval(
    tmp_path: Path, metric: str, arrays: dict[str, Any], message: str
) -> None:
    odd = write(tmp_path / "a.npz", **{"files": np.arange(3), **arrays})
    assert message in str(paired.interval(odd, odd, metric))


def test_predictions_that_are_no_such_file_are_no_interval(tmp_path: Path) -> None:
    entry, two, more = (
        write(
            tmp_path / f"{classes}.npz",
            files=np.arange(3),
            confusion=np.ones((3, classes, classes), int),
        )
        for classes in (1, 2, 3)
    )
    assert "cover different classes" in str(paired.interval(two, more, "miou"))
    with open(two, "wb") as file:
        np.save(file, np.arange(3))
    assert "is not an .npz file" in str(paired.interval(two, more, "miou"))
    two.write_bytes(b"")
    assert "no per-image predictions" in str(paired.interval(two, more, "miou"))
    more.write_bytes(entry.read_bytes()[:-300] + b"0" * 300)
    assert "no per-image predictions" in str(paired.interval(more, more, "miou"))


def test_a_claim_about_a_column_without_noise_is_an_error() -> None:
    seconds = Pairs(of="lewel_b", over=("byol",), columns=("seconds",))
    entry = ONE.model_dump() | {"table": "9", "pairs": [seconds]}
    with pytest.raises(ValueError, match="claim linear:lewel_m: seconds has no noise"):
        claim._Register.model_validate({"claims": [entry]})


def test_a_bad_register_is_named(tmp_path: Path) -> None:
    text = claim.FILE.read_text()
    for old, new, message in (
        ('of = "lewel_m", over', 'of = "lewel_n", over', "Did you mean 'lewel_m'"),
        (
            'columns = ["100:top1"]',
            'columns = ["100:top2"]',
            "unknown column of table 1 '100:top2'",
        ),
        ('id = "linear:lewel_b"', 'id = "linear:lewel_m"', "two claims have the same id"),
        ('columns = ["100:top1"], by = 1.6', 'columns = ["100:top1"], bye = 1.6', "'by'"),
    ):
        bad = tmp_path / "claims.toml"
        bad.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            claim._Register.of_toml(bad)
    with pytest.raises(ValueError, match="Did you mean 'linear:lewel_m'"):
        claim.find("linear:lewel")
    with pytest.raises(ValueError, match="compares with a bound"):
        Claim.model_validate(
            {**ONE.model_dump(), "holds": "at most", "pairs": [Pairs(of="a", columns=("b",))]}
        )


def test_predictions_that_unpack_to_much_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "LARGEST", 1 << 20)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, files=np.arange(4), label=np.zeros(1 << 18), top5=np.zeros((4, 5)))
    assert path.stat().st_size < 1 << 14
    message = paired.interval(path, path, "top1")
    assert isinstance(message, str) and "unpacks to more than 1 MiB" in message
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("files.npy", bytes(1 << 20))
    message = paired.interval(path, path, "top1")
    assert isinstance(message, str) and "unsupported compression" in message
