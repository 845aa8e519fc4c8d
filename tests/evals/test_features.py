"""Frozen features against torchvision's own network and transforms."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from torchvision import models, transforms

from lewel_bench.evals import features
from lewel_bench.pretrain import backbone as resnet
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.norm import BatchNorm
from lewel_bench.pretrain.recipe import Backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    net = models.resnet18().eval()
    for module in net.modules():  # statistics that matter
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    net.fc = torch.nn.Identity()
    return net


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("torchvision") / "backbone.safetensors"
    checkpoint.write_backbone(path, theirs.state_dict(), {"arch": "resnet18"})
    return path


def test_features_are_torchvisions(theirs, file, splits, machine):
    chain = transforms.Compose(
        [
            transforms.Resize(36),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = [Image.open(splits.report.root / f).convert("RGB") for f in splits.report.files]
    with torch.no_grad():
        expected = theirs(torch.stack([chain(image) for image in images]))
    net = features.load(file, machine)
    x, labels = features.extract(net, splits.report, size=32, resize=36, machine=machine)
    # the resize may differ by one of 255 levels
    assert float((x - expected).norm() / expected.norm()) < 0.01
    assert labels.tolist() == list(splits.report.labels)
    few = features.extract(
        net, splits.report, size=32, resize=36, machine=replace(machine, micro_batch=5)
    )
    torch.testing.assert_close(few[0], x)


def test_the_checksum_sees_parameters_and_statistics(file, machine):
    net = features.load(file, machine)
    before = features.digest(net)
    assert before == features.digest(features.load(file, machine))
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    net.layer4[1].bn2.running_var[3] += 1e-6
    assert features.digest(net) != before


def test_files_without_a_backbone(file, machine, tmp_path):
    state, _ = checkpoint.read_backbone(file)
    other = tmp_path / "other.safetensors"
    for header, message in (
        ({"arch": "resnet50"}, "does not contain the backbone in its header"),
        ({"arch": "resnet99"}, "has no valid backbone in its header: arch: Input should be"),
        ({"arch": "resnet18", "stem": "cifar"}, "size mismatch"),
    ):
        checkpoint.write_backbone(other, state, header)
        with pytest.raises(ValueError, match=message):
            features.load(other, machine)
    with pytest.raises(ValueError, match="cannot read the backbone"):
        features.load(tmp_path / "absent.safetensors", machine)


def test_the_effective_rank_of_equal_directions_is_their_number():
    torch.manual_seed(0)
    for images, directions, dimension in ((100, 7, 32), (20, 20, 64), (9000, 32, 32)):
        left = torch.linalg.qr(torch.randn(images, directions, dtype=torch.float64))[0]
        right = torch.linalg.qr(torch.randn(dimension, directions, dtype=torch.float64))[0]
        rank = features.effective_rank((5 * left @ right.mT).float())
        assert rank == pytest.approx(directions, rel=1e-3)


def test_the_effective_rank_follows_the_entropy_of_singular_values():
    x = torch.zeros(6, 4)
    x[0, 0], x[1, 1] = 3.0, 1.0  # shares of 3/4 and 1/4
    assert features.effective_rank(x) == pytest.approx(4 / 3**0.75, rel=1e-6)
    assert features.effective_rank(1000 * x) == pytest.approx(features.effective_rank(x))
    assert features.effective_rank(x[:1], x[1:]) == features.effective_rank(x)


def test_features_that_are_alike_have_an_effective_rank_of_one():
    x = torch.randn(1, 32).expand(50, -1)  # not centred: what all share is a direction
    assert features.effective_rank(x) == pytest.approx(1, abs=1e-5)
    assert features.effective_rank(x + 1e-3 * torch.randn(50, 32)) < 1.1
    assert features.effective_rank(torch.zeros(5, 3)) == 0
    assert features.effective_rank(torch.tensor([[1.0, float("nan")], [1.0, 2.0]])) == 0


def test_calibration_takes_the_statistics_of_the_images_and_no_random_number(splits, machine):
    torch.manual_seed(0)
    net = resnet.build(
        Backbone(arch="resnet18", stem="small", width=8), partial(BatchNorm, group=7)
    )
    before, random = features.digest(net.eval()), torch.get_rng_state()
    images = splits.train.take(list(range(0, len(splits.train), 2)))
    copied = features.calibrated(net, images, size=32, resize=36, machine=machine)
    assert features.digest(net) == before and torch.equal(torch.get_rng_state(), random)
    seen = []
    copied.bn1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features.extract(copied, images, size=32, resize=36, machine=machine)
    assert len(images) <= 64 and not copied.training
    torch.testing.assert_close(copied.bn1.running_mean, seen[0].mean((0, 2, 3)))
    torch.testing.assert_close(copied.bn1.running_var, seen[0].transpose(0, 1).flatten(1).var(1))
