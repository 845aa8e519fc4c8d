"""Frozen features against torchvision's own network and transforms."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision import models, transforms

from lewel_bench.evals import features
from lewel_bench.pretrain import checkpoint

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


def test_files_that_hold_something_else(file, machine, tmp_path):
    state, _ = checkpoint.read_backbone(file)
    other = tmp_path / "other.safetensors"
    for header, said in (
        ({"arch": "resnet50"}, "does not hold the backbone its header names"),
        ({"arch": "resnet99"}, "does not name a backbone in its header: arch: Input should be"),
        ({"arch": "resnet18", "stem": "cifar"}, "size mismatch"),
    ):
        checkpoint.write_backbone(other, state, header)
        with pytest.raises(ValueError, match=said):
            features.load(other, machine)
    with pytest.raises(ValueError, match="cannot read the backbone"):
        features.load(tmp_path / "absent.safetensors", machine)
