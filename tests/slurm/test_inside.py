"""What a job reads off SLURM, without one."""

import pytest

from lewel_bench.slurm import inside


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (
            "JobState=RUNNING PreemptEligibleTime=2026-11-25T13:33 PreemptTime=2026-11-25T13:34",
            True,
        ),
        ("JobState=RUNNING PreemptEligibleTime=2026-11-25T13:33 PreemptTime=None Start=x", False),
        ("JobState=RUNNING PreemptTime=Unknown", False),
        ("JobState=RUNNING EligibleTime=2026-11-25T13:33:52 AccrueTime=Unknown", False),
        ("JobState=CANCELLED PreemptTime=2026-11-25T13:34", False),
    ],
)
def test_only_a_preemption_in_its_grace_time_asks_for_more(shown: str, told: bool) -> None:
    """SLURM leaves PreemptTime out where nothing was ever preempted."""
    assert inside.in_grace(shown) == told
