import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lewel_bench.results.verdict import half_width, t95, verdict

# Two-sided 95 % quantiles, NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
PRINTED = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110,
    18: 2.101, 19: 2.093, 20: 2.086, 21: 2.080, 22: 2.074, 23: 2.069, 24: 2.064, 25: 2.060,
    26: 2.056, 27: 2.052, 28: 2.048, 29: 2.045, 30: 2.042, 60: 2.000, 100: 1.984,
}  # fmt: skip


@pytest.mark.parametrize(("freedom", "printed"), PRINTED.items())
def test_t95_agrees_with_the_printed_table(freedom: int, printed: float) -> None:
    assert round(t95(freedom), 3) == printed


def test_t95_closed_forms_and_limit() -> None:
    assert t95(1) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-12)  # Cauchy
    assert t95(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)
    assert t95(20_001) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=2e-4)
    with pytest.raises(ValueError, match="at least two"):
        t95(0)


def test_half_width_closed_form() -> None:
    # 60 and 62: mean 61, sample std sqrt(2), standard error 1.
    assert half_width([60, 62]) == pytest.approx(t95(1))


@pytest.mark.parametrize(
    ("values", "published", "expected"),
    [
        ([66.1], 66.1, "inconclusive"),
        ([66.1], 10.0, "inconclusive"),
        ([60.0, 84.0], 71.9, "inconclusive"),  # their mean of 72 says nothing
        ([60.0, 72.0, 84.0], 72.0, "inconclusive"),
        ([71.9, 71.9], 71.9, "inconclusive"),  # two seeds are too few
        ([66.05, 66.1, 66.15], 66.1, "reproduced"),  # interval 4.303 x .05 / sqrt(3) = .124
        ([66.05, 66.1, 66.15], 66.03, "reproduced"),  # .07 + .124 is below .2
        ([66.05, 66.1, 66.15], 66.02, "inconclusive"),  # .08 + .124 is not
        ([72.0, 72.0, 72.0], 71.8, "reproduced"),  # exactly at the band
        ([72.0, 72.0, 72.0], 71.79, "differs"),
        ([66.0, 66.6], 66.6, "inconclusive"),  # .3 away, interval 12.7 x .3
        # the interval of .248 and the published run's .2 make .319
        ([66.0, 66.1, 66.2], 66.41, "inconclusive"),
        ([66.0, 66.1, 66.2], 66.43, "differs"),
        ([66.0, 66.1, 66.2], 65.77, "differs"),
    ],
)
def test_verdicts(values: list[float], published: float, expected: str) -> None:
    assert verdict(values, published, sd=0.1) == expected


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.floats(0, 100))
def test_verdict_does_not_depend_on_the_order_of_seeds(
    values: list[float], published: float
) -> None:
    assert verdict(values, published, 0.1) == verdict(values[::-1], published, 0.1)
