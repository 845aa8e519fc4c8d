import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lewel_bench.evals import engines, interpreter_facts
from lewel_bench.evals.engines import Finding

HERE = {"executable": "/env/bin/python", "python": "3.11.7"}
VERSIONS = {
    "torch": "2.15.0",
    "torchvision": "0.30.0",
    "detectron2": "0.6",
    "mmseg": "1.4.2",
    "mmcv": "2.3.6",
    "mmengine": "0.10.12",
    "faster_coco_eval": "1.8.0",
}
OWNERS = {
    "torch": [["torch", "2.15.0"]],
    "torchvision": [["torchvision", "0.30.0"]],
    "detectron2": [["detectron2", "0.6"]],
    "mmseg": [["onedl-mmsegmentation", "1.4.2"]],
    "mmcv": [["onedl-mmcv", "2.3.6"]],
    "mmengine": [["onedl-mmengine", "0.10.12"]],
}


def sound(engine: str) -> dict[str, Any]:
    """An interpreter where everything is as it should be."""
    modules = {
        name: {
            "version": VERSIONS.get(name),
            "file": f"/env/{name}/__init__.py",
            "folder": None,
            "error": None,
        }
        for name in engines.MODULES[engine]
    }
    homes = {name: f"/env/{name}/__init__.py" for name in OWNERS}
    pair = {"wants": "torch==2.15.0", "error": None}
    return {**HERE, "modules": modules, "owners": dict(OWNERS), "homes": homes, "pair": pair}


def broken(engine: str, name: str, error: str, missing: str | None = None) -> dict[str, Any]:
    """An interpreter where the import of one module fails; later ones were not tried."""
    facts = sound(engine)
    names = list(facts["modules"])
    for later in names[names.index(name) :]:
        del facts["modules"][later]
    file = None if missing == name else f"/env/{name.split('.')[0]}/__init__.py"
    entry = {"version": None, "file": file, "error": error, "missing": missing}
    facts["modules"][name] = entry
    return facts


def judged(engine: str, facts: dict[str, Any]) -> Finding:
    finding = engines.judge(engine, facts)
    assert not finding.works
    assert "\n" not in finding.text + finding.advice
    return finding


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ("native", "torch 2.15.0, torchvision 0.30.0, faster_coco_eval 1.8.0"),
        ("detectron2", "detectron2 0.6, torch 2.15.0, torchvision 0.30.0"),
        (
            "mmseg",
            "mmseg 1.4.2 (onedl-mmsegmentation), mmcv 2.3.6 (onedl-mmcv), mmengine 0.10.12 "
            "(onedl-mmengine), torch 2.15.0",
        ),
    ],
)
def test_what_works_is_said_with_versions(engine: str, text: str) -> None:
    assert engines.judge(engine, sound(engine)) == Finding(engine, True, text)


def test_another_interpreter_is_named() -> None:
    finding = engines.judge("detectron2", sound("detectron2"), other=True)
    assert finding.works and finding.text.endswith(" in /env/bin/python")


@pytest.mark.parametrize("engine", ["detectron2", "mmseg"])
def test_not_installed(engine: str) -> None:
    facts = broken(engine, engine, f"ModuleNotFoundError: No module named {engine!r}", engine)
    facts["owners"] = {k: OWNERS[k] for k in ("torch", "torchvision")}
    finding = judged(engine, facts)
    assert finding.text == f"{engine} is not installed"
    assert finding.advice == engines.INSTALL[engine]


@pytest.mark.parametrize(
    ("engine", "name", "missing", "text"),
    [
        ("detectron2", "fvcore", "fvcore", "half installed: fvcore is missing"),
        ("detectron2", "detectron2", "omegaconf", "half installed: omegaconf is missing"),
        ("mmseg", "mmseg", "mmcv", "half installed: mmcv is missing"),
        ("mmseg", "mmseg.models", "mmcv._ext", "half installed: mmcv._ext is missing"),
        ("native", "cv2", "cv2", "cv2 is missing, which lewel-bench needs"),
        ("mmseg", "pydantic", "pydantic", "pydantic is missing, which lewel-bench needs"),
        (
            "detectron2",
            "faster_coco_eval",
            "faster_coco_eval",
            "faster_coco_eval is missing, which",
        ),
    ],
)
def test_half_installed(engine: str, name: str, missing: str, text: str) -> None:
    facts = broken(engine, name, f"ModuleNotFoundError: No module named {missing!r}", missing)
    assert judged(engine, facts).text.startswith(text)


