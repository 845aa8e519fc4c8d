"""A copy of the code that a sweep runs, so that editing the checkout changes no queued job."""

import hashlib
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lewel_bench.files import SNAPSHOT, create_json

KEPT = (".py", ".toml", ".json", ".txt")


def take(package: Path, into: Path) -> Path:
    """The folder that holds a copy of `package`, to be first in PYTHONPATH.

    The same code is copied once. Commit and uncommitted changes are written beside it. Code that is
    a snapshot already is used as it is.
    """
    if (package.parent / SNAPSHOT).exists():
        return package.parent
    paths = sorted(p for p in package.rglob("*") if p.suffix in KEPT and p.is_file())
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)}\0{len(content)}\0".encode() + content)
    target = into / digest.hexdigest()[:12]
    if (target / SNAPSHOT).exists():
        return target
    into.mkdir(parents=True, exist_ok=True)
    # not mkdtemp, which leaves out the group whatever the umask says
    beside = into / f".new-{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
    beside.mkdir()
    for path in paths:
        copy = beside / package.name / path.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    create_json(beside / SNAPSHOT, origin(package))
    try:
        os.rename(beside, target)
    except OSError:  # another planner was first
        shutil.rmtree(beside)
        if not (target / SNAPSHOT).exists():
            raise
    return target


def origin(package: Path) -> dict[str, Any]:
    """Commit, uncommitted changes and untracked files of the package, where it is in a checkout."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout

    ours = bool(git("ls-files", "--error-unmatch", "__init__.py"))
    if not ours:  # installed: the version stands for the commit
        return {"commit": "", "dirty": False, "diff": "", "untracked": []}
    return {
        "commit": git("rev-parse", "HEAD").strip(),
        "dirty": bool(git("status", "--porcelain", "--", ".").strip()),
        "diff": git("diff", "HEAD", "--", "."),
        "untracked": git("ls-files", "--others", "--exclude-standard", "--", ".").splitlines(),
    }
