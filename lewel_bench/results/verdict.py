"""Whether a measured mean agrees with a published value, and what that is judged by."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

Verdict = Literal[
    "reproduced",
    "within noise",
    "differs",
    "inconclusive (n=1)",
    "not comparable",
    "nothing published",
    "published only",
    "running",
    "queued",
    "failed",
    "missing",
    "stale",
]


def verdict(values: Sequence[float], published: float, noise: float) -> Verdict:
    """What `values` (one a seed, at least one) say about `published`, all in the same unit.

    - `inconclusive (n=1)`: one seed has no spread to judge by;
    - `reproduced`: the published value is at most `noise`, the protocol's noise floor, from the
      mean;
    - `within noise`: farther, but inside the 95 % t-interval of the mean. Few seeds make it wide
      (12.7 standard errors at n = 2), so this says that a difference is not shown, no more;
    - `differs`: outside both.
    """
    assert values, "a verdict needs a measured value"
    if len(values) == 1:
        return "inconclusive (n=1)"
    # Rounded, so that 72.0 against 71.8 is a difference of 0.2 and not of 0.20000000000000284.
    distance = round(abs(statistics.fmean(values) - published), 9)
    if distance <= noise:
        return "reproduced"
    return "within noise" if distance <= round(half_width(values), 9) else "differs"


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
