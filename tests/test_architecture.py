"""Who may import whom, and what a command may load before it must."""

import ast
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lewel_bench
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.harness.cli import VERBS
from lewel_bench.pretrain.methods import METHODS
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import table
from lewel_bench.results.figures import figure

PACKAGE = Path(lewel_bench.__file__).parent
ALLOWED = {
    "slurm": set(),
    "results": set(),
    "pretrain": set(),
    "evals": {"pretrain"},
    "harness": {"slurm", "results", "pretrain", "evals"},
}
NOT_FOR_EVALS = {"methods", "method", "parts", "train"}


def _imports(path: Path) -> set[tuple[str, ...]]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {(*node.module.split("."), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
    return {name[1:] for name in names if name[0] == "lewel_bench" and len(name) > 1}


@pytest.mark.parametrize("folder", ALLOWED)
def test_import_rule(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        for name in _imports(path):
            if name[0] in ALLOWED:
                assert name[0] in ALLOWED[folder] | {folder}, f"{path} imports {'.'.join(name)}"
            if folder == "evals" and name[0] == "pretrain":
                assert name[1] not in NOT_FOR_EVALS, f"{path} imports {'.'.join(name)}"


def _package_imports() -> dict[str, list[tuple[str, bool]]]:
    """Of each module the modules of the package that it imports, and whether in a function; what
    only a type checker imports is left out."""
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    imports: dict[str, list[tuple[str, bool]]] = {}
    for module, path in modules.items():
        targets: list[tuple[str, bool]] = []
        pending: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text()), False)]
        while pending:
            node, late = pending.pop()
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                pending += [(child, late) for child in node.orelse]
                continue
            if isinstance(node, ast.Import):
                targets += [(alias.name, late) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} has a relative import"
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    targets.append((name if name in modules else str(node.module), late))
            late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            pending += [(child, late) for child in ast.iter_child_nodes(node)]
        imports[module] = [(name, late) for name, late in targets if name in modules]
    return imports


IMPORTS = _package_imports()


