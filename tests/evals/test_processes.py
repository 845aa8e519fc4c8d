"""Two processes measure what one does."""

from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from lewel_bench.evals import features, linear, semi
from lewel_bench.evals.context import Context
from lewel_bench.pretrain.recipe import change
from lewel_bench.pretrain.report import never, silent
from tests.evals.test_linear import SGD
from tests.evals.test_semi import TINY

LINEAR = change(SGD, {"epochs": 3, "milestones": (2,), "batch": 24})
SEMI = change(TINY, {"epochs": 2, "milestones": (1,)})


def both(backbone, splits, folder, machine):
    def arguments(name):
        context = Context(0, folder / name, machine, silent, never)
        return {"backbone": backbone, "splits": splits, "context": context}

    return (
        linear.run(LINEAR, **arguments("linear")),
        semi.run(SEMI, lr=(0.01, 0.1), **arguments("semi")),
    )


def calibrated_digest(backbone, splits, machine):
    net = features.load(backbone, machine)
    net = features.calibrated(net, splits.train, size=32, resize=36, machine=machine)
    return features.digest(net)


def work(rank, backbone, splits, folder, machine):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    odd = splits.report.take(range(35))
    x, y = features.extract(
        features.load(backbone, machine), odd, size=32, resize=36, machine=machine
    )
    calibrated = calibrated_digest(backbone, splits, machine)
    measured = both(backbone, splits, folder, machine)
    torch.save((measured, x, y, calibrated), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_measure_what_one_does(splits, backbone_file, machine, tmp_path):
    # a group of 16 spans both processes, one of 8 lies within each
    machine = replace(machine, save_every_s=0)
    two = tmp_path / "two"
    two.mkdir()
    multiprocessing.spawn(work, (backbone_file, splits, two, machine), nprocs=2)
    mine = both(backbone_file, splits, tmp_path / "one", machine)
    odd = splits.report.take(range(35))
    net = features.load(backbone_file, machine)
    x, y = features.extract(net, odd, size=32, resize=36, machine=machine)
    for rank in (0, 1):
        theirs, x2, y2, calibrated = torch.load(two / f"{rank}.pt", weights_only=False)
        assert calibrated == calibrated_digest(backbone_file, splits, machine)
        torch.testing.assert_close(x2, x)
        assert torch.equal(y2, y)
        for value, other in zip(mine, theirs, strict=True):
            assert other.chosen == value.chosen
            assert other.extra["select"] == pytest.approx(value.extra["select"], rel=1e-4)
    assert (two / "linear/predictions.npz").exists()