def test_an_import_that_fails_is_quoted() -> None:
    facts = broken("detectron2", "detectron2.engine", "ImportError: _C.so: undefined symbol: x")
    text = judged("detectron2", facts).text
    assert text.startswith("half installed: detectron2.engine does not import (ImportError: _C.so")


@pytest.mark.parametrize("how", ["import", "operator"])
def test_a_wrong_pair_of_torch_and_torchvision_is_named(how: str) -> None:
    error = "RuntimeError: operator torchvision::nms does not exist"
    if how == "import":
        facts = broken("native", "torchvision", error)
    else:
        facts = sound("native")
        facts["pair"]["error"] = error
    facts["modules"]["torch"]["version"] = "2.13.0+cpu"
    finding = judged("native", facts)
    assert finding.text == (
        "torchvision 0.30.0, which asks for torch==2.15.0, does not fit torch 2.13.0+cpu "
        "(RuntimeError: operator torchvision::nms does not exist)"
    )
    assert "pip install --upgrade torch torchvision" in finding.advice


def test_two_distributions_of_one_name() -> None:
    facts = sound("mmseg")
    facts["owners"]["mmseg"] = [["mmsegmentation", "1.2.2"], ["onedl-mmsegmentation", "1.4.2"]]
    finding = judged("mmseg", facts)
    assert "mmsegmentation 1.2.2 and onedl-mmsegmentation 1.4.2" in finding.text
    assert finding.advice.startswith("pip uninstall mmsegmentation onedl-mmsegmentation, then pip")


def test_two_families() -> None:
    facts = sound("mmseg")
    facts["owners"]["mmcv"] = [["mmcv", "2.1.0"]]
    assert "beside mmcv, which are another family" in judged("mmseg", facts).text


def test_original_mmsegmentation_is_accepted() -> None:
    facts = sound("mmseg")
    for top, name in (("mmseg", "mmsegmentation"), ("mmcv", "mmcv"), ("mmengine", "mmengine")):
        facts["owners"][top] = [[name, "1.0"]]
    assert engines.judge("mmseg", facts).works


def test_the_wrong_distribution() -> None:
    facts = sound("detectron2")
    facts["owners"]["detectron2"] = [["geoai-detectron2", "0.4"]]
    finding = judged("detectron2", facts)
    assert "from the distribution geoai-detectron2 0.4, not from detectron2" in finding.text


def test_a_stray_folder() -> None:
    facts = broken("detectron2", "fvcore", "ModuleNotFoundError: …", "fvcore")
    facts["modules"]["detectron2"] |= {"file": None, "folder": "/home/me/detectron2"}
    del facts["owners"]["detectron2"]
    text = judged("detectron2", facts).text
    assert "not installed: the name detectron2 leads to the folder /home/me/detectron2" in text


def test_a_package_that_hides_the_installed_one() -> None:
    facts = sound("mmseg")
    facts["modules"]["mmseg"]["file"] = "/home/me/mmsegmentation/mmseg/__init__.py"
    text = judged("mmseg", facts).text
    assert "leads to /home/me/mmsegmentation/mmseg/__init__.py, which hides the installed" in text


def test_a_package_from_a_path_works_and_is_noted() -> None:
    facts = sound("detectron2")
    del facts["owners"]["detectron2"], facts["homes"]["detectron2"]
    finding = engines.judge("detectron2", facts)
    assert finding.works and "of no installed distribution" in finding.notes[0]


def test_an_old_python() -> None:
    facts = sound("detectron2") | {"python": "3.9.2"}
    assert judged("detectron2", facts).text == "/env/bin/python is Python 3.9.2"


def test_require_is_one_line_that_says_what_to_do() -> None:
    facts = broken("mmseg", "mmseg", "ModuleNotFoundError: …", "mmseg")
    with pytest.raises(ValueError) as raised:
        engines.require("mmseg", {}, lambda *_: facts)
    checkout = Path(engines.__file__).parents[2]
    assert str(raised.value) == (
        f"engine mmseg does not work: mmseg is not installed. Run: pip install '{checkout}[seg]'"
    )
    assert engines.require("mmseg", {}, lambda *_: sound("mmseg")).works


