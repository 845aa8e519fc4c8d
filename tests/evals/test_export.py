"""Every format of `export`: what its reader makes of the file is the same network, bit for bit."""

import io
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from lewel_bench.evals import export
from lewel_bench.pretrain import backbone
from lewel_bench.pretrain.backbone import ResNet
from lewel_bench.pretrain.recipe import Backbone

R50, R18 = Backbone(), Backbone(arch="resnet18")
SMALL = Backbone(arch="resnet18", stem="small", width=16)
IMAGES = torch.linspace(-2, 2, 2 * 3 * 64 * 64).view(2, 3, 64, 64)


def network(spec: Backbone) -> ResNet:
    """Random weights with batch-norm statistics that matter."""
    torch.manual_seed(3)
    net = backbone.build(spec)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.bias):
                value.data.normal_(0, 0.1)
            for value in (module.running_var, module.weight):
                value.data.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return net.eval()


def written(tmp_path: Path, to: str, spec: Backbone) -> tuple[Path, ResNet]:
    net = network(spec)
    path = tmp_path / f"out{export.FORMATS[to].suffix}"
    path.write_bytes(export.write(to, net.state_dict(), spec))
    return path, net


@torch.no_grad()
def same(theirs: nn.Module, net: ResNet) -> bool:
    """Whether pooled features are equal bit for bit."""
    return torch.equal(theirs.eval()(IMAGES), net(IMAGES).mean((2, 3)))


@pytest.mark.parametrize("spec", [R50, R18], ids=lambda s: s.arch)
def test_torchvision_reads_it(spec: Backbone, tmp_path: Path) -> None:
    path, net = written(tmp_path, "torchvision", spec)
    theirs = getattr(torchvision.models, spec.arch)()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    assert same(theirs, net)


def test_timm_reads_it(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    path, net = written(tmp_path, "timm", R50)
    assert same(timm.create_model("resnet50", num_classes=0, checkpoint_path=str(path)), net)


@pytest.mark.parametrize("spec", [R50, SMALL], ids=lambda s: s.arch)
def test_safetensors_hold_every_backbone(spec: Backbone, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path, net = written(tmp_path, "safetensors", spec)
    again = backbone.build(spec).eval()
    again.load_state_dict(load_file(path))
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES))
    assert export.write("safetensors", net.state_dict(), spec) == path.read_bytes()


def test_mmseg_reads_it(tmp_path: Path) -> None:
    """Into a whole segmenter: only its new heads are missing, nothing is left over."""
    pytest.importorskip("mmseg")
    from mmengine.runner import load_checkpoint
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    path, net = written(tmp_path, "mmseg", R50)
    head = {"type": "FCNHead", "in_channels": 2048, "channels": 8, "num_classes": 3}
    loss = {"type": "CrossEntropyLoss"}
    plain = {"type": "BN"}
    segmenter = MODELS.build(
        {
            "type": "EncoderDecoder",
            "backbone": {"type": "ResNet", "depth": 50, "style": "pytorch", "norm_cfg": plain,
                         "stem_channels": 64, "base_channels": 64},
            "decode_head": {**head, "norm_cfg": plain, "loss_decode": loss, "in_index": 3},
        }
    )  # fmt: skip
    state = torch.load(path, weights_only=True)["state_dict"]
    missing, unexpected = segmenter.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith("decode_head.") for key in missing)
    load_checkpoint(segmenter, str(path), map_location="cpu")
    segmenter.eval()
    with torch.no_grad():
        assert torch.equal(segmenter.backbone(IMAGES)[-1], net(IMAGES))


@pytest.mark.parametrize("model", ["c4", "fpn"])
@pytest.mark.parametrize("spec", [R50, R18], ids=lambda s: s.arch)
def test_detectron2_reads_it(spec: Backbone, model: str, tmp_path: Path) -> None:
    """By its own checkpointer and names, into a whole detector, with the settings of the card."""
    pytest.importorskip("detectron2")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    path, net = written(tmp_path, "detectron2", spec)
    cfg = get_cfg()
    if model == "fpn":
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    elif spec is R18:
        pytest.skip("detectron2's C4 head is for bottlenecks")
    how = export.FORMATS["detectron2"].how(spec).format(out=path)
    exec(how.replace('"SyncBN"', '"BN"'), {"cfg": cfg})
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    detector = build_model(cfg)
    given = []
    load = detector.load_state_dict
    detector.load_state_dict = lambda *a, **k: given.append(load(*a, **k)) or given[-1]
    DetectionCheckpointer(detector).load(cfg.MODEL.WEIGHTS)
    ((missing, unexpected),) = given
    new = ("proposal_generator.", "roi_heads.box_", "backbone.fpn_", "pixel_")
    assert not unexpected and all(key.startswith(new) for key in missing)
    detector.eval()
    with torch.no_grad():
        if model == "fpn":
            result = detector.backbone.bottom_up(IMAGES)["res5"]
        else:
            result = detector.roi_heads.res5(detector.backbone(IMAGES)["res4"])
        assert torch.equal(result, net(IMAGES))


def test_detectron2_s_file_holds_tensors_only() -> None:
    file = io.BytesIO(export.write("detectron2", network(R18).state_dict(), R18))
    content = torch.load(file, weights_only=True)
    assert set(content) == {"model", "__author__", "matching_heuristics"}
    assert {type(value).__name__ for value in content["model"].values()} == {"Tensor"}


def test_detectron2_has_basic_blocks_of_one_width_only() -> None:
    narrow = Backbone(arch="resnet18", stem="imagenet", width=32)
    with pytest.raises(ValueError, match="detectron2 has no resnet18 of stem imagenet and width"):
        export.write("detectron2", network(narrow).state_dict(), narrow)


@pytest.mark.parametrize("to", ["torchvision", "timm", "detectron2", "mmseg"])
def test_a_network_that_the_reader_lacks_is_refused(to: str) -> None:
    with pytest.raises(ValueError, match=f"{to} has no resnet18 of stem small and width 16: --to"):
        export.write(to, network(SMALL).state_dict(), SMALL)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"those of a resnet18 .* not of a resnet50"):
        export.write("mmseg", network(R18).state_dict(), R50)