def test_no_import_cycle() -> None:
    """Neither at module level nor by imports in functions; imports for types do not count."""
    graph = {
        module: {name for name, _ in names if name != module} for module, names in IMPORTS.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names a cycle


# What the core does without: modules by pattern, those in their folders included
WINGS = {
    "dense evaluations": (
        *("evals.detection", "evals.segmentation"),
        *("evals.finetune", "evals.candidate"),
    ),
    "engines": ("evals.engines", "evals.other_interpreter", "evals.interpreter_facts"),
    "imported and exported checkpoints": (
        *("evals.checkpoints", "evals.sanity_check", "evals.export", "evals.weights"),
        *("harness.verbs.eval", "harness.verbs.export", "harness.model_card"),
        *("harness.checkpoint_import", "harness.export"),
    ),
    "claims": ("results.claims", "harness.verbs.claims", "harness.board.claims"),
    "figures": (
        *("results.figures", "harness.figures"),
        *("harness.verbs.figure", "pretrain.published"),
    ),
    "report": ("results.report", "results.cell_details", "harness.verbs.report", "harness.report"),
    "bundles": ("harness.bundles", "harness.verbs.bundle", "harness.verbs.merge"),
    "cost and budget": ("harness.cost",),
    "slurm": (
        *("slurm", "harness.cluster*", "harness.jobs.cluster_entry", "harness.verbs.doctor"),
        *("harness.verbs.cancel", "harness.verbs.retry", "harness.verbs.logs"),
    ),
}


def is_wing(module: str) -> str | None:
    """The wing of a module; None in the core."""
    name = module.removeprefix("lewel_bench.")
    for wing, patterns in WINGS.items():
        if any(fnmatch(name, text) or fnmatch(name, f"{text}.*") for text in patterns):
            return wing
    return None


def test_the_core_imports_no_wing() -> None:
    crossing = {
        (module.removeprefix("lewel_bench."), wing)
        for module, names in IMPORTS.items()
        if not is_wing(module)
        for name, late in names
        if not late and (wing := is_wing(name))
    }
    assert not crossing


def test_nobody_imports_a_verb() -> None:
    """Only the command line does, by the name that was requested."""
    verbs = "lewel_bench.harness.verbs."
    assert not [m for m, names in IMPORTS.items() for name, _ in names if name.startswith(verbs)]


def _mentions(path: Path, package: str) -> bool:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return any(name.split(".")[0] == package for name in names)


def test_only_the_command_line_knows_its_parser() -> None:
    harness = PACKAGE / "harness"
    users = {path for path in PACKAGE.rglob("*.py") if _mentions(path, "cyclopts")}
    allowed = {harness / "cli.py", harness / "request.py", *(harness / "verbs").glob("*.py")}
    assert users and users <= allowed
    assert not [path for path in PACKAGE.rglob("*.py") if _mentions(path, "argparse")]


def test_a_verb_is_the_file_of_its_name() -> None:
    files = {path.stem for path in (PACKAGE / "harness" / "verbs").glob("*.py")}
    assert files - {"__init__"} == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_loads_neither_pydantic_nor_torch(verb: str) -> None:
    code = (
        "import sys; from lewel_bench.harness.cli import app; "
        f"app()[{verb!r}]; slow = {{'torch', 'numpy', 'pandas', 'pydantic'}}; "
        "sys.exit(bool(slow & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("folder", ALLOWED)
def test_root_shortcut_leads_to_the_code(folder: str) -> None:
    link = PACKAGE.parent / folder
    assert link.is_symlink() and link.resolve() == PACKAGE / folder


PROTOCOL_TYPES = {"Protocol", "Linear", "Knn", "Semi", "Dense", "Detection", "Segmentation"}


def _asks_for_a_protocols_type(node: ast.AST) -> bool:
    """`isinstance(x, Linear)`, `isinstance(job.protocol, X)`, or `x.runner`, `protocol.name` and
    the like in a comparison."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "type"):
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        return bool(names & (PROTOCOL_TYPES | {"protocol"}))
    if isinstance(node, ast.Compare):
        operands = map(ast.unparse, [node.left, *node.comparators])
        own = ("protocol.name", "protocol.kind", "protocol.label")
        return any(text.endswith((".runner", *own)) for text in operands)
    return isinstance(node, ast.match_case) and bool(PROTOCOL_TYPES & _classes(node.pattern))


def _classes(pattern: ast.pattern) -> set[str]:
    return {ast.unparse(n.cls) for n in ast.walk(pattern) if isinstance(n, ast.MatchClass)}


def test_harness_asks_no_protocol_for_its_type() -> None:
    """A protocol answers for itself, so a new type needs no change in the harness."""
    asked = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted((PACKAGE / "harness").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if _asks_for_a_protocols_type(node)
    ]
    assert not asked


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(job.protocol, X)",
        "isinstance(p, Linear | Semi)",
        "isinstance(p, dense.Detection)",
        "p.runner == 'knn'",
        "'knn' != job.protocol.runner",
        "self.protocol.name in names",
    ],
)
def test_a_question_for_the_type_is_recognised(code: str) -> None:
    assert any(map(_asks_for_a_protocols_type, ast.walk(ast.parse(code))))


def test_only_view_imports_rich() -> None:
    users = [p for p in PACKAGE.rglob("*.py") if "rich" in p.read_text() and _uses_rich(p)]
    assert users == [PACKAGE / "harness" / "view.py"]


def _uses_rich(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
            return True
    return False


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "methods"],
        ["ls", "recipes"],
        ["ls", "protocols"],
        ["ls", "conflicts"],
        ["ls", "checkpoints"],
        ["status"],
        ["table", "all", "--suite", "shapes"],
        ["table", "1", "--format", "json"],
        ["table", "2", "--format", "long"],
        ["explain", "table1:lewel_m:200:top1"],
        ["run", "--suite", "shapes", "--method", "lewel_m", "--epochs", "200", "--dry-run"],
    ],
)
def test_quick_commands_import_neither_torch_nor_pandas(
    arguments: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys; from lewel_bench.harness.cli import main; "
        f"code = main({arguments!r}); slow = {{'torch', 'numpy', 'pandas'}} & sys.modules.keys(); "
        "sys.exit(3 if slow else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_checking_data_does_not_import_torch() -> None:
    """So that a login node submits at once."""
    modules = (
        "harness.plan.data_check",
        "harness.plan.contents",
        "evals.splits",
        "harness.cluster",
    )
    checks = (
        "evals.detection.annotation_check",
        "evals.segmentation.mask_check",
        "evals.segmentation.labelled_images",
        "pretrain.shapes",
    )
    names = ", ".join(f"lewel_bench.{name}" for name in (*modules, *checks))
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wheel_holds_every_file_that_is_no_module() -> None:
    configured = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    packed = {
        path
        for package, patterns in configured["package-data"].items()
        for pattern in patterns
        for path in (PACKAGE.parent / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in (PACKAGE.parent / "lewel_bench").rglob("*") if path.is_file()}
    lacking = {p for p in files - packed if p.suffix != ".py" and "__pycache__" not in p.parts}
    assert packed and not lacking


# Too vague to search for: a name says what it holds
VAGUE = {
    *("one", "found", "said", "beside", "gone", "apart"),
    *("held", "there", "ours", "several", "item", "thing"),
}


def _defined(node: ast.AST) -> set[str]:
    """The names that a node defines."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return {node.attr}
    return {node.arg} if isinstance(node, ast.arg) else set()


def test_names_say_what_they_hold() -> None:
    vague = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {name}"  # type: ignore[attr-defined]
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _defined(node)
        if name.strip("_") in VAGUE or path.stem in VAGUE
    }
    assert not vague


def test_what_has_a_name_is_found_by_it() -> None:
    """Methods, tables and figures are files of their names; recipes and protocols hold theirs."""
    folders = {
        "pretrain/methods/{}.py": METHODS,
        "results/tables/{}.toml": table.TABLES,
        "results/figures/{}.toml": figure.FIGURES,
        "harness/verbs/{}.py": VERBS,
    }
    for pattern, names in folders.items():
        assert all((PACKAGE / pattern.format(name)).is_file() for name in names), pattern
    for entries in (RECIPES, PROTOCOLS):
        assert all(name == entry.name for name, entry in entries.items())
