"""What measured numbers, and the paper's own tables, say about a claim."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lewel_bench.results.claims.claim import Claim, Comparison, Holds
from lewel_bench.results.claims.paired import Interval
from lewel_bench.results.fill import Entry, FilledTable, Measured
from lewel_bench.results.table import Row
from lewel_bench.results.verdict import half_width

Judgement = Literal["supported", "contradicted", "inconclusive", "missing"]
Own = Literal["holds", "within noise", "contradicted", "not printed"]
# What a claim of several comparisons is: the first that one of them is.
GRAVITY: tuple[Judgement, ...] = ("contradicted", "missing", "inconclusive", "supported")
OWN_GRAVITY: tuple[Own, ...] = ("contradicted", "not printed", "within noise", "holds")

TOLERANT: tuple[Holds, ...] = ("on par", "no better")  # what they say depends on a tolerance

Images = Callable[[str, str, str], tuple[Interval, int] | str]


@dataclass(frozen=True)
class Finding:
    """One comparison, measured; `comparable` where both sides are measured as the paper measured.
    `difference` is the mean over the `n` seeds that both sides have, in points, and `low` to `high`
    its 95 % interval, from what `how` says. The noise floor that it is judged by is `floor` (0
    where it is not comparable). `keys` are the records of either side. `own` is what the paper's
    table says, whose difference is `published`."""

    comparison: Comparison
    comparable: bool
    judgement: Judgement
    difference: float | None
    low: float | None
    high: float | None
    floor: float
    n: int
    how: str
    keys: tuple[str, ...]
    published: float | None
    own: Own
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ClaimResult:
    """A claim with all its findings; `own` is what the paper's tables say about it. Without
    `comparable` the records are of another scale than the paper's."""

    claim: Claim
    comparable: bool
    judgement: Judgement
    own: Own
    findings: tuple[Finding, ...]


def judge(
    claim: Claim,
    filled: FilledTable,
    records: Mapping[str, Measured],
    images: Images | None = None,
    besides: Callable[[Comparison], str] | None = None,
) -> ClaimResult:
    """What the measured values of its table say about a claim; `besides` says in what else than
    their methods two rows differ (empty: in nothing).

    - With two seeds or more on both sides: the t-interval of the differences of like seeds. At
      another scale than the paper's no noise floor is known: none is asked for.
    - With one: a bootstrap over the reported images, where `images` (key, key, metric) has one for
      the two records, and does not say why not. It knows nothing of what another seed would give,
      so the noise floor is added to either end. Without it, and at another scale: inconclusive.
    - A claim of "at most" gives a bound, which holds at the paper's scale only.
    """
    findings = tuple(_finding(c, filled, records, images, besides) for c in claim.comparisons())
    judgements = {finding.judgement for finding in findings}
    own = {finding.own for finding in findings}
    return ClaimResult(
        claim,
        all(finding.comparable for finding in findings),
        next(j for j in GRAVITY if j in judgements),
        "contradicted"
        if _exaggerates(claim, findings)
        else next(o for o in OWN_GRAVITY if o in own),
        findings,
    )


def exit_code(judged: Sequence[ClaimResult]) -> int:
    """0: all supported; 1: one is contradicted; 2: neither, as some are inconclusive or missing."""
    counts = Counter(verdict.judgement for verdict in judged)
    if counts["contradicted"]:
        return 1
    return 2 if counts["inconclusive"] or counts["missing"] else 0


def decide(holds: Holds, low: float, high: float, floor: float, bound: float = 0.0) -> Judgement:
    """What an interval of a difference says about a claim; `bound` is that of "at most"."""
    middle = (low + high) / 2
    gains = low > 0 and middle > floor
    if holds == "better":
        yes, no = gains, low <= 0 and high <= floor  # above 0 by less than noise: neither
    elif holds == "no better":
        yes, no = high <= floor, gains
    elif holds == "on par":
        yes, no = low >= -floor, high < -floor
    else:
        yes, no = high <= bound + floor, low > bound + floor
    return "supported" if yes else "contradicted" if no else "inconclusive"


def own(comparison: Comparison) -> Own:
    """What the paper's table says, a number having no more spread than the noise floor."""
    published, by, floor = comparison.published, comparison.by, comparison.noise.floor
    if published is None:
        return "not printed"
    holds = comparison.claim.holds
    if holds == "at most":
        assert by is not None, "checked when the claim was loaded"
        return "holds" if published <= by + floor else "contradicted"
    if by is not None and abs(published - by) > 0.05 + 1e-9:
        return "contradicted"
    if holds == "better":
        return (
            "contradicted" if published <= 0 else "holds" if published > floor else "within noise"
        )
    fine = published <= floor if holds == "no better" else published >= -floor
    return "holds" if fine else "contradicted"


def _exaggerates(claim: Claim, findings: Sequence[Finding]) -> bool:
    """Whether the largest difference in the table is another than the text says."""
    if claim.up_to is None:
        return False
    known = [f.published for f in findings if f.published is not None]
    return abs(max(known) - claim.up_to) > 0.05


