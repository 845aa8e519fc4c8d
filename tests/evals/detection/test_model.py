"""The detectors' parts in closed form, and the whole: losses fall, edges hold, weights load."""

import math

import detection_cases as cases
import numpy as np
import pytest
import torch
import torchvision
from official import noise
from torchvision.ops import box_iou

from lewel_bench.evals.detection import anchors, boxes, heads, masks, roi
from lewel_bench.evals.detection.model import Detections, Detector, Target, parameter_groups
from lewel_bench.evals.detection.rpn import RPN
from lewel_bench.pretrain import backbone, checkpoint
from lewel_bench.pretrain.recipe import Backbone

TINY = Backbone(arch="resnet18", stem="small", width=4)
LIMITS = {
    "rois": 16,
    "rpn_samples": 32,
    "pre_nms": (100, 50),
    "post_nms": (40, 20),
    "head_width": 8,
    "fc_width": 16,
    "anchors": (8, 16, 24, 32, 48),
}


def some_boxes(key, count, side=100.0):
    corners = side * noise(key, count, 2, 2).abs().float().sort(dim=1).values
    return corners.flatten(1)


def test_cell_anchors_have_the_area_and_ratio_asked_for():
    cell = anchors.cell_anchors((32, 100))
    width, height = cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]
    assert (width * height).tolist() == pytest.approx([1024] * 3 + [10000] * 3)
    assert (height / width).tolist() == pytest.approx([0.5, 1, 2] * 2)
    assert torch.equal(cell[:, :2], -cell[:, 2:])
    assert cell[0].tolist() == pytest.approx([-22.627417, -11.3137085, 22.627417, 11.3137085])


def test_anchors_start_at_the_corner_and_go_by_the_stride():
    made = anchors.Anchors([(32,), (64,)], [8, 16])(
        [torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 1)]
    )
    assert [len(a) for a in made] == [2 * 3 * 3, 3]
    centre = (made[0][:, :2] + made[0][:, 2:]).view(2, 3, 3, 2)[:, :, 1] / 2
    expected = [[[0, 0], [8, 0], [16, 0]], [[0, 8], [8, 8], [16, 8]]]
    torch.testing.assert_close(centre, torch.tensor(expected, dtype=torch.float32))


def test_iou_is_torchvisions_and_zero_without_area():
    a, b = some_boxes("a", 20), some_boxes("b", 30)
    torch.testing.assert_close(boxes.iou(a, b), box_iou(a, b), rtol=1e-6, atol=0)
    point = torch.tensor([[5.0, 5, 5, 5]])
    assert boxes.iou(point, point).item() == 0
    actual, two = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]])
    assert boxes.iou(actual, two).item() == pytest.approx(1 / 7)


def test_decode_inverts_encode_and_bounds_growth():
    a, b = some_boxes("a", 40), some_boxes("b", 40)
    a[:, 2:] += 5  # none so narrow that a side would grow more than is allowed
    b[:, 2:] += 5
    deltas = boxes.encode(a, b, (10.0, 5.0))
    torch.testing.assert_close(boxes.decode(deltas[:, None], a, (10.0, 5.0))[:, 0], b)
    grown = boxes.decode(
        torch.tensor([[[0.0, 0, 99, 99]]]), torch.tensor([[0.0, 0, 16, 16]]), (1, 1)
    )
    assert grown[0, 0].tolist() == pytest.approx([-492, -492, 508, 508])


def test_match_keeps_the_best_of_each_object():
    overlap = torch.tensor([[0.8, 0.5, 0.2, 0.0], [0.1, 0.5, 0.1, 0.0], [0.0, 0.0, 0.0, 0.25]])
    owner, hit = boxes.match(overlap, 0.3, 0.7)
    assert owner.tolist() == [0, 0, 0, 2] and hit.tolist() == [1, -1, 0, 0]
    owner, hit = boxes.match(overlap, 0.3, 0.7, keep_best=True)
    assert owner.tolist() == [0, 0, 0, 2]  # the second is object 1's best, but its own is object 0
    assert hit.tolist() == [1, 1, 0, 1]
    owner, hit = boxes.match(torch.zeros(0, 4), 0.3, 0.7, keep_best=True)
    assert owner.tolist() == hit.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("objects", "rest", "expected"), [(9, 90, (4, 12)), (2, 90, (2, 14)), (9, 3, (4, 3))]
)
def test_draw_fills_up_with_background(objects, rest, expected):
    labels = torch.tensor([0] * objects + [-1] * 5 + [7] * rest)
    some, others = boxes.draw(labels, 16, 0.25, background=7)
    assert (len(some.unique()), len(others.unique())) == expected
    assert (labels[some] == 0).all() and (labels[others] == 7).all()


