"""ReSim's pieces in closed form, and all of it against the authors' code (Tete-Xiao/ReSim)."""

import sys
from math import log
from types import ModuleType

import numpy as np
import official
import pytest
import torch
from torch import nn

from lewel_bench.pretrain import methods
from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.methods.resim import WINDOWS, region_loss
from lewel_bench.pretrain.parts.losses import unit
from lewel_bench.pretrain.parts.regions import contained, corners, moved, pool, windows
from lewel_bench.pretrain.recipe import Backbone, Ema, Optimizer, Recipe

B = 4


def resim(backbone=None, batch=B, **args):
    recipe = Recipe(
        name="test", label="test", source="test", method="resim",
        args={"dim": 8, "hidden": 16, "queue": 12, "fpn": 6, **args},
        backbone=backbone or Backbone(arch="resnet18", stem="small", width=8), epochs=1,
        batch=batch, augment="moco_v2", optimizer=Optimizer(name="sgd", lr=0.1),
        ema=Ema(start=0.9),
    )  # fmt: skip
    return methods.build(recipe, seed=0).double().train()


def batch(size=64, count=B, boxes=None):
    nothing = torch.zeros(count, dtype=torch.long)
    flips = (torch.arange(count) % 2 > 0).expand(2, -1)  # shared by both views
    if boxes is None:
        boxes = 0.4 + 0.15 * official.noise("boxes", 2, count, 4)
    return Views(official.views(size, count), nothing, nothing, boxes, flips)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def loss_of(method, views):
    return method(views, method.keys(views, 0), slice(0, len(views.index)))[0]


def test_region_loss_of_uniform_similarities():
    actual = unit(torch.ones(2, 3, 5, dtype=torch.double))
    negatives = actual[0, :1].repeat(10, 1)
    valid = torch.tensor([[True, False, True], [False, False, False]])
    assert region_loss(actual, actual, negatives, valid, 0.2).item() == pytest.approx(2 * log(11))


def test_the_pyramid_has_the_levels_of_stride_8_and_16():
    z, y, (C4, C3) = resim(Backbone(arch="resnet50", width=8)).online(
        torch.zeros(2, 3, 224, 224).double()
    )
    assert z.shape == (2, 8) and y.shape == (2, 256)
    assert C4.shape == (2, 6, 14, 14) and C3.shape == (2, 6, 28, 28)
    assert [len(windows(*w, F.shape[2])) for w, F in zip(WINDOWS, (C4, C3), strict=True)] == [
        36,
        64,
    ]


def test_equal_views_share_every_window_and_views_apart_none():
    whole = torch.tensor([0.1, 0.1, 0.4, 0.4]).expand(2, B, 4)
    method = resim()
    keys = method.keys(batch(boxes=whole), 0)
    assert all(level.valid.all() and level.shown == level.valid.numel() for level in keys.levels)
    separate = whole.clone()
    separate[1, :, :2] += 0.45
    views = batch(boxes=separate)
    keys = method.keys(views, 0)
    assert not any(level.valid.any() for level in keys.levels)
    loss, _ = method(views, keys, slice(0, B))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.abs().max() == 0 for p in method.online.output.parameters())


def test_negatives_of_c3_come_from_neighbours():
    views, values = batch(), []
    for near in (1, 2, B, 100):
        method = resim(near=near)
        keys = method.keys(views, 0)
        values.append(method(views, keys, slice(0, B))[0].item())
        C4, C3 = keys.levels
        assert len(C4.negatives) == len(C3.negatives) == B
    assert values[0] < values[1] < values[2] == values[3]


# ---- the authors' code ----


def authors():
    if official.folder("resim") is None:
        pytest.skip(f"no official code: ${official.VARIABLE}/resim is absent")
    old = ModuleType("torchvision.models.utils")  # gone since torchvision 0.13
    old.load_state_dict_from_url = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision.models.utils", old)
        return official.load("resim", "moco.builder", "moco.models", "moco.datasets")


