"""Views against closed forms, Pillow, and detectron2's DatasetMapper for the same draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated import make_coco, make_voc, photo, real
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lewel_bench.evals.detection import exif, views, voc
from lewel_bench.evals.detection.annotated_images import Objects, Scene, read_coco, read_voc
from lewel_bench.evals.protocols import PROTOCOLS

C4 = PROTOCOLS["voc07_det_c4"]


def scene_of(boxes, *, height=60, width=80, crowd=None, polygons=None, file="a.jpg") -> Scene:
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    n = len(boxes)
    objects = Objects(
        boxes,
        np.arange(n),
        np.array(crowd if crowd else [False] * n, dtype=bool),
        np.zeros(n, dtype=bool),
        np.ones(n),
        boxes,
        np.arange(1, n + 1),
        tuple(tuple(np.array(p, dtype=np.float64) for p in ps) for ps in polygons or [()] * n),
        (None,) * n,
    )
    return Scene(file, 5, height, width, objects)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photo(tmp_path / "a.jpg", 60, 80, 0)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((480, 640, 800, 1333), (800, 1067)),  # 1066.67
        ((333, 500, 800, 1333), (800, 1201)),  # 1201.2
        ((375, 500, 480, 1333), (480, 640)),
        ((100, 400, 800, 1333), (333, 1333)),  # 333.25: the longest edge decides
        ((400, 100, 800, 1333), (1333, 333)),
        ((64, 64, 45, 100), (45, 45)),
        ((10, 25, 5, 100), (5, 13)),  # 12.5 goes up, where round() would go to even
    ],
)
def test_shapes(given, expected):
    assert views.shape(*given) == expected


@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(16, 900), st.integers(16, 1400))
def test_shapes_are_detectron2s(height, width, short, longest):
    transforms = pytest.importorskip("detectron2.data.transforms")
    theirs = transforms.ResizeShortestEdge.get_output_shape(height, width, short, longest)
    assert views.shape(height, width, short, longest) == theirs


def test_the_image_is_resized_as_pillow_does(folder):
    example = views.view(folder, scene_of([]), 90, 1000, False, False)
    with Image.open(folder / "a.jpg") as image:
        expected = np.asarray(image.resize((120, 90), Image.Resampling.BILINEAR))
    assert np.array_equal(example.image.permute(1, 2, 0).numpy(), expected)
    mirrored = views.view(folder, scene_of([]), 90, 1000, True, False)
    assert torch.equal(mirrored.image, example.image.flip(2))
    assert example.size == (60, 80) and example.id == 5


def test_a_16_bit_image_keeps_its_grey_levels(tmp_path):
    levels = np.linspace(0, 65535, 60 * 80).astype(np.uint16).reshape(60, 80)
    Image.fromarray(levels).save(tmp_path / "a.png")
    example = views.view(tmp_path, scene_of([], file="a.png"), 60, 1000, False, False)
    assert np.abs(example.image.numpy() - levels / 257).max() <= 0.5


def test_boxes_and_polygons_move_with_the_image(folder):
    polygon = [[10.0, 6, 30, 6, 30, 46.5]]
    scene = scene_of([[10, 6, 30, 46.5]], polygons=[polygon])
    plain = views.view(folder, scene, 120, 1000, False, True)
    assert plain.boxes.tolist() == [[20, 12, 60, 93]]
    assert plain.polygons[0][0].tolist() == [20, 12, 60, 12, 60, 93]
    mirrored = views.view(folder, scene, 120, 1000, True, True)
    assert mirrored.boxes.tolist() == [[100, 12, 140, 93]]
    assert mirrored.polygons[0][0].tolist() == [140, 12, 100, 12, 100, 93]
    assert mirrored.boxes.dtype == torch.float32


def test_crowds_and_empty_boxes_are_left_out_and_others_clipped(folder):
    boxes = [[0, 0, 9, 9], [5, 5, 20, 20], [7, 7, 7, 30], [-1, 2, 80.5, 61]]
    scene = scene_of(boxes, crowd=[False, True, False, False], polygons=[[[0, 0, 9, 0, 9, 9]]] * 4)
    example = views.view(folder, scene, 60, 1000, False, True)
    assert example.boxes.tolist() == [[0, 0, 9, 9], [0, 2, 80, 60]]
    assert example.labels.tolist() == [0, 3] and len(example.polygons) == 2
    assert views.view(folder, scene, 60, 1000, False, False).polygons == []


def test_draws_are_even(folder):
    scene, protocol = scene_of([[0, 0, 9, 9]]), replace_sizes(C4, (32, 40, 48))
    rng = np.random.default_rng(0)
    seen = [views.training_view(folder, scene, protocol, rng) for _ in range(300)]
    edges = np.bincount([min(e.image.shape[1:]) for e in seen], minlength=49)
    flips = sum(float(e.boxes[0, 0]) > 0 for e in seen)
    assert edges.sum() == edges[32] + edges[40] + edges[48] == 300
    assert min(edges[32], edges[40], edges[48]) > 75 and 120 < flips < 180
    # two draws a view, whatever it is
    other = np.random.default_rng(0)
    other.random(600)
    assert rng.random() == other.random()


def replace_sizes(protocol, sizes):
    return protocol.model_copy(update={"min_sizes": sizes})


def test_tests_have_their_size_and_no_objects(folder):
    protocol = C4.model_copy(update={"test_size": 90, "max_size": 110})
    example = views.test_view(folder, scene_of([[0, 0, 9, 9]]), protocol)
    assert example.image.shape == (3, 83, 110)
    assert example.boxes.shape == (0, 4) and example.labels.shape == (0,)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_tag_says(tmp_path, orientation):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255  # the top left quarter as stored
    tags = Image.Exif()
    tags[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=tags, quality=95)
    turned = orientation >= 5
    assert exif.upright_size(tmp_path / "a.jpg") == ((64, 48) if turned else (48, 64))
    height, width = (64, 48) if turned else (48, 64)
    scene = scene_of([], height=height, width=width)
    image = views.view(tmp_path, scene, 48, 1000, False, False).image
    corners = [image[:, 5, 5], image[:, 5, -5], image[:, -5, -5], image[:, -5, 5]]
    bright = [i for i, corner in enumerate(corners) if corner.float().mean() > 128]
    # which corner the stored top left is shown at, by the EXIF standard
    assert bright == [{1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 1, 7: 2, 8: 3}[orientation]]


@pytest.mark.parametrize("tag", [b"no header of TIFF", b"MM", b"II*\0\xff\xff\xff\x7f"])
def test_images_with_a_broken_tag_are_not_turned(tmp_path, tag):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 48)).save(path, exif=b"Exif\0\0" + tag)
    assert exif.upright_size(path) == (48, 64) and not exif.is_turned(path)
    assert exif.upright(path).shape == (48, 64, 3)


def test_refusals_name_the_file(folder):
    with pytest.raises(
        ValueError, match=r"a\.jpg: the image is 80x60 px, its annotation gives 81x60"
    ):
        views.view(folder, scene_of([], width=81), 60, 100, False, False)
    with pytest.raises(ValueError, match=r"b\.jpg: cannot be read"):
        views.test_view(folder, scene_of([], file="b.jpg"), C4)
    with pytest.raises(ValueError, match=r"a\.jpg: object 1 has no mask"):
        views.view(folder, scene_of([[0, 0, 9, 9]]), 60, 100, False, True)


@pytest.mark.parametrize("flip", [False, True])
def test_run_lengths_move_with_the_image(folder, flip):
    mask = np.zeros((60, 80), np.uint8)
    mask[6:40, 10:30] = 1
    mask[20:25, 15:20] = 0  # a hole, which no polygon of COCO's has
    counts = np.diff([0, *np.flatnonzero(np.diff(mask.ravel("F"), prepend=0)), mask.size]).tolist()
    plain = scene_of([[10, 6, 30, 40], [10, 6, 30, 40]])
    written = ({"size": [60, 80], "counts": counts}, coco_mask.encode(np.asfortranarray(mask)))
    scene = replace(plain, objects=replace(plain.objects, rles=written))
    example = views.view(folder, scene, 120, 1000, flip, True)
    doubled = mask.repeat(2, 0).repeat(2, 1)
    for pixels in example.polygons:
        assert np.array_equal(pixels, doubled[:, ::-1] if flip else doubled)


def test_an_object_whose_mask_vanishes_is_left_out(folder):
    mask = np.zeros((60, 80), np.uint8)
    mask[6, 10] = 1  # between the pixels that a third of the size keeps
    plain = scene_of([[10, 6, 30, 40]])
    rles = (coco_mask.encode(np.asfortranarray(mask)),)
    scene = replace(plain, objects=replace(plain.objects, rles=rles))
    example = views.view(folder, scene, 20, 1000, False, True)
    assert example.polygons == [] and len(example.boxes) == len(example.labels) == 0


@pytest.fixture(params=["drawn-voc", "drawn-coco", "voc-mini.tar.gz", "coco-mini.tar.gz"])
def data(request, tmp_path):
    if request.param == "drawn-voc":
        root = make_voc(tmp_path, {(2012, "train"): 12, (2012, "val"): 1})
    elif request.param == "drawn-coco":
        root = make_coco(tmp_path / "coco", {"train2017": 16})
    else:
        root = real(request.param, tmp_path) / ("VOCdevkit" if "voc" in request.param else "coco")
    if "voc" in request.param:
        return read_voc(root, voc.splits(root)[0])
    return read_coco(root, "train2017")


def test_views_are_detectron2s(data):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T
    from detectron2.structures import BoxMode

    masks = any(any(o.polygons) for o in (s.objects for s in data.scenes))
    rng = np.random.default_rng(0)
    for scene in data.scenes:
        short, flip = int(rng.choice([96, 211, 480, 672])), bool(rng.random() < 0.5)
        mapper = DatasetMapper(
            True,
            augmentations=[T.ResizeShortestEdge([short], 700, "choice"), T.RandomFlip(float(flip))],
            image_format="RGB",
            use_instance_mask=masks,
        )
        o = scene.objects
        annotations = [
            {
                "bbox": (o.bbox if masks else o.boxes)[i].tolist(),
                "bbox_mode": BoxMode.XYWH_ABS if masks else BoxMode.XYXY_ABS,
                "category_id": int(o.labels[i]),
                "iscrowd": int(o.crowd[i]),
                "segmentation": [p.tolist() for p in o.polygons[i]] if masks else None,
            }
            for i in range(len(o))
        ]
        record = {"file_name": str(data.root / scene.file), "height": scene.height,
                  "width": scene.width, "annotations": annotations}  # fmt: skip
        theirs = mapper(record)
        actual = views.view(data.root, scene, short, 700, flip, masks)
        assert torch.equal(actual.image, theirs["image"])  # to the level
        instances = theirs["instances"]
        assert torch.equal(actual.boxes, instances.gt_boxes.tensor)
        assert torch.equal(actual.labels, instances.gt_classes)
        if masks and len(instances):
            polygons = instances.gt_masks.polygons
            assert len(polygons) == len(actual.polygons)
            for mine, other in zip(actual.polygons, polygons, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))
        tested = T.ResizeShortestEdge([short], 700, "choice")
        mapper = DatasetMapper(False, augmentations=[tested], image_format="RGB")
        protocol = C4.model_copy(update={"test_size": short, "max_size": 700})
        theirs = mapper({k: v for k, v in record.items() if k != "annotations"})
        assert torch.equal(views.test_view(data.root, scene, protocol).image, theirs["image"])