def test_pool_reads_a_ramp_at_the_boxes_places():
    """The mean of a linear function over a box is its value at the centre."""
    ramp = (torch.arange(16) + 0.5).expand(1, 1, 16, 16)  # in cells, true at cell centres
    box = torch.tensor([[20.0, 30, 52, 70]])
    pooled = boxes.pool([ramp], [8], [box], 4)
    assert pooled.shape == (1, 1, 4, 4)
    torch.testing.assert_close(pooled[0, 0, 0], (20 + 32 * (torch.arange(4) + 0.5) / 4) / 8)


def test_pool_takes_the_level_by_size():
    levels = [torch.full((2, 1, 1024 // 2**i, 1024 // 2**i), float(i)) for i in range(4)]
    sides = [5, 56, 111, 112, 223, 224, 447, 448, 3000]
    asked = torch.tensor([[0.0, 0, s, s] for s in sides])
    pooled = boxes.pool(levels, [4, 8, 16, 32], [asked[:4], asked[4:]], 1)[:, 0, 0, 0]
    assert pooled.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_masks_are_drawn_in_their_boxes():
    square = [np.array([10.0, 10, 30, 10, 30, 30, 10, 30])]
    halves = [np.array([0.0, 0, 10, 0, 10, 20, 0, 20]), np.array([10.0, 0, 20, 0, 20, 20, 10, 20])]
    within = np.array([[10, 10, 30, 30], [20, 10, 40, 30], [0, 0, 20, 20]], dtype=np.float32)
    drawn = masks.rasterise([square, square, halves], within, 28)
    assert drawn.dtype == torch.bool and drawn.shape == (3, 28, 28)
    assert drawn[0].all() and drawn[2].all()
    assert drawn[1, :, :14].all() and not drawn[1, :, 14:].any()
    assert masks.rasterise([], within[:0], 14).shape == (0, 14, 14)


def test_pixels_are_pooled_as_detectron2_does():
    """detectron2 1.0, BitMasks.crop_and_resize: the whole masks in one call of RoIAlign."""
    rng = np.random.default_rng(0)
    pixels = (rng.random((6, 50, 70)) < 0.5).astype(np.uint8)
    pixels[0, 10:30, 10:30] = 1
    within = np.array(
        [[10, 10, 30, 30], [0, 0, 70, 50], [3.2, 4.7, 41.9, 20.1], [60.5, 30, 70, 50],
         [0, 0, 0.4, 50], [5, 5, 5.5, 5.2]], dtype=np.float32
    )  # fmt: skip
    drawn = masks.rasterise(list(pixels), within, 14)
    rois = torch.from_numpy(np.concatenate([np.arange(6)[:, None], within], axis=1)).float()
    whole = torch.from_numpy(pixels).float()[:, None]
    shares = torchvision.ops.roi_align(whole, rois, (14, 14), 1.0, 0, aligned=True)[:, 0]
    decided = (shares - 0.5).abs() > 1e-4  # noise has ties
    assert torch.equal(drawn[decided], shares[decided] >= 0.5) and decided.float().mean() > 0.9
    assert drawn[0].all() and 0 < drawn[1].sum() < 196


def test_polygons_and_pixels_are_drawn_together():
    square = [np.array([10.0, 10, 30, 10, 30, 30, 10, 30])]
    pixels = np.zeros((40, 40), np.uint8)
    pixels[10:30, 10:30] = 1
    within = np.array([[0, 0, 40, 40]] * 3, dtype=np.float32)
    drawn = masks.rasterise([pixels, square, pixels], within, 40)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], drawn[1])
    assert drawn[0].sum() == 400


def test_masks_are_drawn_as_pycocotools_draws_them():
    """Polygons in and out of the box, and boxes of almost no area, as in detectron2's recipe."""
    coco = pytest.importorskip("pycocotools.mask")
    objects = [
        [100 * noise(f"p{i}{j}", 5 + i).abs().numpy().repeat(2) for j in range(1 + i % 3)]
        for i in range(30)
    ]
    objects = [[p + 9 * noise("q", len(p)).numpy() for p in of] for of in objects]
    within = some_boxes("within", 30).numpy()
    within[7] = [50, 50, 50.01, 90]
    drawn = masks.rasterise(objects, within, 28)
    for polygons, box, mask in zip(objects, within, drawn, strict=True):
        moved = [np.array(p) for p in polygons]
        for p in moved:
            p[0::2] = (p[0::2] - box[0]) * (28 / max(box[2] - box[0], 0.1))
            p[1::2] = (p[1::2] - box[1]) * (28 / max(box[3] - box[1], 0.1))
        expected = coco.decode(coco.merge(coco.frPyObjects(moved, 28, 28)))
        assert np.array_equal(mask.numpy(), expected.astype(bool))
    assert 0.01 < drawn.float().mean() < 0.99


def test_pasted_masks_fill_their_boxes():
    probs = torch.ones(2, 14, 14)
    probs[1, :, 7:] = 0
    pasted = masks.paste(probs, torch.tensor([[3.0, 2, 11, 9], [-4.0, 0, 4, 8]]), (10, 12))
    expected = torch.zeros(2, 10, 12, dtype=torch.bool)
    expected[0, 2:9, 3:11] = True
    assert torch.equal(pasted[0], expected[0])
    assert not pasted[1].any()  # its right half is what the image shows
    assert masks.paste(probs[:0], torch.zeros(0, 4), (10, 12)).shape == (0, 10, 12)


def test_losses_without_knowledge():
    """Zero scores: log 2 an anchor or pixel, log (K + 1) a region; zero deltas: the targets."""
    rpn = RPN(4, [(16,)], [8], 16, (50, 50), (10, 10)).train()
    for p in rpn.parameters():
        torch.nn.init.zeros_(p)
    truth = [torch.tensor([[10.0, 10, 30, 30]])]
    torch.manual_seed(0)
    proposals, losses = rpn([torch.zeros(1, 4, 12, 12)], [(96, 96)], truth)
    assert losses["loss_rpn_cls"].item() == pytest.approx(math.log(2))
    regions = roi.sample(proposals, truth, [torch.tensor([1])], 8, 3)
    count = sum(len(b) for b in regions.boxes)
    loss = roi.box_losses(torch.zeros(count, 4), torch.zeros(count, 3, 4), regions)
    assert loss["loss_cls"].item() == pytest.approx(math.log(4))
    hit = torch.cat(regions.labels) == 1
    target = boxes.encode(torch.cat(regions.boxes)[hit], regions.targets[hit], (10.0, 5.0))
    assert 0 < hit.sum() <= 2  # a quarter of 8 regions
    assert loss["loss_box_reg"].item() == pytest.approx(target.abs().sum().item() / count)
    logits = torch.zeros(5, 3, 14, 14)
    assert masks.mask_loss(logits, torch.arange(5) % 3, torch.ones(5, 14, 14)) == pytest.approx(
        math.log(2)
    )


def test_detections_are_the_likely_boxes_suppressed_by_class():
    actual = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [50.0, 50, 90, 90]])
    probabilities = torch.tensor([[0.6, 0.1, 0.3], [0.5, 0.04, 0.46], [0.01, 0.9, 0.09]])
    (seen,) = roi.detections(probabilities.log(), torch.zeros(3, 2, 4), [actual], [(80, 80)])
    placed, scores, labels = seen
    assert labels.tolist() == [1, 0, 1]  # the second overlaps a better one of its class by .82
    assert scores.tolist() == pytest.approx([0.9, 0.6, 0.1])
    assert placed.tolist() == [[50, 50, 80, 80], [0, 0, 10, 10], [0, 0, 10, 10]]


