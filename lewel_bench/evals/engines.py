"""Which engines of detection and segmentation work here, and what to do about the others.

An engine is asked for in the interpreter that would run it, this one or another, by importing it
there in a process of its own: only that shows half an installation, a folder or a distribution of
the same name, or a torchvision built for another torch.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lewel_bench import pip_install
from lewel_bench.evals import interpreter_facts, other_interpreter
from lewel_bench.value import unknown

Facts = Mapping[str, Any]  # of interpreter_facts.facts
Ask = Callable[[str, str], Facts]  # engine, interpreter
DETECTRON2 = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
ONEDL = ("onedl-mmsegmentation", "onedl-mmcv", "onedl-mmengine")
PATIENCE_S = 300  # for an import from a slow disk

OURS = ("numpy", "PIL", "simplejpeg", "pydantic", "safetensors", "torch", "torchvision")
MODULES = {
    "native": (*OURS, "faster_coco_eval", "cv2"),
    "detectron2": (
        *OURS, "faster_coco_eval", "detectron2", "fvcore", "iopath", "omegaconf", "pycocotools",
        "detectron2.modeling", "detectron2.engine", "detectron2.evaluation",
    ),
    "mmseg": (*OURS, "mmseg", "mmengine", "mmcv", "mmseg.models", "mmseg.datasets"),
}  # fmt: skip
SHOWN = {
    "native": ("torch", "torchvision", "faster_coco_eval"),
    "detectron2": ("detectron2", "torch", "torchvision"),
    "mmseg": ("mmseg", "mmcv", "mmengine", "torch"),
}
# the distributions that may install an engine's own packages
OWNERS: dict[str, dict[str, tuple[str, ...]]] = {
    "native": {},
    "detectron2": {"detectron2": ("detectron2",)},
    "mmseg": {
        "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
        "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
        "mmengine": ("onedl-mmengine", "mmengine", "mmengine-lite"),
    },
}
INSTALL = {
    "native": pip_install(),
    "detectron2": f"install detectron2 at commit 02b5c4e with build isolation off, see {DETECTRON2}"
    f" (its own requirements: {pip_install('det')})",
    "mmseg": pip_install("seg"),
}


@dataclass(frozen=True)
class Finding:
    """Whether an engine works in an interpreter: `text` has versions or what is wrong, `advice`
    what to do, notes what is unusual."""

    engine: str
    works: bool
    text: str
    advice: str = ""
    notes: tuple[str, ...] = ()


def survey(pythons: Mapping[str, str], ask: Ask | None = None) -> list[Finding]:
    """What is found of every engine; `pythons` are the site file's interpreters by engine."""
    return [find(engine, pythons, ask) for engine in MODULES]


def require(engine: str, pythons: Mapping[str, str], ask: Ask | None = None) -> Finding:
    """What is found of an engine that works. Raises ValueError in one line when it does not."""
    finding = find(engine, pythons, ask)
    if not finding.works:
        message = f"engine {engine} does not work: {finding.text}."
        raise ValueError(f"{message} {_sentence(finding.advice)}")
    return finding


def find(engine: str, pythons: Mapping[str, str], ask: Ask | None = None) -> Finding:
    """What is found of one engine. Raises ValueError for a name that is none, here or in
    `pythons`."""
    for name in (engine, *pythons):
        if name not in MODULES:
            raise ValueError(unknown("engine", name, MODULES))
    python = pythons.get(engine, sys.executable)
    if engine == "native" and engine in pythons:
        raise ValueError(
            "the native engine always runs in lewel-bench's own Python: remove it from [engines]"
        )
    if not Path(python).is_file():
        text = f"interpreter {python} does not exist"
        return Finding(engine, False, text, "correct [engines] in the site file")
    try:
        facts = (ask or _ask)(engine, python)
    except ValueError as error:
        return Finding(engine, False, str(error), "correct [engines] in the site file")
    return judge(engine, facts, other=python != sys.executable)


def judge(engine: str, facts: Facts, *, other: bool = False) -> Finding:
    """What `facts` of an interpreter say about an engine; `other`: it is not this one."""
    where = f" in {facts['executable']}" if other else ""
    version = tuple(int(part) for part in facts["python"].split(".")[:2])
    if version < (3, 11):
        text = f"{facts['executable']} is Python {facts['python']}"
        return Finding(engine, False, text, "use an environment of Python 3.11 or later")
    problem = _shadowed(engine, facts) or _pair(facts) or _broken(engine, facts)
    if problem is not None:
        return Finding(engine, False, problem[0] + where, problem[1])
    shown = [f"{name} {_version(name, facts)}" for name in SHOWN[engine]]
    return Finding(engine, True, ", ".join(shown) + where, notes=tuple(_notes(engine, facts)))


