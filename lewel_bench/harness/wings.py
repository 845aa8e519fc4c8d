"""Parts of the package that the rest works without, if their folders are removed."""

from pathlib import Path

import lewel_bench


def is_installed(package: str) -> bool:
    """Whether a package of lewel_bench, such as `harness.cost`, is part of this installation."""
    folder = Path(lewel_bench.__file__).parent.joinpath(*package.split("."))
    return (folder / "__init__.py").is_file()
