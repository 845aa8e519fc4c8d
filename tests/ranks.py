"""Runs a function of a test file as several processes of one gloo group."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing


def run(function: Callable[[int, int], Any], world: int) -> list[Any]:
    """The result of `function(rank, world)`, defined in a test file, on each of `world` ranks."""
    file, name = function.__code__.co_filename, function.__name__
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (world, folder, file, name), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def _rank(rank: int, world: int, folder: str, file: str, name: str) -> None:
    torch.set_num_threads(1)
    # by path: the name pytest gives a test module means nothing in a new process
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        torch.save(getattr(module, name)(rank, world), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