def anchors(datasets, size, stride, count, box, other):
    """The authors' windows of one image in pixels of both views, and their labels."""
    first, second, labels = [], [], []
    for i in range(count):
        for j in range(count):
            window = (j * stride, i * stride, j * stride + size, i * stride + size)
            if max(window) >= 224:
                continue
            actual = datasets.ImageFolder.anchor_mapping(window, box, other)
            labels.append(-1 if actual[0] == -1 else 0)
            first.append(window)
            second.append((0, 0, 1, 1) if actual[0] == -1 else actual)
    return np.array(first), np.array(second), np.array(labels)


def test_windows_are_mapped_as_by_the_authors_code():
    *_, datasets = authors()
    views = batch(count=20)
    unflipped = Views(views.x, views.index, views.labels, views.boxes, views.flips & False)
    entry, two = corners(unflipped)
    for size, stride, count, cells in ((48, 32, 6, (3, 2, 14)), (32, 24, 8, (4, 3, 28))):
        inside = windows(*cells).double()
        expected = moved(inside, entry, two)
        for i in range(20):
            box, other = entry[i].tolist(), two[i].tolist()
            first, second, labels = anchors(datasets, size, stride, count, box, other)
            close(224 * inside, torch.from_numpy(first).double(), 1e-4)
            valid = torch.from_numpy(labels == 0)
            assert torch.equal(contained(expected[i]), valid)
            close(224 * expected[i][valid], torch.from_numpy(second).double()[valid], 1e-4)


def test_loss_and_gradients_equal_the_authors_code():
    builder, models, datasets = authors()
    size, count = 224, 2
    backbone = Backbone(arch="resnet50")
    method = resim(backbone, batch=count, dim=16, hidden=2048, fpn=256)
    views = batch(size, count)
    unflipped = Views(views.x, views.index, views.labels, views.boxes, views.flips & False)
    entry, two = corners(unflipped)

    def pooled(F, rois, *_):  # in place of its CUDA kernel: our pooling
        rois = rois.view(len(F), -1, 5)[..., 1:]
        return pool(F, rois / 224).flatten(0, 1)[..., None, None]

    with official.on_cpu():
        theirs = builder.MoCo(models.resnet50, 16, 12, 0.9, 0.2, mlp=True).double().train()
        names = {}
        for name, _ in theirs.named_parameters():
            network, rest = name.split(".", 1)
            actual = {"encoder_q": "online.", "encoder_k": "target.network."}[network]
            for old, new in (
                ("fc.", "g."), ("fpn_lateral5.", "lateral.0."), ("fpn_lateral4.", "lateral.1."),
                ("fpn_lateral3.", "lateral.2."), ("fpn_output4.", "output.0."),
                ("fpn_output3.", "output.1."),
            ):  # fmt: skip
                if rest.startswith(old):
                    names[name] = actual + new + rest.removeprefix(old)
            names.setdefault(name, actual + "backbone." + rest)
        own = method.state_dict()
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                p.copy_(own[names[name]])
            theirs.queue.copy_(method.queue.keys.T)
        levels = []
        for level in ((48, 32, 6), (32, 24, 8)):
            each = [
                anchors(datasets, *level, entry[i].tolist(), two[i].tolist()) for i in range(count)
            ]
            levels.append([torch.from_numpy(np.stack(part)) for part in zip(*each, strict=True)])
        (q4, k4, labels4), (q3, k3, labels3) = levels
        builder.prroi_pool2d = pooled
        (logits, target), logits4, logits3 = theirs(
            *unflipped, q4.double(), k4.double(), q3.double(), k3.double()
        )
    criterion = nn.CrossEntropyLoss(ignore_index=-1)
    expected = criterion(logits, target)
    expected = expected + criterion(logits4, labels4.flatten())
    expected = expected + criterion(logits3, labels3.flatten())
    expected.backward()
    loss = loss_of(method, unflipped)
    loss.backward()
    print(loss.item(), expected.item())
    close(loss, expected, 1e-6)
    gradients = {names[k]: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    actual = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    assert actual.keys() == gradients.keys()
    largest = max(g.abs().max() for g in gradients.values())
    for name, grad in actual.items():
        close(grad / largest, gradients[name] / largest, 1e-6)
