"""The backbone against torchvision's."""

import pytest
import torch
import torchvision

from lewel_bench.pretrain.backbone import build
from lewel_bench.pretrain.recipe import Backbone


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_keys_and_shapes_are_torchvisions(arch):
    with torch.device("meta"):
        net = build(Backbone(arch=arch)).state_dict()
        theirs = torchvision.models.get_model(arch).state_dict()
    expected = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in net.items()} == expected


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_features_are_torchvisions(arch):
    theirs = torchvision.models.get_model(arch).double().eval()
    net = build(Backbone(arch=arch)).double().eval()
    net.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    assert torch.allclose(net(x).mean((2, 3)), theirs(x), rtol=1e-12, atol=1e-12)


def test_parameter_counts():
    with torch.device("meta"):
        net = build(Backbone(arch="resnet50"))
    assert sum(p.numel() for p in net.parameters()) == 23_508_032  # methods.md A13.1
    assert net.channels == 2048


@pytest.mark.parametrize(
    ("stem", "pixels", "side"), [("imagenet", 64, 2), ("small", 64, 4), ("cifar", 32, 4)]
)
def test_stem_and_width_give_the_stated_features(stem, pixels, side):
    net = build(Backbone(arch="resnet18", stem=stem, width=8))
    assert net(torch.randn(2, 3, pixels, pixels)).shape == (2, 64, side, side)
    assert net.channels == 64


def test_initialisation_is_kaiming_by_fan_out():
    torch.manual_seed(0)
    net = build(Backbone(arch="resnet50"))
    weight = net.layer3[0].conv2.weight  # (256, 256, 3, 3): std = sqrt(2 / (256·9))
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert weight.mean().abs() < 1e-3
    last = net.layer3[0].bn3
    assert last.weight.eq(1).all() and last.bias.eq(0).all()  # not zero_init_residual
