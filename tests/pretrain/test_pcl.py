"""PCL's loss in closed form, its clusters as state, and both against the authors' code."""

import dataclasses
import random
import sys
from types import SimpleNamespace

import numpy as np
import official
import pytest
import torch
import torchvision
from torch import nn

from lewel_bench.pretrain import methods
from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.parts.kmeans import concentration, kmeans
from lewel_bench.pretrain.parts.losses import unit
from lewel_bench.pretrain.parts.prototypes import proto_nce
from lewel_bench.pretrain.recipe import Backbone, Ema, Optimizer, Recipe

B, N, DIM = 4, 30, 8


def pcl(**args):
    recipe = Recipe(
        name="test", label="test", source="test", method="pcl",
        args={"dim": DIM, "hidden": 512, "queue": 12, "clusters": "6,9", "warmup": 1, **args},
        backbone=Backbone(arch="resnet18"), epochs=2, batch=B, augment="moco_v2",
        optimizer=Optimizer(name="sgd", lr=0.1), ema=Ema(start=0.9),
    )  # fmt: skip
    return methods.build(recipe, seed=0, images=N).double().train()


def batch(epoch=1):
    nothing = torch.zeros(2, B)
    index = torch.tensor([20, 3, 11, 6])
    pair = official.views(48, B)
    return Views(pair, index, index, nothing[..., None].expand(2, B, 4), nothing > 0, epoch)


class Images:
    """A training set of noise."""

    def __len__(self):
        return N

    def features(self, encode):
        with torch.no_grad():
            return encode(official.noise("images", N, 3, 48, 48))


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_loss_is_equation_11_written_out():
    torch.manual_seed(0)
    v, C = unit(torch.randn(3, DIM).double()), unit(torch.randn(7, DIM).double())
    phi, owner = torch.rand(7).double() + 0.1, torch.tensor([2, 0, 2])
    negatives = torch.tensor([2, 5, 1])
    expected = 0.0
    for i in range(3):
        own = owner[i].item()
        positive = torch.exp(v[i] @ C[own] / phi[own])
        others = [j for j in negatives.tolist() if j != own]
        below = sum(torch.exp(v[i] @ C[j] / phi[j]) for j in others)
        expected -= torch.log(positive / (positive + below)) / 3
    close(proto_nce(v, C, phi, owner, negatives), expected)


def test_clusters_are_made_after_the_warm_up_and_belong_to_the_state():
    method = pcl()
    method.before_epoch(0, Images())
    assert all(p.C.abs().max() == 0 for p in method.clusterings)
    training = [m.training for m in method.modules()]
    method.before_epoch(1, Images())
    assert [m.training for m in method.modules()] == training
    features = Images().features(lambda x: unit(method.target.network.eval()(x).z))
    for m, (k, p) in enumerate(zip((6, 9), method.clusterings, strict=True)):
        actual = kmeans(features.numpy(), k, m)
        assert torch.equal(p.owner, torch.from_numpy(actual.owner))
        close(p.C, unit(torch.from_numpy(actual.centroids)).double(), 1e-6)
        close(p.phi, torch.from_numpy(concentration(actual, 0.2)).double(), 1e-6)
    other = pcl()
    other.load_state_dict(method.state_dict())
    views = batch()
    losses = [m.train()(views, m.keys(views, 5), slice(0, B))[0] for m in (method, other)]
    assert torch.equal(*losses)


def test_until_then_it_is_moco():
    method = pcl()
    method.before_epoch(1, Images())
    views = batch(epoch=0)
    loss, shown = method(views, method.keys(views, 0), slice(0, B))
    assert torch.equal(loss.detach(), shown["instance_loss"])
    later = dataclasses.replace(views, epoch=1)
    assert method(later, method.keys(later, 0), slice(0, B))[0] > loss


