"""Engines in another Python, with a made-up engine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lewel_bench.evals import other_interpreter
from lewel_bench.evals.outcome import DenseSplits, Outcome
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.pretrain.distributed import Machine
from lewel_bench.pretrain.report import Stopped, never, silent

PATIENCE_S = 60
ENGINE = """
import os, sys, time
import torch
from lewel_bench.evals import other_interpreter
from lewel_bench.evals.dense import Detection
from lewel_bench.evals.outcome import Outcome
from lewel_bench.pretrain.report import Stopped

selected = []
torch.cuda.set_device = lambda device: selected.append(str(device))

def run(protocol, *, candidate, backbone, splits, seed, folder, machine, rivals, report, stop):
    print("noise")
    print("more noise", file=sys.stderr)
    report("step", step=1, path=os.environ["PYTHONPATH"].split(":")[0])
    if seed == 1:
        raise ValueError("no such weights")
    if seed == 2:
        (folder / "running").touch()
        while not stop():
            time.sleep(0.05)
        (folder / "left").touch()
        raise Stopped("saved at step 1")
    if seed == 3:
        raise RuntimeError("a bug")
    if seed == 5:
        os.kill(os.getpid(), 11)
    if seed == 4:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    return Outcome(
        metrics={"box_ap": float(sum(splits.train))},
        extra={
            "name": protocol.name,
            "candidate": candidate,
            "device": str(machine.device),
            "selected": selected,
        },
    )

if __name__ == "__main__":
    sys.exit(other_interpreter.serve(run))
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter that has the engine."""
    (tmp_path / "engine_of_test.py").write_text(ENGINE)
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}" exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def ran(
    python: str, seed: int, stop: Any = never, report: Any = silent, device: str = "cpu"
) -> Outcome:
    folder = Path(python).parent / "run"
    arguments = {
        "candidate": (0.02, 1e-4),
        "backbone": folder / "backbone.safetensors",
        "splits": DenseSplits((1, 2), None, (3,)),
        "seed": seed,
        "folder": folder,
        "machine": Machine(torch.device(device)),
        "rivals": (1.0,),
    }
    protocol = PROTOCOLS["coco_fpn_1x"]
    return other_interpreter.run(python, "engine_of_test", protocol, arguments, report, stop)


def test_outcome_and_events_come_back(python: str) -> None:
    events = []
    result = ran(
        python,
        0,
        report=lambda event, **fields: events.append((event, fields)),
        device="cuda:1",
    )
    assert result == Outcome(
        metrics={"box_ap": 3.0},
        extra={
            "name": "coco_fpn_1x",
            "candidate": [0.02, 1e-4],
            "device": "cuda:1",
            "selected": ["cuda:1"],  # so that its "cuda" is the device of this rank
        },
    )
    ((event, fields),) = events
    assert event == "step" and fields["step"] == 1
    # its Python sees this code and, while it runs only, nothing else of this environment
    assert "lewel-bench-" in fields["path"] and not Path(fields["path"]).exists()
    folder = Path(python).parent / "run"
    assert "noise" in (folder / other_interpreter.LOG).read_text()
    assert not list(folder.glob("engine*.json")) and not list(folder.glob("*.pickle"))


def test_a_mistake_is_a_mistake_here_too(python: str) -> None:
    with pytest.raises(ValueError, match=r"^no such weights$"):
        ran(python, 1)


def test_a_bug_names_the_log(python: str) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 1: RuntimeError: a bug \(full log: .*log"):
        ran(python, 3)


def test_a_signal_that_ended_it_is_named(python: str) -> None:
    with pytest.raises(RuntimeError, match=r"python was ended by SIGSEGV: "):
        ran(python, 5)


def test_running_out_of_memory_is_that_here_too(python: str) -> None:
    """A job that did is tried once more with half the micro-batch, one with a bug is not."""
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        ran(python, 4)


def test_a_request_to_stop_is_passed_on(python: str) -> None:
    folder = Path(python).parent / "run"
    with pytest.raises(Stopped, match=r"^saved at step 1$"):
        ran(python, 2, stop=(folder / "running").exists)
    assert (folder / "left").exists()


def test_an_engine_does_not_outlive_its_parent(python: str) -> None:
    folder = Path(python).parent / "run"
    here = json.dumps([python, str(Path(__file__).parent)])
    code = (
        f"import sys; p, t = {here}; sys.path.insert(0, t); "
        "import test_other_interpreter as t; t.ran(p, 2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ})
    _wait_for(folder / "running")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for(folder / "left")


def _wait_for(path: Path) -> None:
    began = time.monotonic()
    while not path.exists():
        assert time.monotonic() - began < PATIENCE_S, f"{path} does not appear"
        time.sleep(0.05)
