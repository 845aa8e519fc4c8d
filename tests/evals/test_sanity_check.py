"""The sanity check on trained, untrained and damaged networks."""

from typing import Any

import pytest
import torch
from torch import nn

from lewel_bench.evals import sanity_check
from lewel_bench.pretrain import backbone
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.recipe import Backbone

SMALL = Backbone(arch="resnet18", stem="small", width=8)


def weights(calibrated: bool = True) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = backbone.build(SMALL)
    if calibrated:
        net.train()(sanity_check.scenes(64, 0, 2)[0])
    return net.state_dict()


@pytest.fixture(scope="module")
def taught() -> dict[str, torch.Tensor]:
    """A small network after some steps on generated scenes that are in no sanity check."""
    torch.manual_seed(0)
    net, head = backbone.build(SMALL), nn.Linear(64, 12)
    x, y = sanity_check.scenes(64, 7, 30)
    parameters = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for _ in range(8):
        for part in torch.randperm(len(x)).split(40):
            loss = nn.functional.cross_entropy(head(net(x[part]).mean((2, 3))), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.state_dict()


def test_a_trained_network_passes(taught: dict[str, Any]) -> None:
    result = sanity_check.check_backbone(taught, SMALL)
    assert result.warnings == ()
    neighbours = result.measurements["knn"]
    assert neighbours["top1"] > neighbours["random_top1"] + 10
    assert result.measurements["features"]["images"] == 16
    assert sanity_check.check_backbone(taught, SMALL) == result  # it draws the same scenes again


def test_random_weights_do_not_beat_random_weights() -> None:
    (doubt,) = sanity_check.check_backbone(weights(), SMALL).warnings
    assert "with random weights of the same architecture" in doubt


def network(state: dict[str, torch.Tensor]) -> ResNet:
    net = backbone.build(SMALL)
    net.load_state_dict(state)
    return net.eval()


def test_statistics_as_at_the_start_are_named() -> None:
    (message,) = sanity_check._statistics(network(weights(calibrated=False)))[1]
    assert "all statistics have their initial values" in message
    assert sanity_check._statistics(network(weights()))[1] == []


def test_statistics_out_of_range_are_named() -> None:
    state = weights()
    wide = {**state, "bn1.running_var": state["bn1.running_var"] * 1e9}
    assert "statistics up to" in sanity_check._statistics(network(wide))[1][0]
    dead = {k: v * 0 if k.startswith("layer4") and "var" in k else v for k, v in state.items()}
    assert "of the channels are constant" in sanity_check._statistics(network(dead))[1][0]
    below = {**state, "bn1.running_var": -state["bn1.running_var"]}
    assert "some variances are negative" in sanity_check._statistics(network(below))[1][0]


def test_features_that_are_alike_are_named() -> None:
    x = torch.ones(16, 8) + 1e-5 * torch.rand(16, 8)
    assert "features of 16 different images are nearly identical" in sanity_check._look(x)[1][0]
    actual, message = sanity_check._look(torch.eye(16))
    assert message == [] and actual["norm"] == 1


def test_features_that_are_no_numbers_are_refused() -> None:
    state = weights()
    state["layer4.0.bn1.running_var"] *= -1
    with pytest.raises(ValueError, match="not finite"):
        sanity_check.check_backbone(state, SMALL)
