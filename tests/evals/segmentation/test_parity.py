"""mmseg itself on the same weights, draws and inputs; skipped where it is not installed."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lewel_bench.evals.outcome import DenseSplits
from lewel_bench.evals.segmentation import (
    image_sets,
    labelled_images,
    metric,
    mmseg_config,
    model,
    views,
)
from lewel_bench.evals.segmentation.model import Segmenter
from lewel_bench.evals.segmentation.run import lr_factor
from lewel_bench.pretrain.recipe import Backbone, change
from tests.evals.segmentation.making import TINY, picture

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mmseg") is None,
    reason="mmseg is not installed: pip install '.[seg]'",
)
SPECS = {
    "r50": (Backbone(), 512, 256),
    "r18 small stem": (Backbone(arch="resnet18", stem="small", width=16), 24, 16),
    "r50 in caffe's style": (Backbone(width=8, stride="1x1", mean=(0.5, 0.4, 0.3)), 24, 16),
}
SIDE, COUNT = 41, 21


@pytest.fixture(scope="module")
def theirs_parts():
    from mmseg.utils import register_all_modules

    from lewel_bench.evals.segmentation import mmseg_parts

    register_all_modules(init_default_scope=True)
    return mmseg_parts


def published():
    """The configuration that mmseg ships for the paper's set-up."""
    import mmseg
    from mmengine.config import Config

    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "fcn"
    return Config.fromfile(folder / "fcn_r50-d8_4xb4-20k_voc12aug-512x512.py")


def both(spec, width, aux):
    """Our network and mmseg's with the same weights, in training mode."""
    from mmengine.config import ConfigDict
    from mmseg.registry import MODELS

    protocol = change(TINY, {"head_width": width, "aux_width": aux, "crop": SIDE})
    torch.manual_seed(0)
    actual = Segmenter(protocol, spec, COUNT)
    for module in actual.modules():  # what starts at 0 and 1 hides mistakes
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    torch.nn.init.normal_(actual.decode_head.conv_seg.weight, std=0.2)
    if spec == Backbone():
        settings = published().model
        settings.backbone.type, settings.pretrained = "ResNet", None
        for part in (settings.backbone, settings.decode_head, settings.auxiliary_head):
            part.norm_cfg = {"type": "BN", "requires_grad": True}
        settings.data_preprocessor.size = (SIDE, SIDE)
    else:
        settings = ConfigDict(mmseg_config.model(protocol, spec, COUNT))
    theirs = MODELS.build(settings)
    theirs.load_state_dict(actual.state_dict(), strict=True)
    return actual.train(), theirs.train()


def batch():
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, COUNT, (2, SIDE, SIDE), dtype=np.uint8))
    labels[:, :, -12:] = 255
    return images, labels


def their_losses(theirs, images, labels):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for truth in labels:
        sample = SegDataSample(metainfo={"img_shape": truth.shape, "ori_shape": truth.shape})
        sample.gt_sem_seg = PixelData(data=truth[None].long())
        samples.append(sample)
    bgr = [image.flip(-1).permute(2, 0, 1) for image in images]
    ready = theirs.data_preprocessor({"inputs": bgr, "data_samples": samples}, training=True)
    return theirs.loss(ready["inputs"], ready["data_samples"])


@pytest.mark.parametrize("name", SPECS)
def test_loss_gradients_and_logits_equal(theirs_parts, name: str) -> None:
    actual, theirs = both(*SPECS[name])
    images, labels = batch()
    torch.manual_seed(3)  # dropout
    mine = actual(images, labels)
    sum(mine.values()).backward()
    torch.manual_seed(3)
    losses = their_losses(theirs, images, labels)
    (losses["decode.loss_ce"] + losses["aux.loss_ce"]).backward()
    for key, value in mine.items():
        assert abs(value.item() - losses[key].item()) <= 1e-6
    gradients = dict(theirs.named_parameters())
    for key, p in actual.named_parameters():
        assert p.grad is not None and float(p.grad.abs().max()) > 0, key
        assert float((p.grad - gradients[key].grad).abs().max()) <= 1e-6, key
    actual.eval()
    theirs.eval()
    size = (81, 50)
    sample = {"inputs": [images[0].flip(-1).permute(2, 0, 1)], "data_samples": [_sample(size)]}
    with torch.no_grad():
        result = theirs.test_step(sample)[0]
        logits = actual.logits(images[:1], size)[0]
    assert float((logits - result.seg_logits.data).abs().max()) <= 1e-6 * float(logits.abs().max())
    assert torch.equal(actual.predict(images[0], size).long(), result.pred_sem_seg.data[0])