def test_negative_prototypes_are_drawn_from_seed_and_step():
    method = pcl(negatives=5)
    draws = [method.keys(batch(), step)[1] for step in (1, 2, 1)]
    assert [len(drawn) for drawn in draws[0]] == [5, 5]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert all(len(set(drawn.tolist())) == 5 for drawn in draws[0])


def test_version_1_has_a_linear_head():
    assert isinstance(pcl(head="linear").online.g, nn.Linear)


def need_pcl():
    if official.folder("pcl") is None:
        pytest.skip(f"no official code: ${official.VARIABLE}/pcl is absent")


def test_loss_and_gradients_equal_the_authors_code():
    need_pcl()
    method, views = pcl(), batch()
    method.before_epoch(1, Images())
    for m, prototypes in enumerate(method.clusterings):
        prototypes.owner[views.index] = torch.arange(B) + m  # a prototype for each image
    (builder,) = official.load("pcl", "pcl.builder")
    with official.on_cpu():
        theirs = builder.MoCo(torchvision.models.resnet18, DIM, 12, 0.9, 0.2, mlp=True)
        theirs = theirs.double().train()
        own = method.state_dict()
        rename = {"encoder_q.fc": "online.g", "encoder_k.fc": "target.network.g"}
        rename |= {"encoder_q": "online.backbone", "encoder_k": "target.network.backbone"}
        names = {}
        for name, _ in theirs.named_parameters():
            prefix = next(p for p in rename if name.startswith(p + "."))
            names[name] = rename[prefix] + name.removeprefix(prefix)
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                p.copy_(own[names[name]])
            theirs.queue.copy_(method.queue.keys.T)
        mapping = {
            "im2cluster": [p.owner for p in method.clusterings],
            "centroids": [p.C for p in method.clusterings],
            "density": [p.phi for p in method.clusterings],
        }
        # its sample() no longer takes a set, and wants r prototypes where there are fewer
        builder.sample = lambda names, _: sorted(names)
        out, target, proto_out, proto_target = theirs(
            *views, cluster_result=mapping, index=views.index
        )
    expected = nn.functional.cross_entropy(out, target)
    for logits, labels in zip(proto_out, proto_target, strict=True):
        expected = expected + nn.functional.cross_entropy(logits, labels) / 2
    expected.backward()

    # all clusters that are some image's: those beyond the last are not known to the code
    k, drawn = method.keys(views, 0)
    known = [p.owner.max() + 1 for p in method.clusterings]
    drawn = [d[d < count] for d, count in zip(drawn, known, strict=True)]
    loss, _ = method(views, (k, drawn), slice(0, B))
    loss.backward()
    close(loss, expected, 1e-10)
    gradients = {names[k]: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    largest = max(g.abs().max() for g in gradients.values())
    actual = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    assert actual.keys() == gradients.keys()
    for name, grad in actual.items():
        close(grad / largest, gradients[name] / largest, 1e-10)


def test_clusters_equal_those_of_the_authors_code(monkeypatch):
    need_pcl()
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatConfig", SimpleNamespace, raising=False)
    monkeypatch.setattr(
        faiss, "GpuIndexFlatL2", lambda _, d, __: faiss.IndexFlatL2(d), raising=False
    )
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=iter))
    monkeypatch.setattr(random, "sample", random.sample)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    (main,) = official.load("pcl", "main_pcl")
    features = np.random.default_rng(0).normal(size=(300, DIM)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    args = SimpleNamespace(num_cluster=["7", "20"], temperature=0.2, gpu=0)
    expected = main.run_kmeans(features, args)
    for m, k in enumerate((7, 20)):
        actual = kmeans(features, k, m)
        assert torch.equal(torch.from_numpy(actual.owner), expected["im2cluster"][m])
        close(unit(torch.from_numpy(actual.centroids)), expected["centroids"][m], 1e-6)
        phi = torch.from_numpy(concentration(actual, 0.2))
        close(phi, expected["density"][m], 1e-5)
