"""What an interpreter has of an engine's packages; run there by itself, so it imports none of ours.

    python -c "$(cat interpreter_facts.py)" NAME…

Imports the named modules in turn until one fails, then prints one line of JSON: see `facts`.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import warnings
from typing import Any


def facts(names: list[str]) -> dict[str, Any]:
    """What `names` lead to here.

    `modules`: for each its version, file (None: a folder without code) and error (None: it
    imports); `owners`: for each top-level name the distributions that install it, with versions;
    `homes`: the file they install it as; `pair`: what torchvision's distribution asks of torch, and
    why its operators fail, if they do.
    """
    modules: dict[str, Any] = {}
    for name in names:
        modules[name] = module = _import(name)
        if module["error"] is not None:
            break
    tops = {name.split(".")[0] for name in names}
    owners: dict[str, list[list[str]]] = {}
    homes: dict[str, str] = {}
    for top, distributions in importlib.metadata.packages_distributions().items():
        if top in tops:
            owners[top] = sorted([d, importlib.metadata.version(d)] for d in set(distributions))
            homes.update(_home(top, distributions[0]))
    return {
        "executable": sys.executable,
        "python": platform.python_version(),
        "modules": modules,
        "owners": owners,
        "homes": homes,
        "pair": _pair(modules),
    }


def _import(name: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(name)
    except BaseException as error:  # an extension of another build may raise anything
        message = str(error).strip().splitlines() or [""]
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        return {
            "version": None,
            "file": _origin(name),
            "error": f"{type(error).__name__}: {message[0]}",
            "missing": missing,
        }
    file = getattr(module, "__file__", None)
    version = getattr(module, "__version__", None)
    folder = None if file else next(iter(getattr(module, "__path__", [])), None)
    return {
        "version": None if version is None else str(version),
        "file": file and os.path.realpath(file),
        "folder": folder and os.path.abspath(folder),
        "error": None,
    }


def _home(top: str, distribution: str) -> dict[str, str]:
    """Nothing for an editable installation, which lies where it pleases."""
    installed = importlib.metadata.distribution(distribution)
    for file in installed.files or []:
        if str(file) == f"{top}/__init__.py":
            return {top: os.path.realpath(str(installed.locate_file(file)))}
    return {}


def _origin(name: str) -> Any:
    try:
        spec = importlib.util.find_spec(name.split(".")[0])
    except (ImportError, ValueError):
        return None
    return os.path.realpath(spec.origin) if spec and spec.origin else None


def _pair(modules: dict[str, Any]) -> dict[str, Any]:
    wants = error = None
    try:
        required = importlib.metadata.requires("torchvision") or []
        wants = next(
            (r for r in required if r.split()[0].rstrip("=<>!~0123456789.") == "torch"), None
        )
    except importlib.metadata.PackageNotFoundError:
        pass
    if modules.get("torchvision", {}).get("error", "") is None:
        try:
            import torch
            import torchvision

            box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
            torchvision.ops.nms(box, torch.ones(1), 0.5)
        except Exception as failed:
            error = f"{type(failed).__name__}: {(str(failed).splitlines() or [''])[0]}"
    return {"wants": wants, "error": error}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages greet on import
    print(json.dumps(facts(sys.argv[1:])), file=out, flush=True)