def _shadowed(engine: str, facts: Facts) -> tuple[str, str] | None:
    """Two distributions with one name, families that do not fit, or a folder of that name."""
    owners: Mapping[str, list[list[str]]] = facts["owners"]
    for top, allowed in OWNERS[engine].items():
        names = [name for name, _ in owners.get(top, [])]
        shown = " and ".join(f"{n} {v}" for n, v in owners.get(top, []))
        if len(names) > 1:
            return (
                f"two distributions install the package {top}: {shown}: its files are a mixture",
                f"pip uninstall {' '.join(names)}, then {INSTALL[engine]}",
            )
        if names and names[0] not in allowed:
            return (
                f"{top} is from the distribution {shown}, not from {' or '.join(allowed)}",
                f"pip uninstall {names[0]}, then {INSTALL[engine]}",
            )
        module = facts["modules"].get(top)
        if module and module["error"] is None and module["file"] is None:
            return (
                f"not installed: the name {top} leads to the folder {module['folder']}, which has "
                "no code of that name",
                INSTALL[engine],
            )
        home = facts["homes"].get(top)
        if module and module["file"] and home and module["file"] != home:
            return (
                f"the name {top} leads to {module['file']}, which hides the installed {home}",
                "run in another folder, or remove that one from PYTHONPATH",
            )
    if engine == "mmseg":
        return _mixed(owners)
    return None


def _mixed(owners: Mapping[str, list[list[str]]]) -> tuple[str, str] | None:
    """onedl's packages beside the original ones, whose names they share."""
    names = {name for top in OWNERS["mmseg"] for name, _ in owners.get(top, [])}
    onedl, original = sorted(names & set(ONEDL)), sorted(names - set(ONEDL))
    if onedl and original:
        return (
            f"{' and '.join(onedl)} beside {' and '.join(original)}, which are another family",
            f"pip uninstall {' '.join([*onedl, *original])}, then {INSTALL['mmseg']}",
        )
    return None


def _pair(facts: Facts) -> tuple[str, str] | None:
    """A torch and a torchvision that were not built for each other."""
    vision, torch = facts["modules"].get("torchvision"), facts["modules"].get("torch")
    if vision is None or torch is None or torch["error"] is not None:
        return None
    error = vision["error"] or facts["pair"]["error"]
    if error is None or vision.get("missing") == "torchvision":
        return None
    owner = dict(facts["owners"].get("torchvision", []))
    wants = facts["pair"]["wants"]
    asks = f", which asks for {wants}," if wants else ""
    version = owner.get("torchvision", vision["version"])
    return (
        f"torchvision {version}{asks} does not fit torch {torch['version']} ({error})",
        "install a matching pair in one command: pip install --upgrade torch torchvision",
    )


def _broken(engine: str, facts: Facts) -> tuple[str, str] | None:
    """A module that is missing or does not import."""
    for name, module in facts["modules"].items():
        if module["error"] is None:
            continue
        missing = module.get("missing")
        if missing == engine == name:
            return f"{engine} is not installed", INSTALL[engine]
        if missing and name in MODULES["native"]:
            return f"{missing} is missing, which lewel-bench needs", f"{pip_install()} there"
        own = set(OWNERS[engine])
        if name.split(".")[0] in own or missing in own:
            what = f"{missing} is missing" if missing else f"{name} does not import"
            why = "" if missing else f" ({module['error']}, {module['file']})"
            return f"half installed: {what}{why}", INSTALL[engine]
        if missing:
            return f"half installed: {missing} is missing", INSTALL[engine]
        return f"{name} does not import ({module['error']})", INSTALL[engine]
    return None


def _notes(engine: str, facts: Facts) -> list[str]:
    return [
        f"{top} is from {facts['modules'][top]['file']}, of no installed distribution"
        for top in OWNERS[engine]
        if top in facts["modules"] and not facts["owners"].get(top)
    ]


def _version(name: str, facts: Facts) -> str:
    owned = facts["owners"].get(name)
    if owned and owned[0][0].startswith("onedl-"):
        return f"{owned[0][1]} ({owned[0][0]})"
    version = facts["modules"][name]["version"]
    return str(version or (owned[0][1] if owned else "of unknown version"))


def _sentence(text: str) -> str:
    """The advice as a sentence; a command keeps its case."""
    return f"Run: {text}" if text.startswith("pip ") else text[:1].upper() + text[1:]


@cache
def _ask(engine: str, python: str) -> Facts:
    """The facts of an interpreter. Raises ValueError where it does not answer."""
    command = [
        python,
        "-c",
        Path(interpreter_facts.__file__).read_text(encoding="utf-8"),
        *MODULES[engine],
    ]
    here = python == sys.executable
    with nullcontext() if here else other_interpreter.environment() as variables:
        try:
            done = subprocess.run(
                command, env=variables, capture_output=True, text=True, timeout=PATIENCE_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ValueError(f"{python} does not answer: {error}") from None
    try:
        facts: Facts = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ValueError(f"{python} does not run as a Python interpreter: {last[0]}") from None
    return facts
