"""A pass that SLURM cuts short, with stand-ins for its commands."""

import os
from pathlib import Path

import pytest
from lab import Bench

from lewel_bench.slurm.executor import Rejected

CONFIG = "ClusterName = stand-in\\nMaxArraySize = 1001\\nMaxJobCount = 10000\\n"


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Cells of two kinds, which go out with two calls of sbatch."""
    there = tmp_path / "bin"
    there.mkdir()
    stand_in(there, "scontrol", f"printf '{CONFIG}'")
    stand_in(there, "squeue", "true")
    monkeypatch.setenv("PATH", f"{there}:{os.environ['PATH']}")
    found = Bench(tmp_path / "runs", wake=True)
    found.cell("a", "pretrain")
    found.cell("b", "light")
    return found


def accept(bench: Bench, count: int) -> None:
    """An sbatch that takes `count` calls and then has enough."""
    seen = bench.root.parent / "calls"
    script = (
        f'echo >> {seen}; n=$(wc -l < {seen}); [ "$n" -le {count} ] && '
        'echo "Submitted batch job $n" || { echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }'
    )
    stand_in(bench.root.parent / "bin", "sbatch", script)


def test_refused_from_the_start(bench: Bench) -> None:
    accept(bench, 0)
    with pytest.raises(Rejected, match="QOSMaxSubmitJobPerUserLimit"):
        bench.run()


def test_what_was_submitted_before_a_refusal_is_told(bench: Bench) -> None:
    accept(bench, 1)
    done = bench.run()
    assert list(done.submitted) == ["1"] and "QOSMaxSubmit" in done.broken
    states = {key: state for key, (state, _) in done.states.items()}
    assert states == {"a": "submit", "b": "held"}


def test_the_refusal_of_the_planning_job_is_told(bench: Bench) -> None:
    accept(bench, 2)
    done = bench.run_with_wakes()
    assert done.count("submit") == 2 and not done.wake
    assert "QOSMaxSubmit" in done.broken