def _sample(size):
    from mmseg.structures import SegDataSample

    return SegDataSample(metainfo={"img_shape": (SIDE, SIDE), "ori_shape": size})


def test_parity_sees_a_mean_over_labelled_pixels_only(theirs_parts, monkeypatch) -> None:
    actual, theirs = both(*SPECS["r18 small stem"])
    images, labels = batch()
    monkeypatch.setattr(
        model,
        "pixel_loss",
        lambda logits, truth: torch.nn.functional.cross_entropy(
            model._resized(logits, truth.shape[1:]), truth, ignore_index=255
        ),
    )
    torch.manual_seed(3)
    mine = actual(images, labels)
    torch.manual_seed(3)
    losses = their_losses(theirs, images, labels)
    assert abs(mine["decode.loss_ce"].item() - losses["decode.loss_ce"].item()) > 0.1


class Legacy:
    """numpy's global draws, which mmseg takes."""

    random = staticmethod(np.random.random_sample)
    integers = staticmethod(np.random.randint)
    uniform = staticmethod(np.random.uniform)


def pipeline(steps):
    from mmengine.dataset import Compose
    from mmseg.registry import TRANSFORMS

    return Compose([TRANSFORMS.build(step) for step in steps if step["type"] not in LOADING])


LOADING = {"LoadImageFromFile", "LoadAnnotations", "PackSegInputs"}


def results(image, labels):
    size = image.shape[:2]
    return {
        "img": np.ascontiguousarray(image[..., ::-1]),
        "gt_seg_map": labels,
        "img_shape": size,
        "ori_shape": size,
        "seg_fields": ["gt_seg_map"],
    }


@pytest.mark.parametrize("side", [48, 128])
def test_training_views_equal(theirs_parts, side: int) -> None:
    """Crops that are full, and those that are padded; the published pipeline at another size."""
    protocol = change(TINY, {"crop": side, "scale": (160, 100)})
    steps = published().train_dataloader.dataset.datasets[0].pipeline
    for step in steps:
        if step.type == "RandomResize":
            step.scale = protocol.scale
        if step.type == "RandomCrop":
            step.crop_size = (side, side)
        if step.type == "Pad":
            step.size = (side, side)
    theirs = pipeline(steps)
    rng = np.random.default_rng(0)
    for seed in range(60):
        image, labels = picture(rng)
        np.random.seed(seed)
        expected = theirs(results(image, labels))
        after = np.random.random_sample()
        np.random.seed(seed)
        pixels, classes = views.training_view(image, labels, protocol, Legacy())
        assert np.array_equal(pixels, expected["img"][..., ::-1]), seed
        assert np.array_equal(classes, expected["gt_seg_map"]), seed
        assert np.random.random_sample() == after, "another number of draws"


def test_test_views_equal(theirs_parts) -> None:
    protocol = change(TINY, {"scale": (2048, 512)})
    theirs = pipeline(published().val_dataloader.dataset.pipeline)
    rng = np.random.default_rng(0)
    for _ in range(5):
        image, labels = picture(rng)
        expected = theirs(results(image, labels))["img"][..., ::-1]
        assert np.array_equal(views.test_view(image, protocol), expected)


def test_decoding_equals(theirs_parts, splits: DenseSplits) -> None:
    from mmcv.transforms import LoadImageFromFile
    from mmseg.datasets.transforms import LoadAnnotations

    for place in range(len(splits.train)):
        image, labels = labelled_images.pair(splits.train, place)
        files = [str(splits.train.root / file) for file in splits.train.pairs[place]]
        loaded = LoadImageFromFile()({"img_path": files[0]})
        loaded |= {"seg_map_path": files[1], "seg_fields": [], "reduce_zero_label": False}
        loaded = LoadAnnotations()(loaded)
        assert np.array_equal(image, loaded["img"][..., ::-1])
        assert np.array_equal(labels, loaded["gt_seg_map"])


