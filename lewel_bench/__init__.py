"""LEWEL and its baselines: pre-training, evaluation, the paper's tables with measured numbers."""

import importlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lewel_bench.harness.root import open_root

__all__ = ["__version__", "open_root", "pip_install"]
__version__ = "0.1.0"


def pip_install(extra: str = "") -> str:
    """The command that installs this package from its checkout, with an extra. Its name is
    registered nowhere, so that anybody could take it: only a folder is safe to name."""
    checkout = Path(__file__).resolve().parent.parent
    source = str(checkout) if (checkout / "pyproject.toml").is_file() else "CHECKOUT"
    return f"pip install {shlex.quote(source + (f'[{extra}]' if extra else ''))}"


def __getattr__(name: str) -> Any:
    if name == "open_root":  # on first use: importing the package loads nothing else
        return importlib.import_module("lewel_bench.harness.root").open_root
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
