"""Networks of Caffe's style: the stride in the 1x1 convolution, BGR pixels of 0 to 255, norms
without statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lewel_bench.evals import export, weights
from lewel_bench.evals.checkpoints import importer
from lewel_bench.evals.dense import Segmentation
from lewel_bench.evals.detection.model import Detector
from lewel_bench.evals.normalisation import MEAN, STD
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.evals.segmentation.model import Segmenter
from lewel_bench.pretrain import backbone
from lewel_bench.pretrain.recipe import Backbone
from tests.evals.checkpoints import layouts

DEEP = Backbone(arch="resnet50", width=8)
CAFFE = DEEP.model_copy(update={"stride": "1x1"})
IMAGES = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()


def seen(net: torch.nn.Module, spec: Backbone = DEEP) -> Tensor:
    """Features of IMAGES as everything here gives them to a network."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        result: Tensor = net.eval()((IMAGES - mean) / std)
    return result


def absorbed(state: layouts.State) -> dict[str, Any]:
    """By Caffe2's names, without statistics."""
    arrays = layouts.caffe2(state)
    return {key: value for key, value in arrays.items() if not key.endswith(("_rm", "_riv"))}


def read(path: Path) -> tuple[importer.Reading, backbone.ResNet]:
    imported = importer.read(path)
    net = backbone.build(imported.spec)
    net.load_state_dict(dict(imported.state))
    return imported, net


def test_statistics_may_be_absorbed(tmp_path: Path) -> None:
    state = layouts.state(1, DEEP)
    result, _ = read(layouts.write(tmp_path / "R-50.pkl", absorbed(state), "pickle"))
    assert (result.format, result.spec, result.pixels.order) == ("caffe2", CAFFE, "BGR")
    assert torch.equal(result.state["layer3.1.bn2.weight"], state["layer3.1.bn2.weight"])
    assert not result.state["layer3.1.bn2.running_mean"].any()
    assert (result.state["layer3.1.bn2.running_var"] == 1 - 1e-5).all()
    whole = layouts.caffe2(state)
    del whole["res3_0_branch2a_bn_rm"]  # of one norm only
    with pytest.raises(ValueError, match=r"missing: layer2\.0\.bn1\.running_mean"):
        importer.read(layouts.write(tmp_path / "b.pkl", whole, "pickle"))