@pytest.mark.parametrize("case", ["plain", "absent", "all background", "no truth"])
def test_miou_equals(theirs_parts, case: str) -> None:
    rng = np.random.default_rng(0)
    classes = tuple(f"c{i}" for i in range(7))
    theirs = theirs_parts.LewelBenchIoU(iou_metrics=["mIoU"])
    theirs.dataset_meta = {"classes": classes}
    total = np.zeros((7, 7), np.int64)
    for _ in range(3):
        shape = tuple(rng.integers(20, 60, 2))
        truth = rng.integers(0, 4 if case == "absent" else 7, shape).astype(np.uint8)
        truth[rng.random(shape) < 0.2] = 255
        given = np.where(rng.random(shape) < 0.5, truth, rng.integers(0, 6, shape)) % 255
        given = np.where(given < 7, given, 0).astype(np.uint8)
        if case == "absent":
            given = np.minimum(given, 4).astype(np.uint8)  # 4: predicted only; 5, 6: nowhere
        if case == "all background":
            given[:] = 0
        if case == "no truth":
            truth[:] = 255
        total += metric.confusion(given, truth, 7)
        theirs.process(
            {},
            [
                {
                    "pred_sem_seg": {"data": torch.from_numpy(given)[None]},
                    "gt_sem_seg": {"data": torch.from_numpy(truth)[None]},
                }
            ],
        )
    expected, mine = theirs.compute_metrics(theirs.results), metric.scores(total, classes)
    for key in ("miou", "pixel_acc", "class_acc"):
        assert mine[key] == pytest.approx(expected[key], abs=1e-5, nan_ok=True), key
    for name in classes:
        assert mine["per_class"][name] == pytest.approx(expected["per_class"][name], abs=1e-5)


def test_rates_equal(theirs_parts) -> None:
    from mmengine.optim import PolyLR

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = PolyLR(optimizer, eta_min=1e-4, power=0.9, begin=0, end=40, by_epoch=False)
    for step in range(40):
        protocol = change(TINY, {"steps": 40})
        rate = 0.02 * lr_factor(protocol, 0.02, step)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_the_rendered_configuration_is_the_published_one(theirs_parts, tmp_path: Path) -> None:
    from lewel_bench.evals.protocols import PROTOCOLS

    protocol = PROTOCOLS["voc12_seg_fcn_d8"]
    theirs = published()
    actual = mmseg_config.training(
        protocol,
        (0.01, 5e-4),
        Backbone(),
        image_sets.CLASSES,
        lists={"train": tmp_path, "report": tmp_path},
        weights=tmp_path,
        folder=tmp_path,
        seed=0,
        world=4,
        cuda=True,
    )
    network, expected = actual["model"], theirs.model.to_dict()
    assert network["backbone"].pop("type") == "ResNet"
    assert expected["backbone"].pop("type") == "ResNetV1c"  # the plain stem is the paper's
    del network["backbone"]["init_cfg"], expected["pretrained"]
    for key in ("stem_channels", "base_channels"):
        assert network["backbone"].pop(key) == 64
    assert network == expected
    dataset = theirs.train_dataloader.dataset.datasets[0]
    assert actual["train_dataloader"]["dataset"]["pipeline"] == dataset.to_dict()["pipeline"]
    assert actual["train_dataloader"]["batch_size"] == theirs.train_dataloader.batch_size
    assert actual["train_dataloader"]["sampler"] == theirs.train_dataloader.sampler
    for key in ("optim_wrapper", "param_scheduler"):
        assert actual[key] == theirs.to_dict()[key]
    tests = mmseg_config.testing(
        actual, protocol, image_sets.CLASSES, pictures=tmp_path, checkpoint=tmp_path
    )
    pipeline = theirs.test_dataloader.to_dict()["dataset"]["pipeline"]
    assert tests["test_dataloader"]["dataset"]["pipeline"] == pipeline
    random.seed()
