"""A copy of the code for queued jobs, which later edits of the checkout do not change."""

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
    """The folder with a copy of `package`, to be first in PYTHONPATH.

    The same code is copied once, together with its commit and uncommitted changes. Code that is
    already a snapshot is used as it is.
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
    # mkdtemp would exclude the group whatever the umask
    temporary = into / f".new-{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary.mkdir()
    for path in paths:
        copy = temporary / package.name / path.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    create_json(temporary / SNAPSHOT, origin(package))
    try:
        os.rename(temporary, target)
    except OSError:  # another planner has copied it
        shutil.rmtree(temporary)
        if not (target / SNAPSHOT).exists():
            raise
    return target


def origin(package: Path) -> dict[str, Any]:
    """Commit, uncommitted changes and untracked files of the package; empty outside a checkout."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout

    is_tracked = bool(git("ls-files", "--error-unmatch", "__init__.py"))
    if not is_tracked:  # installed: the version stands for the commit
        return {"commit": "", "dirty": False, "diff": "", "untracked": []}
    return {
        "commit": git("rev-parse", "HEAD").strip(),
        "dirty": bool(git("status", "--porcelain", "--", ".").strip()),
        "diff": git("diff", "HEAD", "--", "."),
        "untracked": git("ls-files", "--others", "--exclude-standard", "--", ".").splitlines(),
    }
