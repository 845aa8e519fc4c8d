"""What a record says of the machine that made it."""

import platform
from pathlib import Path

import pytest

from lewel_bench.harness.jobs.provenance import processor


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9V74 \nstepping\t: 1\n" * 2,
         "AMD EPYC 9V74"),
        ("processor\t: 0\nmodel name\t:\nflags\t: fpu\n", None),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", None),  # as of ARM
        (None, None),
    ],
)  # fmt: skip
def test_two_kinds_of_processor_are_told_apart(
    info: str | None, expected: str | None, tmp_path: Path
) -> None:
    """Times of two machines are compared by this name: that of the architecture, which is all that
    Python tells on Linux, is the same for both."""
    path = tmp_path / "cpuinfo"
    if info is not None:
        path.write_text(info)
    model = processor(path)
    assert model == (expected or platform.processor() or platform.machine())
