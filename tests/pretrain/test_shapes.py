"""The generated data: the same bytes again, complete or absent, and labels that fit the pixels."""

import json
import multiprocessing
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from lewel_bench.pretrain import shapes, shapes_labels
from lewel_bench.pretrain.shapes import Counts, make
from lewel_bench.pretrain.shapes_scene import CLASSES, Shape, draw

FEW = Counts(
    **dict.fromkeys(("train", "val"), 1),
    **{f"voc{name}": 4 for name in ("2007_train", "2007_val", "2007_test")},
    **{f"voc{name}": 4 for name in ("2012_train", "2012_val")},
    coco_train=24,
    coco_val=5,
)


def files(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "shapes", counts=FEW)


def test_the_same_seed_gives_the_same_bytes(data, tmp_path):
    assert files(make(tmp_path / "again", counts=FEW)) == files(data)


def test_another_seed_gives_other_images(data, tmp_path):
    first, second = files(data), files(make(tmp_path / "other", seed=1, counts=FEW))
    assert not any(
        first[name] == second[name] for name in first if name.endswith("jpg") and name in second
    )


def test_no_image_is_there_twice(data):
    images = [content for name, content in files(data).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == FEW.total()


def test_progress_counts_every_image_and_a_second_call_writes_nothing(data, tmp_path):
    seen = []
    folder = make(tmp_path / "s", counts=FEW, progress=lambda *at: seen.append(at))
    assert seen == [(n, FEW.total()) for n in range(1, FEW.total() + 1)]
    make(folder, counts=FEW, progress=lambda *at: pytest.fail("wrote again"))


def _make(folder: Path) -> None:
    make(folder, counts=FEW)


def test_two_processes_at_once_leave_one_complete_set(data, tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_make, args=(tmp_path / "s",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert files(tmp_path / "s") == files(data)
    assert {p.name for p in tmp_path.iterdir()} <= {"s", ".s.lock"}


def test_what_a_killed_process_left_is_replaced(data, tmp_path):
    def kill(done, total):
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "s", counts=FEW, progress=kill)
    assert not (tmp_path / "s").exists()
    assert files(make(tmp_path / "s", counts=FEW)) == files(data)


def test_a_folder_with_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="not a shapes data set"):
        make(tmp_path, counts=FEW)
    with pytest.raises(ValueError, match="holds another shapes data set"):
        make(data, seed=3, counts=FEW)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    (tmp_path / shapes.MARKER).write_text("{")
    with pytest.raises(ValueError, match="cannot read"):
        make(tmp_path, counts=FEW)


def test_class_folders(data):
    for split, count in (("train", FEW.train), ("val", FEW.val)):
        folders = sorted((data / "imagenet" / split).iterdir())
        assert [folder.name for folder in folders] == sorted(CLASSES)
        for folder in folders:
            images = [Image.open(file) for file in folder.iterdir()]
            assert len(images) == count
            assert all(i.format == "JPEG" and i.size[::-1] in shapes.SIZES for i in images)


@pytest.mark.parametrize("kind", range(len(CLASSES)))
def test_a_single_scene_shows_mostly_its_class(kind):
    rng = np.random.default_rng(kind)
    scene = shapes.single(kind, rng)
    assert len(scene.whole) >= 4
    assert (scene.instances > 0).mean() > 0.1


def test_later_things_cover_earlier_ones():
    square = CLASSES.index("cross")
    below, above = Shape(square, 20, 20, 10, 1), Shape(square, 20, 20, 16, 2)
    scene = draw([below, above], 40, 40, np.random.default_rng(0))
    assert scene.instances[20, 20] == 2
    (label,) = shapes_labels.labels(scene, [below, above], set())[-1:]
    assert label.kind == square and not label.truncated and not label.occluded


def test_flags_of_cut_and_covered_things():
    kind = CLASSES.index("triangle")
    cut, covered, cover = Shape(kind, 0, 20, 15, 1), Shape(kind, 40, 20, 12, 2), (44, 26)
    shapes = [cut, covered, Shape(kind, *cover, 12, 3)]
    scene = draw(shapes, 60, 60, np.random.default_rng(1))
    first, second, third = shapes_labels.labels(scene, shapes, set())
    assert (first.truncated, first.occluded) == (True, False)
    assert (second.truncated, second.occluded) == (False, True)
    assert (third.truncated, third.occluded, third.difficult) == (False, False, False)
    assert scene.inside[1] < 0.8 * scene.whole[1]


def _voc_boxes(root: Path, name: str) -> list[tuple[str, list[int]]]:
    tree = ElementTree.parse(root / "Annotations" / f"{name}.xml")
    size = [int(tree.findtext(f"size/{side}")) for side in ("width", "height", "depth")]
    assert Image.open(root / "JPEGImages" / tree.findtext("filename")).size == (size[0], size[1])
    boxes = []
    for entry in tree.iter("object"):
        corners = [int(entry.findtext(f"bndbox/{c}")) for c in ("xmin", "ymin", "xmax", "ymax")]
        assert 1 <= corners[0] <= corners[2] <= size[0] and 1 <= corners[1] <= corners[3] <= size[1]
        assert {entry.findtext(flag) for flag in ("truncated", "occluded", "difficult")} <= {
            "0",
            "1",
        }
        boxes.append((entry.findtext("name"), corners))
    return boxes


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_masks_and_boxes_agree(data, year):
    root = data / "VOCdevkit" / f"VOC{year}"
    names = sorted(file.stem for file in (root / "JPEGImages").iterdir())
    assert len(names) == (12 if year == 2007 else 8)
    for name in names:
        by_class = Image.open(root / "SegmentationClass" / f"{name}.png")
        by_object = Image.open(root / "SegmentationObject" / f"{name}.png")
        assert by_class.mode == by_object.mode == "P"
        classes, objects = np.asarray(by_class), np.asarray(by_object)
        boxes = _voc_boxes(root, name)
        assert set(np.unique(objects)) <= {0, 255, *range(1, len(boxes) + 1)}
        assert ((classes == 255) == (objects == 255)).all() and (classes == 255).any()
        for number, (title, (left, top, right, bottom)) in enumerate(boxes, 1):
            ys, xs = np.nonzero(objects == number)
            assert (classes[ys, xs] == CLASSES.index(title) + 1).all()
            if len(ys):  # the void border is inside the box, one pixel a side
                assert left <= xs.min() + 1 and xs.max() + 1 <= right
                assert top <= ys.min() + 1 and ys.max() + 1 <= bottom


def test_voc_palette_is_pascals(data):
    file = next((data / "VOCdevkit/VOC2012/SegmentationClass").iterdir())
    palette = np.array(Image.open(file).getpalette()).reshape(-1, 3)
    known = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    assert [tuple(row) for row in palette[:6]] == known
    assert tuple(palette[20]) == (0, 64, 128) and tuple(palette[255]) == (224, 224, 192)


def test_voc_image_sets(data):
    root = data / "VOCdevkit" / "VOC2007"
    sets = {f.stem: f.read_text().split() for f in (root / "ImageSets/Segmentation").iterdir()}
    assert sorted(sets) == ["test", "train", "trainval", "val"]
    assert sorted(sets["train"] + sets["val"]) == sets["trainval"]
    assert len({*sets["trainval"], *sets["test"]}) == 12
    for split, names in sets.items():
        assert (root / f"ImageSets/Main/{split}.txt").read_text().split() == names
        for title in CLASSES:
            lines = (root / f"ImageSets/Main/{title}_{split}.txt").read_text().splitlines()
            signs = dict(line.split() for line in lines)
            assert list(signs) == names
            for name in names:
                expected = title in {voc_box for voc_box, _ in _voc_boxes(root, name)}
                assert (signs[name] == "-1") == (not expected)
    assert not (data / "VOCdevkit/VOC2012/ImageSets/Main/test.txt").exists()


def test_coco_annotations_fit_their_images(data):
    everything = []
    for split, count in (("train", 24), ("val", 5)):
        root = data / "coco"
        content = json.loads((root / f"annotations/instances_{split}2017.json").read_text())
        images = {image["id"]: image for image in content["images"]}
        assert len(images) == count
        for image in images.values():
            size = Image.open(root / f"{split}2017" / image["file_name"]).size
            assert size == (image["width"], image["height"])
        assert tuple(c["name"] for c in content["categories"]) == CLASSES
        for annotation in content["annotations"]:
            image = images[annotation["image_id"]]
            x, y, w, h = annotation["bbox"]
            assert x >= 0 and y >= 0 and x + w <= image["width"] and y + h <= image["height"]
            assert 0 < annotation["area"] <= w * h
            assert annotation["category_id"] in shapes_labels.COCO_IDS
            if not annotation["iscrowd"]:
                points = np.concatenate(
                    [np.reshape(p, (-1, 2)) for p in annotation["segmentation"]]
                )
                assert [*points.min(0), *points.max(0)] == [x, y, x + w, y + h]
        everything += content["annotations"]
    assert len({value["id"] for value in everything}) == len(everything)
    assert sum(value["iscrowd"] for value in everything) >= 2


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


@settings(deadline=None, max_examples=40)
@given(masks)
def test_run_lengths_can_be_read_back(mask):
    counts = shapes_labels.rle(mask)["counts"]
    values = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
    assert (values.reshape(mask.shape, order="F") == mask).all()
    assert all(count > 0 for count in counts[1:])


def test_run_lengths_begin_with_zeros():
    mask = np.array([[True, False], [True, False]])
    assert shapes_labels.rle(mask) == {"counts": [0, 2, 2], "size": [2, 2]}
    assert shapes_labels.rle(~mask) == {"counts": [2, 2], "size": [2, 2]}


@settings(deadline=None, max_examples=40)
@given(masks)
def test_polygons_enclose_the_mask_with_its_holes_filled(mask):
    """Against a flood from outside, painted at eight times the size."""
    outlines = shapes_labels.polygons(mask)
    height, width = mask.shape
    large = np.zeros((8 * height, 8 * width), bool)
    for outline in outlines:
        canvas = Image.new("1", (8 * width, 8 * height))
        ImageDraw.Draw(canvas).polygon([8 * value for value in outline], fill=1)
        large |= np.asarray(canvas)
    empty = np.pad(~mask, 1, constant_values=True)
    outside = np.zeros_like(empty)
    outside[0, 0] = True
    for _ in range(empty.size):  # 8-connected: pixels touching at a corner leave a gap
        around = [np.roll(outside, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        outside = empty & np.any(around, 0)
    filled = ~outside[1:-1, 1:-1]
    inner = large.reshape(height, 8, width, 8)[:, 3:5, :, 3:5]
    assert (inner.all((1, 3)) == filled).all() and (inner.any((1, 3)) == filled).all()
    assert shapes_labels._filled_area(outlines, mask.shape) == filled.sum()


def test_polygon_of_a_rectangle_and_of_two_pixels_touching_at_a_corner():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    assert shapes_labels.polygons(mask) == [[2, 1, 5, 1, 5, 3, 2, 3]]
    corner = np.eye(2, dtype=bool)
    assert shapes_labels.polygons(corner) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]


def test_polygons_are_pycocotools_masks(data):
    mask_of = pytest.importorskip("pycocotools.mask")
    content = json.loads((data / "coco/annotations/instances_train2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["iscrowd"]:
            runs = mask_of.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        else:
            runs = mask_of.merge(
                mask_of.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
            )
        assert mask_of.area(runs) == annotation["area"]
        assert mask_of.toBbox(runs).tolist() == annotation["bbox"]