def test_unknown_names_and_interpreters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'detectron'. Did you mean 'detectron2'"):
        engines.require("detectron", {})
    with pytest.raises(ValueError, match="unknown engine 'mmsegmentation'"):
        engines.require("native", {"mmsegmentation": sys.executable})
    with pytest.raises(ValueError, match=r"interpreter /none/python does not exist\. Correct"):
        engines.require("detectron2", {"detectron2": "/none/python"})
    with pytest.raises(ValueError, match="native engine always runs in"):
        engines.require("native", {"native": sys.executable})
    liar = tmp_path / "python"
    liar.write_text("#!/bin/sh\necho no python >&2\nexit 3\n")
    liar.chmod(0o755)
    with pytest.raises(ValueError, match="does not run as a Python interpreter: no python"):
        engines.require("detectron2", {"detectron2": str(liar)})


def test_survey_asks_each_interpreter() -> None:
    asked = []

    def ask(engine: str, python: str) -> dict[str, Any]:
        asked.append((engine, python))
        return sound(engine)

    other = str(Path(sys.executable).parent / "python3")
    result = engines.survey({"mmseg": other}, ask)
    assert [f.engine for f in result] == ["native", "detectron2", "mmseg"]
    assert asked == [("native", sys.executable), ("detectron2", sys.executable), ("mmseg", other)]


def test_the_native_engine_works_here() -> None:
    result = engines.require("native", {})
    assert result.works and "torchvision" in result.text


@pytest.mark.parametrize(
    ("engine", "entries", "others"),
    [
        ("native", ("detection.run", "segmentation.run"), ("detectron", "mmseg")),
        ("detectron2", ("detection.detectron",), ()),
        ("mmseg", ("segmentation.mmseg",), ()),
    ],
)
def test_an_engine_is_asked_for_all_that_it_imports(
    engine: str, entries: tuple[str, ...], others: tuple[str, ...]
) -> None:
    todo = {f"lewel_bench.evals.{name}" for name in entries}
    seen: set[str] = set()
    while todo:
        seen |= todo
        own = [name for name in todo if name.startswith("lewel_bench.")]
        todo = {imported for name in own for imported in _imported(name, others)} - seen
    foreign = {name.split(".")[0] for name in seen} - {"lewel_bench", *sys.stdlib_module_names}
    assert "simplejpeg" in foreign
    assert foreign <= {name.split(".")[0] for name in engines.MODULES[engine]}


# A protocol imports what runs it when it runs; an engine's process runs one runner only
PROTOCOL_CLASSES = ("lewel_bench.evals.classification", "lewel_bench.evals.dense")


def _imported(name: str, others: tuple[str, ...]) -> set[str]:
    """What a module of lewel-bench (or the module of a name) imports at any place, without
    `others`."""
    path = (
        Path(interpreter_facts.__file__)
        .parents[1]
        .joinpath(*name.split(".")[1:])
        .with_suffix(".py")
    )
    tree = ast.parse(path.read_text() if path.is_file() else "")
    names: set[str] = set()
    for node in tree.body if name in PROTOCOL_CLASSES else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if not name.split(".")[-1].startswith(others)}


def _probed(folder: Path, *names: str) -> dict[str, Any]:
    code = Path(interpreter_facts.__file__).read_text()
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_probe_sees_folders_files_and_distributions(tmp_path: Path) -> None:
    (tmp_path / "stray").mkdir()
    (tmp_path / "pydantic").mkdir()
    (tmp_path / "pydantic" / "__init__.py").write_text("print('hello')\n__version__ = 'mine'\n")
    (tmp_path / "half.py").write_text("import not_there\n")
    facts = _probed(tmp_path, "stray", "pydantic", "half", "never")
    modules = facts["modules"]
    assert modules["stray"]["file"] is None and modules["stray"]["folder"].endswith("/stray")
    assert modules["pydantic"]["version"] == "mine"
    assert facts["homes"]["pydantic"] != modules["pydantic"]["file"]
    assert facts["owners"]["pydantic"][0][0] == "pydantic"
    assert modules["half"]["missing"] == "not_there" and "never" not in modules
