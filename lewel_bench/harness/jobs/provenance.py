"""Where a number comes from: commit, version, command line, software and hardware."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

import lewel_bench
from lewel_bench import __version__
from lewel_bench.files import SNAPSHOT
from lewel_bench.harness.jobs.variables import COMMAND
from lewel_bench.harness.plan.site import MachineSettings
from lewel_bench.pretrain import distributed

CPUINFO = Path("/proc/cpuinfo")


def environment(settings: MachineSettings) -> dict[str, str]:
    """Versions and hardware, for the record."""
    on_gpu = torch.cuda.is_available() and settings.device != "cpu"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else processor(CPUINFO),
        "processes": str(distributed.world()),
        "threads": str(torch.get_num_threads()),
        "micro_batch": str(settings.micro_batch or "whole"),
        "compile": str(settings.compile).lower(),
        "tf32_convolutions": str(on_gpu and torch.backends.cudnn.allow_tf32).lower(),
    }


def processor(info: Path) -> str:
    """The processor's model by the file in which Linux tells it; elsewhere its architecture, which
    two machines may share that are not equally fast."""
    try:
        text = info.read_text(errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:[ \t]*(\S.*?)\s*$", text, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


@cache
def provenance() -> dict[str, Any]:
    """Commit, whether it was changed, version, and the command line."""
    package = Path(lewel_bench.__file__).parent
    command = os.environ.get(COMMAND) or shlex.join(["lewel-bench", *sys.argv[1:]])
    copied = package.parent / SNAPSHOT  # the code that a cluster's jobs run is no checkout
    if copied.exists():
        origin = json.loads(copied.read_text())
        return {
            "commit": origin["commit"] or f"version {__version__}",
            "dirty": origin["dirty"],
            "version": __version__,
            "command": command,
        }

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return ""  # installed from a wheel: the version stands for the commit
        return done.stdout.strip()

    # installed inside somebody's own repository, that one's commit says nothing
    tracked = bool(git("ls-files", "--error-unmatch", str(Path(__file__))))
    return {
        "commit": (tracked and git("rev-parse", "HEAD")) or f"version {__version__}",
        "dirty": tracked and bool(git("status", "--porcelain")),
        "version": __version__,
        "command": command,
    }
