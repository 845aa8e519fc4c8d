"""`lewel-bench doctor`: what works here, and what to do about what does not."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from lewel_bench import __version__, pip_install
from lewel_bench.harness.jobs.launch import check_writable
from lewel_bench.harness.plan import datasets, site
from lewel_bench.harness.plan.datasets import MissingData, NotConfigured
from lewel_bench.harness.plan.workspace import Workspace

NEEDED_GIB = 5.0  # of disk, for the shapes suite with room to spare
Check = tuple[str, str, str]  # what, "ok" | "warning" | "problem", finding


def doctor(workspace: Workspace, cluster: str | None = None) -> int:
    """Print every check; 2 when one of them is a problem."""
    lines = [*_software()]
    if all(state != "problem" for _, state, _ in lines):  # without torch nothing more can be asked
        lines += [*_engines(workspace), *_machine(workspace)]
    lines += _places(workspace)
    if cluster:
        from lewel_bench.harness import cluster as clusters

        lines += clusters.doctor(workspace.site, workspace.root, cluster)
    width = max(len(what) for what, _, _ in lines)
    for what, state, finding in lines:
        print(f"{state:8} {what:{width}}  {finding}")
    problems = sum(state == "problem" for _, state, _ in lines)
    print("ready" if not problems else f"{problems} problems")
    return 2 if problems else 0


def _software() -> Iterator[Check]:
    yield "lewel-bench", "ok", f"{__version__}, Python {platform.python_version()}"
    for name in ("torch", "torchvision", "simplejpeg", "pillow", "safetensors"):
        try:
            yield name, "ok", importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "problem", f"not installed: {pip_install()}"
    try:
        import torch
        import torchvision
    except Exception as error:  # a mismatched pair fails in many ways; the message is the finding
        advice = "install a matching pair: pip install --upgrade torch torchvision"
        yield "torch + torchvision", "problem", f"do not import together ({error}): {advice}"
        return
    box = torch.tensor([[0.0, 0, 1, 1]])
    kept = len(torchvision.ops.nms(box, torch.ones(1), 0.5))
    state = "ok" if kept == 1 else "problem"
    yield "torch + torchvision", state, "compiled operators of torchvision work"
    try:
        import torch.utils.tensorboard
    except ImportError:
        yield "tensorboard", "ok", f"not installed (optional): {pip_install('tensorboard')}"
    else:
        yield "tensorboard", "ok", importlib.metadata.version("tensorboard")


def _engines(workspace: Workspace) -> Iterator[Check]:
    from lewel_bench.evals import engines

    for engine in engines.survey(workspace.site.pythons):
        # the paper's engines are optional, unless the site file names where they are
        needed = engine.engine == "native" or engine.engine in workspace.site.pythons
        state = "ok" if engine.works else "problem" if needed else "warning"
        advice = f": {engine.advice}" if engine.advice else ""
        yield f"engine {engine.engine}", state, engine.text + advice
        for note in engine.notes:
            yield f"engine {engine.engine}", "warning", note


def _machine(workspace: Workspace) -> Iterator[Check]:
    import torch

    from lewel_bench.harness.jobs.device import NoDevice, device

    try:
        device(workspace.site.machine)
    except NoDevice as error:
        yield "site file: device", "problem", str(error)
    cores = len(os.sched_getaffinity(0))
    yield "CPU", "ok", f"{cores} cores, {torch.get_num_threads()} torch threads"
    if not torch.cuda.is_available():
        yield "GPU", "warning", "none: the shapes suite runs on the CPU, the paper's scale does not"
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = properties.total_memory / 2**30
        yield f"GPU {i}", "ok", f"{properties.name}, {memory:.0f} GiB"


def _places(workspace: Workspace) -> Iterator[Check]:
    yield "site file", "ok", _site_file(workspace.site.path)
    yield _writable(workspace.root)
    for name in datasets.NAMED:
        if name == "shapes":
            continue
        try:
            data = workspace.datasets(name, "")
        except NotConfigured:
            yield f"data {name}", "warning", "not configured"
        except MissingData as missing:
            yield f"data {name}", "warning", str(missing).split(":", 1)[0]
        else:
            yield f"data {name}", "ok", data.root
    for key, text in workspace.site.data.items():
        if not workspace.site.resolve(text).exists():
            yield f"site file: {key}", "problem", f"{workspace.site.resolve(text)} does not exist"


def _site_file(path: Path | None) -> str:
    """Which site file is in force, and why this one."""
    if path is None:
        return "none (defaults): see README, The paper's scale"
    if os.environ.get("LEWEL_BENCH_CONFIG"):
        return f"{path}, named by $LEWEL_BENCH_CONFIG"
    if path == site.own_file().resolve():
        return f"{path}, of your configuration folder"
    return f"{path}, from the working directory upward"


def _writable(root: Path) -> Check:
    existing = next(p for p in (root, *root.parents) if p.exists())
    try:
        check_writable(root, make=False)
    except ValueError as error:
        return "run root", "problem", str(error)
    free = shutil.disk_usage(existing).free / 2**30
    if free > NEEDED_GIB:
        return "run root", "ok", f"{root}, {free:.0f} GiB free"
    advice = "`lewel-bench gc` lists what no cell needs; --root takes another place"
    return "run root", "warning", f"{root}, {free:.1f} GiB free: {advice}"