def test_features_are_those_of_mmseg_s_network_of_that_style(tmp_path: Path) -> None:
    """mmseg's ResNet in Caffe's style on BGR pixels of 0 to 255, less their mean."""
    models = pytest.importorskip("mmseg.models.backbones")
    theirs = models.ResNet(depth=50, stem_channels=8, base_channels=8, style="caffe")
    state = layouts.state(1, DEEP)
    path = layouts.write(tmp_path / "R-50.pkl", layouts.caffe2(state), "pickle")
    named = {k.removeprefix("backbone."): v for k, v in weights.to_mmseg(state, DEEP).items()}
    theirs.load_state_dict(named)
    theirs.eval()
    with torch.no_grad():
        pixels = (IMAGES - torch.tensor(MEAN)[:, None, None]).flip(1)
        expected = theirs(pixels)[-1]
    _, actual = read(path)
    assert (seen(actual) - expected).abs().max() < 1e-5 * expected.abs().max()
    usual = backbone.build(DEEP)
    usual.load_state_dict(actual.state_dict())
    assert (seen(usual) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_features_are_those_of_detectron2_s_network(tmp_path: Path) -> None:
    """Which reads the file by its own names, and has its own defaults for the pixels."""
    pytest.importorskip("detectron2")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    path = layouts.write(tmp_path / "R-50.pkl", absorbed(layouts.state(1, DEEP)), "pickle")
    cfg = get_cfg()
    of = cfg.MODEL.RESNETS
    of.STEM_OUT_CHANNELS, of.WIDTH_PER_GROUP, of.RES2_OUT_CHANNELS = 8, 8, 32
    of.OUT_FEATURES = ["res5"]
    theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    DetectionCheckpointer(theirs).load(str(path))
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    assert cfg.INPUT.FORMAT == "BGR"
    with torch.no_grad():
        expected = theirs.eval()((IMAGES.flip(1) - mean) / std)["res5"]
    _, actual = read(path)
    assert (seen(actual) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("author", ["Caffe2", "Detectron2 Model Zoo"])
def test_a_file_that_does_not_say_its_stride(author: str, tmp_path: Path) -> None:
    arrays = {k: v.numpy() for k, v in layouts.staged(layouts.state(1, DEEP)).items()}
    path = layouts.write(tmp_path / "a.pkl", {"model": arrays, "__author__": author}, "pickle")
    with pytest.raises(ValueError, match="does not say where its network has the stride"):
        importer.read(path)
    assert importer.read(path, "detectron2_caffe").spec == CAFFE
    assert importer.read(path, "detectron2").spec == DEEP


def test_what_is_taken_for_granted_is_said(tmp_path: Path) -> None:
    state = layouts.state(1, DEEP)
    other = layouts.LAYOUTS["detectron2"].content(state, {})
    imported = importer.read(layouts.write(tmp_path / "a.pkl", other, "pickle"))
    assert imported.spec == DEEP and "otherwise --format detectron2_caffe" in imported.guessed
    (tmp_path / "b.pkl").write_bytes(export.write("detectron2", state, DEEP))
    assert not importer.read(tmp_path / "b.pkl").guessed


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_another_mean_is_taken_off(arch: str, tmp_path: Path) -> None:
    """Also at the borders, where zeros stand for it."""
    (tmp_path / "half.toml").write_text(
        'source = "timm, mean and deviation of one half"\nroots = [""]\n'
        'networks = { one = "" }\nstride = "1x1"\n'
        "pixels = { mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }\n"
    )
    spec = Backbone.model_validate({"arch": arch, "width": 8})
    path = layouts.write(tmp_path / "a.pth", layouts.state(1, spec))
    imported = importer.read(path, str(tmp_path / "half.toml"))
    deep = arch == "resnet50"
    half = {"mean": (0.5, 0.5, 0.5), **({"stride": "1x1"} if deep else {})}
    assert imported.spec == spec.model_copy(update=half)
    theirs = backbone.build(spec.model_copy(update={"mean": None, "stride": imported.spec.stride}))
    theirs.load_state_dict(layouts.state(1, spec))
    actual = backbone.build(imported.spec)
    actual.load_state_dict(dict(imported.state))
    with torch.no_grad():
        expected = theirs.eval()((IMAGES / 255 - 0.5) / 0.5)
    assert (seen(actual) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_file_of_ours_keeps_stride_and_mean(tmp_path: Path) -> None:
    spec = CAFFE.model_copy(update={"mean": (0.5, 0.25, 0.125)})
    path = tmp_path / "a.safetensors"
    path.write_bytes(export.write("safetensors", layouts.state(1, spec), spec))
    assert importer.read(path).spec == spec
    for to in set(export.FORMATS) - {"safetensors"}:
        with pytest.raises(ValueError, match=r"stride in its 1x1 .* pixels less \(0\.5"):
            export.write(to, layouts.state(1, spec), spec)


def test_detectors_and_segmenters_take_the_mean_off_themselves() -> None:
    spec = CAFFE.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    protocol = PROTOCOLS["voc12_seg_fcn_d8"]
    assert isinstance(protocol, Segmentation)
    for model in (
        Detector(PROTOCOLS["voc07_det_c4"], spec, 3),
        Segmenter(protocol, spec, 3),
    ):
        assert model.mean.flatten().tolist() == [127.5] * 3
        assert model.backbone.shift is None
        assert model.backbone.layer4[0].conv2.stride == (1, 1)


def test_backbones_are_written_with_every_field() -> None:
    usual = {"arch": "resnet50", "stem": "imagenet", "width": 8, "stride": "3x3", "mean": None}
    assert DEEP.model_dump() == usual
    assert Backbone.model_validate_json(CAFFE.model_dump_json()) == CAFFE
    with pytest.raises(ValueError, match="resnet18 has no bottlenecks"):
        Backbone(arch="resnet18", stride="1x1")
