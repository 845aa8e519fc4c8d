"""A few of the disturbed runs of `make crash-sweep`."""

import subprocess
import sys
from pathlib import Path


def test_killed_torn_and_full_runs_end_as_an_undisturbed_one() -> None:
    script = Path(__file__).with_name("crash_sweep.py")
    done = subprocess.run(
        [sys.executable, script, "--kills", "8", "--failures", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 kills, 5 failures: 0 ended otherwise" in done.stdout