def _finding(
    comparison: Comparison,
    filled: FilledTable,
    records: Mapping[str, Measured],
    images: Images | None,
    besides: Callable[[Comparison], str] | None,
) -> Finding:
    column = comparison.column
    rows = [row for row in (comparison.of, comparison.over) if row]
    entries = [filled.entries.get((row.id, column.id)) for row in rows]
    sides = [_by_seed(entry, records, column.metric) for entry in entries]
    seeds = sorted(set.intersection(*map(set, sides)))
    differences = [
        statistics.fmean(sides[0][seed].values())
        - (statistics.fmean(sides[1][seed].values()) if len(sides) > 1 else 0.0)
        for seed in seeds
    ]
    reasons = _reasons(rows, entries, sides, seeds)
    if besides and comparison.over and seeds and (text := besides(comparison)):
        reasons.append(text)
    known = filled.comparable and not any(e.incomparable for e in entries if e)
    floor = comparison.noise.floor if known else 0.0
    by = comparison.by
    first = [side[seeds[0]] for side in sides] if seeds else []
    bounds = _interval(differences, first, images, column.metric, floor)
    interval, how = (None, "") if isinstance(bounds, str) else bounds
    if not seeds:
        judgement: Judgement = "missing"
    elif comparison.claim.holds == "at most" and not known:
        judgement = "inconclusive"
        reasons.append("the bound holds at the paper's scale only")
    elif interval is None:
        judgement = "inconclusive"
        reasons.append(f"one seed; {bounds}")
    elif len(seeds) == 1 and not known:
        judgement = "inconclusive"
        reasons.append("one seed, and the noise floor is unknown at this scale: add --seeds 3")
    else:
        judgement = decide(comparison.claim.holds, *interval, floor, by or 0.0)
        if known and by and comparison.over and not interval[0] <= by <= interval[1]:
            reasons.append(f"the {by:+g} stated in the text lies outside the interval")
        if judgement == "contradicted" and comparison.claim.holds in TOLERANT and not known:
            judgement = "inconclusive"
            reasons.append(
                "it would be contradicted, but how much difference counts as noise is unknown at "
                "this scale"
            )
    return Finding(
        comparison,
        known,
        judgement,
        difference=statistics.fmean(differences) if differences else None,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        floor=floor,
        n=len(seeds),
        how=how,
        keys=tuple(key for side in sides for seed in seeds for key in side[seed]),
        published=comparison.published,
        own=own(comparison),
        reasons=tuple(reasons),
    )


def _left_out(
    row: Row, entry: Entry, side: Mapping[int, object], seeds: Sequence[int]
) -> Iterator[str]:
    """The seeds of one side that a comparison leaves out, and why."""
    why: dict[str, list[int]] = {}
    for slot in entry.slots:
        if slot.seed in seeds:
            continue
        if slot.seed in side:
            reason = "missing on the other side"
        elif slot.state == "done":
            reason = f"measured with {slot.setting}"
        else:
            reason = slot.state
        if slot.seed not in why.setdefault(reason, []):
            why[reason].append(slot.seed)
    for reason, left in why.items():
        named = f"seed{'s' if len(left) > 1 else ''} {', '.join(map(str, left))}"
        yield f"excluded: {named} of {row.label} ({reason})"


def _by_seed(
    entry: Entry | None, records: Mapping[str, Measured], metric: str
) -> dict[int, dict[str, float]]:
    """The values in an entry's mean, by seed and key of their record."""
    paired: dict[int, dict[str, float]] = {}
    for slot in entry.slots if entry else ():
        if entry and slot.key in entry.keys:
            paired.setdefault(slot.seed, {})[slot.key] = records[slot.key].metrics[metric]
    return paired


def _interval(
    differences: Sequence[float],
    first: Sequence[Mapping[str, float]],
    images: Images | None,
    metric: str,
    floor: float,
) -> tuple[Interval, str] | str:
    """The interval of a difference and what it is from, or why there is none."""
    n = len(differences)
    if n > 1:
        mean, half = statistics.fmean(differences), half_width(differences)
        return (mean - half, mean + half), f"t-interval over {n} seeds"
    if not n or images is None or any(len(side) != 1 for side in first) or len(first) < 2:
        return "no interval available"
    (of,), (over,) = first
    interval = images(of, over, metric)
    if isinstance(interval, str):
        return interval
    (low, high), count = interval
    how = f"bootstrap over {count} images" + (f" and the noise floor, {floor:g}" if floor else "")
    return (low - floor, high + floor), how


def _reasons(
    rows: Sequence[Row],
    entries: Sequence[Entry | None],
    sides: Sequence[Mapping[int, object]],
    seeds: Sequence[int],
) -> list[str]:
    """Why a comparison has no seed, or not all of them, that its sides were measured in two ways,
    what else must be known about its numbers, and what merged bundles have for them."""
    notes = []
    for row, entry, side in zip(rows, entries, sides, strict=True):
        if entry is None or entry.state is None:
            notes.append(f"no run fills {row.label} here")
        elif not side:
            notes.append(f"{row.label} is {entry.state}")
        elif seeds:
            notes += _left_out(row, entry, side, seeds)
    if not seeds and not notes:
        notes.append("the two sides have no seed in common")
    settings = [entry.setting for entry in entries if entry and entry.mean is not None]
    if seeds and len(set(settings)) > 1:
        notes.append(f"measured with different settings: {'; '.join(settings)}")
    for row, entry in zip(rows, entries, strict=True):
        if entry and seeds:
            notes += [f"{row.label}: {caveat}" for caveat in entry.caveats]
            notes += entry.elsewhere
    return notes
