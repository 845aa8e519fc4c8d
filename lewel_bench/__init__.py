"""LEWEL and its baselines: pre-training, evaluation, the paper's tables with measured numbers."""

import shlex
from pathlib import Path

__version__ = "0.1.0"


def pip_install(extra: str = "") -> str:
    """The command that installs this package from its checkout, with an extra. Its name is
    registered nowhere, so that anybody could take it: only a folder is safe to name."""
    checkout = Path(__file__).resolve().parent.parent
    source = str(checkout) if (checkout / "pyproject.toml").is_file() else "CHECKOUT"
    return f"pip install {shlex.quote(source + (f'[{extra}]' if extra else ''))}"
