"""Fixtures of all tests: a tiny image folder, the command line, and the check of engines."""

import importlib.util
import os
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, Bench, command, environment, write_images

# before anything imports torch
os.environ.update(ENVIRONMENT)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's choice would hold for what the tests start


def pytest_configure(config: pytest.Config) -> None:
    """Tests of an engine skip where it is absent, unless $LEWEL_BENCH_REQUIRE names it."""
    required = filter(None, os.environ.get("LEWEL_BENCH_REQUIRE", "").split(","))
    absent = [name for name in required if importlib.util.find_spec(name) is None]
    if absent:
        pytest.exit(f"LEWEL_BENCH_REQUIRE: not installed: {', '.join(absent)}", returncode=2)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in the ILSVRC layout."""
    return write_images(tmp_path_factory.mktemp("images") / "tiny")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Runs `lewel-bench` to its end in a folder of its own; never raises."""

    def run(*arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
