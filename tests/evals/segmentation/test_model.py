"""The dilated ResNet and the loss, by torchvision and by hand."""

import pytest
import torch
import torchvision
from torch import nn

from lewel_bench.evals.segmentation import model
from lewel_bench.evals.segmentation.model import Segmenter
from lewel_bench.pretrain import backbone, checkpoint
from lewel_bench.pretrain.recipe import Backbone, change
from tests.evals.segmentation.making import TINY


def test_dilated_resnet50_is_torchvisions() -> None:
    torch.manual_seed(0)
    actual = model.dilated(backbone.build(Backbone())).eval()
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    theirs.load_state_dict(actual.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()
    with torch.no_grad():
        assert torch.equal(actual(x).flatten(1), theirs.eval()(x))


@pytest.mark.parametrize(("stem", "stride"), [("imagenet", 8), ("small", 4), ("cifar", 2)])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_output_stride_and_receptive_field(arch: str, stem: str, stride: int) -> None:
    """Without its strides a dilated stage sees what the strided one sees: each kernel's reach."""
    spec = Backbone(arch=arch, stem=stem, width=4)
    net = model.dilated(backbone.build(spec)).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 64, 64)).shape[-1] == 64 // stride
    dilations = [
        m.dilation[0]
        for stage in (net.layer3, net.layer4)
        for block in stage
        for m in (block.conv1, block.conv2)
        if m.kernel_size == (3, 3)
    ]
    if arch == "resnet18":  # a block's second convolution is not dilated, as in mmseg
        assert dilations == [1, 1, 2, 1, 2, 1, 4, 1]
    else:
        assert dilations == [1, 2, 2, 2, 2, 2, 2, 4, 4]


def test_losses_of_uniform_logits() -> None:
    """log C for a labelled pixel, 0 for one without a label, averaged over both."""
    logits = torch.zeros(2, 5, 4, 4)
    labels = torch.full((2, 8, 8), 255)
    labels[:, :2] = 3
    expected = 0.25 * torch.log(torch.tensor(5.0))
    torch.testing.assert_close(model.pixel_loss(logits, labels), expected)


def test_auxiliary_weight_dropout_and_initialisation() -> None:
    spec = Backbone(arch="resnet18", stem="small", width=8)
    protocol = change(TINY, {"head_width": 64})
    net = Segmenter(protocol, spec, 3)
    for head in (net.decode_head, net.auxiliary_head):
        assert abs(float(head.conv_seg.weight.detach().std()) - 0.01) < 0.003
        assert not head.conv_seg.bias.detach().any()
        assert isinstance(head.dropout, nn.Dropout2d) and head.dropout.p == 0.1
    images = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 48, 48), dtype=torch.uint8)
    net.eval()
    losses = net(images, labels)
    net.aux_weight = 0.8
    torch.testing.assert_close(net(images, labels)["aux.loss_ce"], 2 * losses["aux.loss_ce"])
    assert abs(float(losses["decode.loss_ce"].detach()) - 1.0986) < 0.05  # log 3 at the start


def test_weights_of_another_architecture_are_refused(tmp_path) -> None:
    spec = Backbone(arch="resnet18", stem="small", width=8)
    path = tmp_path / "backbone.safetensors"
    checkpoint.write_backbone(path, backbone.build(spec).state_dict(), {"arch": "resnet18"})
    with pytest.raises(ValueError, match=r"backbone.safetensors: the weights are those of a"):
        Segmenter(TINY, Backbone(arch="resnet34", stem="small", width=8), 3).load_backbone(path)
    net = Segmenter(TINY, spec, 3)
    net.load_backbone(path)
    state, _ = checkpoint.read_backbone(path)
    assert all(torch.equal(value, state[key]) for key, value in net.backbone.state_dict().items())