def scene(count=3):
    """Two images with bright squares; the square's colour is its class."""
    images, targets = [], []
    for i in range(2):
        image = (60 + 20 * noise(f"dark{i}", 3, 64, 72)).byte()
        corner = (40 * noise(f"squares{i}", count, 2).abs()).floor()
        actual = torch.cat([corner, corner + 18], 1).float()
        for j, (x, y, *_) in enumerate(actual.int().tolist()):
            image[j % 3, y : y + 18, x : x + 18] = 230
        shapes = [[b[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for b in actual]
        images.append(image[:, : 64 - 8 * i])
        targets.append(Target(actual, torch.arange(count) % 3, shapes))
    return images, targets


def detector(model="c4", with_masks=True, spec=TINY):
    torch.manual_seed(0)
    return Detector(cases.protocol(model, with_masks, **LIMITS), spec, classes=3)


@pytest.mark.parametrize("stem", ["small", "cifar", "imagenet"])
@pytest.mark.parametrize("model", ["c4", "fpn"])
def test_losses_fall_and_everything_learns(model, stem):
    net = detector(model, spec=Backbone(arch="resnet18", stem=stem, width=4))
    optimizer = torch.optim.SGD(parameter_groups(net, 0.02, 1e-4), momentum=0.9)
    images, targets = scene()
    history = []
    for _ in range(12):
        losses = net(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        history.append({k: v.item() for k, v in losses.items()})
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
    assert history[0].keys() == {
        "loss_rpn_cls",
        "loss_rpn_loc",
        "loss_cls",
        "loss_box_reg",
        "loss_mask",
    }
    for name in ("loss_rpn_cls", "loss_cls", "loss_mask"):  # box_reg grows as proposals improve
        assert history[-1][name] < 0.99 * history[0][name]
    assert history[-1]["loss_cls"] < 0.8 * history[0]["loss_cls"]
    net.eval()
    detections = net.detect(images, [(128, 144), (100, 100)])
    assert all(isinstance(f, Detections) and len(f.boxes) == len(f.masks) for f in detections)
    assert detections[0].masks.shape[1:] == (128, 144)
    assert detections[1].boxes.numel() == 0 or detections[1].boxes.max() <= 100


@pytest.mark.parametrize("model", ["c4", "fpn"])
def test_images_without_objects_have_losses_and_gradients(model):
    net = detector(model)
    images, targets = scene()
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = net(images, [none, none])
    assert losses["loss_box_reg"] == losses["loss_mask"] == losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net(images, [none, targets[1]])["loss_mask"] > 0


@pytest.mark.parametrize("model", ["c4", "fpn"])
def test_weights_that_are_not_finite_show_in_the_losses(model):
    net = detector(model)
    with torch.no_grad():
        net.backbone.conv1.weight[0, 0, 0, 0] = float("nan")
    assert not torch.isfinite(sum(net(*scene()).values()))
    net.eval()
    assert [len(f.boxes) for f in net.detect(scene()[0], [(64, 72), (56, 72)])] == [0, 0]


@pytest.mark.parametrize("model", ["c4", "fpn"])
def test_half_precision_stays_close(model):
    net, full = detector(model), detector(model)
    with torch.autocast("cpu", torch.bfloat16), cases.permuted():
        losses = net(*scene())
    with cases.permuted():
        expected = full(*scene())
    sum(losses.values()).backward()
    for name, loss in expected.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=0.2, abs=0.02), name


def test_a_backbone_file_fills_the_backbone(tmp_path):
    path = tmp_path / "backbone.safetensors"
    torch.manual_seed(1)
    source = backbone.build(TINY)
    header = {"arch": TINY.arch, "stem": TINY.stem, "width": str(TINY.width)}
    checkpoint.write_backbone(path, source.state_dict(), header)
    for model in ("c4", "fpn"):
        net = detector(model, with_masks=False)
        net.load_backbone(path)
        assert all(
            torch.equal(v, source.state_dict()[k]) for k, v in net.backbone.state_dict().items()
        )
    other = detector("c4", spec=TINY.model_copy(update={"width": 8}))
    with pytest.raises(ValueError, match=r"backbone\.safetensors .* width=4.* not .*width=8"):
        other.load_backbone(path)


def test_norms_are_spared_weight_decay():
    net = detector("fpn")
    decayed, spared = parameter_groups(net, 0.1, 1e-4)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)
    assert decayed["lr"] == spared["lr"] == 0.1
    assert len(decayed["params"]) + len(spared["params"]) == len(list(net.parameters()))
    names = {id(p): k for k, p in net.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} >= {
        "rpn.conv.bias",
        "box.score.bias",
        "backbone.conv1.weight",
    }
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    assert len(spared["params"]) == 2 * norms


def test_heads_start_as_detectron2_starts_them():
    torch.manual_seed(0)
    box = heads.BoxPredictor(heads.Mean(), 2000, 10)
    assert box.score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert box.deltas.weight.std().item() == pytest.approx(0.001, rel=0.05)
    fpn = heads.FPN([64, 128, 256, 512], 64, torch.nn.BatchNorm2d)
    bound = (3 / 64) ** 0.5
    assert fpn.lateral[0][0].weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    mask = heads.mask_head(64, 128, 5, 1, torch.nn.BatchNorm2d)
    assert mask[0].weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)
    assert mask[-1].weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert isinstance(mask[3], torch.nn.ConvTranspose2d)
