import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lewel_bench.results

FILES = sorted(Path(lewel_bench.results.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_results_imports_no_sibling_package(file: Path) -> None:
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    modules = [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
    ours = {module for module in modules if module.split(".")[0] == "lewel_bench"}
    assert all(module.startswith("lewel_bench.results.") for module in ours)


def test_results_imports_nothing_heavy() -> None:
    names = [f"lewel_bench.results.{file.stem}" for file in FILES if file.stem != "__init__"]
    heavy = "torch numpy pandas rich scipy"
    code = (
        f"import sys, {', '.join(names)}; print([m for m in {heavy.split()} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
