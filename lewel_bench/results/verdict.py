"""Whether a measured mean agrees with a published value, and what that is judged by."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

Verdict = Literal[
    "reproduced",
    "differs",
    "inconclusive",
    "not comparable",
    "nothing published",
    "published only",
    "running",
    "queued",
    "failed",
    "missing",
    "stale",
]


SEEDS = 3  # a run is called reproduced from so many seeds on


def verdict(values: Sequence[float], published: float, sd: float) -> Verdict:
    """What `values` (one a seed, at least one) say about `published`, all in the same unit.

    `sd` is the standard deviation of single runs; the published value is taken for one run of it.
    With d the distance of the mean from it and h half the 95 % t-interval of the mean:

    - `reproduced`: three seeds or more, and the whole interval is inside the published value
      +- 2 sd (d + h <= 2 sd), as an equivalence test asks;
    - `differs`: two seeds or more, and d is beyond the noise of both sides
      (d^2 > h^2 + (2 sd)^2);
    - `inconclusive`: all else, such as one seed, which has no spread to judge by.
    """
    assert values, "a verdict needs a measured value"
    if len(values) == 1:
        return "inconclusive"
    # Rounded, so that 72.0 against 71.8 is a difference of 0.2 and not of 0.20000000000000284.
    distance = round(abs(statistics.fmean(values) - published), 9)
    half, band = round(half_width(values), 9), round(2 * sd, 9)
    if len(values) >= SEEDS and round(distance + half, 9) <= band:
        return "reproduced"
    return "differs" if distance > round(math.hypot(half, band), 9) else "inconclusive"


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % t-interval of the mean of n >= 2 `values`: t * sample std / sqrt(n)."""
    return t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def t95(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t with `freedom` >= 1 degrees of freedom."""
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom: an interval needs at least two values")
    low, high = 0.0, 13.0  # t95 is largest at one degree of freedom: 12.706
    for _ in range(60):  # 13 / 2**60 is below a float's resolution there
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _inside(t: float, freedom: int) -> float:
    # P(|T| <= t) for whole degrees of freedom: Abramowitz and Stegun 26.7.3 (odd), 26.7.4 (even).
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for i in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
