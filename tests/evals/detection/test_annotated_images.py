"""Readers of VOC and COCO: values that were written, detectron2's readers, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from annotated import make_coco, make_voc, real, xml

from lewel_bench.evals.detection import voc
from lewel_bench.evals.detection.annotated_images import read_coco, read_voc

SETS = {(2007, "trainval"): 6, (2012, "trainval"): 5, (2007, "test"): 4}


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "VOCdevkit", SETS)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "coco", {"train2017": 12, "val2017": 6})


def annotation(devkit: Path, name: str) -> Path:
    return next(devkit.glob(f"*/Annotations/{name}.xml"))


def test_voc_boxes_run_from_edge_to_edge(devkit):
    objects = [("dog", 1, 1, 80, 60, 0), ("cat", 11, 21, 11, 21, 1)]
    annotation(devkit, "000001").write_text(xml(60, 80, objects))
    scene = read_voc(devkit, [(2007, "trainval")]).scenes[0]
    assert scene.objects.boxes.tolist() == [[0, 0, 80, 60], [10, 20, 11, 21]]
    assert scene.objects.areas.tolist() == [4800, 1]
    assert scene.objects.difficult.tolist() == [False, True]
    assert (scene.height, scene.width) == (60, 80)
    assert scene.file == "VOC2007/JPEGImages/000001.jpg"


def test_voc_years_follow_one_another_with_numbers_from_their_names(devkit):
    train, report = voc.splits(devkit)
    scenes = read_voc(devkit, train)
    assert [s.id for s in scenes.scenes] == [*range(1, 7), *range(2008000007, 2008000012)]
    assert [s.id for s in read_voc(devkit, report).scenes] == [12, 13, 14, 15]
    ids = np.concatenate([s.objects.ids for s in scenes.scenes])
    assert ids.tolist() == list(range(1, len(ids) + 1))


def test_names_without_numbers_are_numbered_by_place(devkit):
    for path in devkit.glob("VOC2007/*/000001.*"):
        path.rename(path.with_stem("flower"))
    listing = devkit / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    listing.write_text(listing.read_text().replace("000001", "flower"))
    assert [s.id for s in read_voc(devkit, [(2007, "trainval")]).scenes] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("sets", "train", "report"),
    [
        (SETS, ((2007, "trainval"), (2012, "trainval")), ((2007, "test"),)),
        ({(2012, "train"): 1, (2012, "val"): 1}, ((2012, "train"),), ((2012, "val"),)),
        ({(2010, "trainval"): 1, (2010, "test"): 1}, ((2010, "trainval"),), ((2010, "test"),)),
    ],
)
def test_voc_splits(tmp_path, sets, train, report):
    assert voc.splits(make_voc(tmp_path, sets)) == (train, report)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "not a VOC data set"),
        ({(2007, "trainval"): 1, (2012, "trainval"): 1}, "test.txt: missing"),
        ({(2010, "train"): 1, (2012, "train"): 1}, "keep 2007 with 2012"),
    ],
)
def test_voc_splits_refuses(tmp_path, sets, message):
    with pytest.raises(ValueError, match=message):
        voc.splits(make_voc(tmp_path, sets))


def test_classes_are_those_that_are_listed_or_occur(devkit, tmp_path):
    few = read_voc(devkit, [(2007, "trainval")])
    assert few.classes == tuple(sorted(set(few.classes))) and len(few.classes) < 20
    main = devkit / "VOC2007" / "ImageSets" / "Main"
    for name in voc.CLASSES:  # as in VOC itself
        (main / f"{name}_trainval.txt").touch()
    assert read_voc(devkit, [(2007, "trainval")]).classes == voc.CLASSES
    own = make_voc(tmp_path / "own", {(2012, "train"): 8}, ("rose", "aster", "cat"))
    assert read_voc(own, [(2012, "train")]).classes == ("aster", "cat", "rose")
    main = own / "VOC2012" / "ImageSets" / "Main"
    for name in ("rose", "aster", "cat", "tulip"):
        (main / f"{name}_train.txt").touch()
    scenes = read_voc(own, [(2012, "train")])
    assert scenes.classes == ("aster", "cat", "rose", "tulip")
    assert scenes.category_ids == (1, 2, 3, 4)


def test_coco_is_sorted_by_id_with_contiguous_labels(coco):
    scenes = read_coco(coco, "train2017")
    assert scenes.classes == ("car", "bus", "kite") and scenes.category_ids == (2, 4, 7)
    assert [s.id for s in scenes.scenes] == sorted(s.id for s in scenes.scenes)
    content = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    for record in content["annotations"]:
        scene = next(s for s in scenes.scenes if s.id == record["image_id"])
        o, i = scene.objects, scene.objects.ids.tolist().index(record["id"])
        x, y, w, h = record["bbox"]
        np.testing.assert_allclose(o.boxes[i], [x, y, x + w, y + h], rtol=1e-6)
        assert scenes.category_ids[o.labels[i]] == record["category_id"]
        assert o.crowd[i] == record["iscrowd"]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_json_holds_what_the_file_holds(coco, split):
    content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
    result = read_coco(coco, split).coco_json()
    for part in ("annotations", "categories", "images"):
        given = sorted(content[part], key=lambda record: record["id"])
        mine = sorted(result[part], key=lambda record: record["id"])
        for record in mine:
            if "file_name" in record:
                record["file_name"] = record["file_name"].removeprefix(f"{split}/")
        assert mine == given


def test_coco_annotations_named_after_the_split_alone(coco):
    before = read_coco(coco, "val2017").coco_json()
    path = coco / "annotations" / "instances_val2017.json"
    path.rename(path.with_name("instances_val.json"))
    assert read_coco(coco, "val2017").coco_json() == before


def test_take_keeps_classes_and_order(coco):
    scenes = read_coco(coco, "train2017")
    some = scenes.take(np.array([3, 1]))
    assert [s.id for s in some.scenes] == [scenes.scenes[3].id, scenes.scenes[1].id]
    assert some.classes == scenes.classes and len(some) == 2


def test_short_polygons_are_left_out(coco):
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    record = next(r for r in content["annotations"] if not r["iscrowd"])
    whole = [list(p) for p in record["segmentation"]]
    record["segmentation"] += [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]
    path.write_text(json.dumps(content))
    scene = next(s for s in read_coco(coco, "train2017").scenes if s.id == record["image_id"])
    i = scene.objects.ids.tolist().index(record["id"])
    assert [p.tolist() for p in scene.objects.polygons[i]] == whole


def test_refusals_name_the_file(devkit, coco):
    with pytest.raises(ValueError, match=r"ImageSets/Main/val\.txt: list of images cannot be read"):
        read_voc(devkit, [(2007, "val")])
    with pytest.raises(ValueError, match="share images"):
        read_voc(devkit, [(2007, "test"), (2007, "test")])
    annotation(devkit, "000012").write_text(xml(60, 80, [("yak", 2, 2, 9, 9, 0)]))
    with pytest.raises(ValueError, match=r"000012\.xml: unknown class 'yak'\. Known: cat, cow"):
        read_voc(devkit, [(2007, "test")], ("cat", "cow", "dog"))
    annotation(devkit, "000012").unlink()
    with pytest.raises(ValueError, match=r"000012\.xml: annotation cannot be read"):
        read_voc(devkit, [(2007, "test")])
    (coco / "annotations" / "instances_val2017.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances_val2017\.json: not valid JSON"):
        read_coco(coco, "val2017")


def same_as_detectron2(scenes, dicts, numbers) -> None:
    assert len(scenes) == len(dicts)
    for scene, record in zip(scenes.scenes, dicts, strict=True):
        assert str(scenes.root / scene.file) == record["file_name"]
        assert (scene.height, scene.width) == (record["height"], record["width"])
        o, theirs = scene.objects, record["annotations"]
        assert o.labels.tolist() == [a["category_id"] for a in theirs]
        from detectron2.structures import BoxMode

        for i, a in enumerate(theirs):
            a["bbox"] = [float(v) for v in a["bbox"]]
            box = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            assert o.boxes[i].tolist() == box
            if numbers:
                assert o.crowd[i] == a["iscrowd"]
                if not o.crowd[i]:
                    assert [p.tolist() for p in o.polygons[i]] == a["segmentation"]


@pytest.mark.parametrize("data", ["drawn", "voc-mini.tar.gz"])
def test_voc_as_detectron2_reads_it(data, tmp_path):
    pytest.importorskip("detectron2")
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    made = data == "drawn"
    root = make_voc(tmp_path, SETS) if made else real(data, tmp_path) / "VOCdevkit"
    for sets in voc.splits(root):
        for year, name in sets:
            dicts = load_voc_instances(str(root / f"VOC{year}"), name, voc.CLASSES)
            same_as_detectron2(read_voc(root, [(year, name)], voc.CLASSES), dicts, numbers=False)


@pytest.mark.parametrize("data", ["drawn", "coco-mini.tar.gz"])
def test_coco_as_detectron2_reads_it(data, tmp_path):
    pytest.importorskip("detectron2")
    from detectron2.data.datasets.coco import load_coco_json

    counts = {"train2017": 12, "val2017": 6}
    root = make_coco(tmp_path / "c", counts) if data == "drawn" else real(data, tmp_path) / "coco"
    for split in counts:
        path = root / "annotations" / f"instances_{split}.json"
        path = path if path.exists() else path.with_name(path.name.replace("2017", ""))
        dicts = load_coco_json(str(path), str(root / split), f"{data}_{split}")
        same_as_detectron2(read_coco(root, split), dicts, numbers=True)
