"""Every kind of broken annotation is named, with its file and object."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated import make_coco, make_voc, photo, real, xml
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from lewel_bench.evals.detection import masks, voc
from lewel_bench.evals.detection.annotated_images import read_coco, read_voc
from lewel_bench.evals.detection.annotation_check import check, problems

SETS = {(2012, "train"): 6, (2012, "val"): 4}


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "VOCdevkit", SETS)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "coco", {"train2017": 12, "val2017": 6})


def test_sound_data_has_no_problems(devkit, coco):
    assert problems(devkit, "voc") == ([], [])
    assert problems(coco, "coco") == ([], [])
    report = check(devkit, "voc")
    assert report.images == {"2012 train": 6, "2012 val": 4} and "cow" in report.classes
    report = check(coco, "coco")
    scenes = read_coco(coco, "val2017")
    assert report.images["val2017"] == 6 and report.classes == scenes.classes
    assert report.objects["val2017"] == sum(int((~s.objects.crowd).sum()) for s in scenes.scenes)


@pytest.mark.parametrize("archive", ["voc-mini.tar.gz", "coco-mini.tar.gz"])
def test_real_data_has_no_problems(archive, tmp_path):
    layout = "voc" if "voc" in archive else "coco"
    root = real(archive, tmp_path) / ("VOCdevkit" if layout == "voc" else "coco")
    assert problems(root, layout) == ([], [])


GOOD = ("cat", 5, 5, 30, 30, 0)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([GOOD, ("cow", 30, 5, 20, 30, 0)], r"object 2 \(cow\) has an inverted box"),
        ([("cow", 5, 30, 20, 9, 0)], r"object 1 \(cow\) has an inverted box \(5, 30, 20, 9\)"),
        ([("cow", 5, 5, 99, 30, 0)], r"object 1 \(cow\) has a box .* outside the image of 80x60"),
        ([("cow", -9, 5, 9, 30, 0)], "outside the image"),
        ([("cow", 105, 105, 120, 130, 0)], "outside the image"),
        ([("cow", "nan", 5, 9, 30, 0)], "inverted box"),
        ([("cow", "left", 5, 9, 30, 0)], r"object 1 \(cow\) has xmin = 'left' in bndbox"),
        (
            [("cow", 5, 5, 9, 30, "False")],
            r"object 1 \(cow\) has difficult = 'False': it must be 0 or 1",
        ),
        ([("", 5, 5, 9, 30, 0)], r"object 1 \(no name\) has no name"),
        (
            [GOOD, ("yak", 5, 5, 9, 30, 0)],
            "object 2 has the unknown class 'yak': known classes are aero",
        ),
    ],
)
def test_voc_objects(devkit, objects, message):
    path = devkit / "VOC2012" / "Annotations" / "2008_000008.xml"
    photo(devkit / "VOC2012" / "JPEGImages" / "2008_000008.jpg", 60, 80, 0)
    path.write_text(xml(60, 80, objects))
    if "yak" in message:
        main = devkit / "VOC2012" / "ImageSets" / "Main"
        for name in voc.CLASSES:
            (main / f"{name}_train.txt").touch()
    result, _ = problems(devkit, "voc")
    assert len(result) == 1 and re.match(re.escape(str(path)) + ": .*" + message, result[0])
    if "yak" not in message:
        with pytest.raises(ValueError, match=message):
            read_voc(devkit, [(2012, "val")])


def test_a_pixel_over_the_edge_is_rounding(devkit):
    path = devkit / "VOC2012" / "Annotations" / "2008_000008.xml"
    photo(devkit / "VOC2012" / "JPEGImages" / "2008_000008.jpg", 60, 80, 0)
    path.write_text(xml(60, 80, [("cow", 0, 0, 81, 61, 0)]))
    assert problems(devkit, "voc") == ([], [])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


VOC = "VOC2012/Annotations/2008_000002.xml"
IMAGE = "VOC2012/JPEGImages/2008_000002.jpg"
LIST = "VOC2012/ImageSets/Main/val.txt"


@pytest.mark.parametrize(
    ("file", "breaks", "message"),
    [
        (VOC, lambda p: p.write_text("<annotation>"), "not well-formed XML"),
        (VOC, lambda p: p.unlink(), "annotation cannot be read: No such file"),
        (VOC, lambda p: p.write_text("<annotation/>"), "size/height is None"),
        (VOC, lambda p: p.write_text(xml(0, 10, [])), "size/height is '0'"),
        (IMAGE, lambda p: p.unlink(), r"missing, but .*2008_000002\.xml describes it"),
        (IMAGE, lambda p: p.write_bytes(b"no image"), "not a readable image"),
        (IMAGE, lambda p: photo(p, 33, 44, 0), r"the image is 44x33 px, but .*2008_000002\.xml"),
        (LIST, lambda p: p.unlink(), "list of images cannot be read"),
        (LIST, lambda p: p.write_text("\n"), "names no images"),
        (LIST, lambda p: p.write_text(p.read_text() + "2008_000007\n"), "names 1 images twice"),
        (LIST, lambda p: p.write_text(p.read_text() + "2008_000002\n"), "are in 2012 train too"),
    ],
)
def test_voc_files(devkit, file, breaks: Callable[[Path], Any], message):
    breaks(devkit / file)
    result, _ = problems(devkit, "voc")
    assert any(re.search(message, problem) for problem in result), result
    assert len(result) == 1
    place = "" if "too" in message else file
    assert place in result[0]


def test_every_problem_is_listed(devkit):
    for name in ("2008_000001", "2008_000003", "2008_000009"):
        (devkit / "VOC2012" / "JPEGImages" / f"{name}.jpg").unlink()
    assert len(problems(devkit, "voc")[0]) == 3


def test_what_is_no_data_set_is_a_problem(tmp_path):
    assert "not a VOC data set" in problems(tmp_path, "voc")[0][0]
    result, _ = problems(tmp_path, "coco")
    assert len(result) == 2 and "instances_train2017.json: cannot be read" in result[0]


def test_data_without_objects_is_a_problem(devkit):
    for name in (devkit / LIST).read_text().split():
        path = devkit / "VOC2012" / "Annotations" / f"{name}.xml"
        path.write_text(re.sub("<object>.*</object>", "", path.read_text()))
    assert "no image of 2012 val has an object" in problems(devkit, "voc")[0][0]


def change(
    coco: Path, edit: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Any]
) -> int:
    """Changes (the content, an object with one polygon, a crowd) of the training file."""
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    plain = next(
        a for a in content["annotations"] if not a["iscrowd"] and len(a["segmentation"]) == 1
    )
    crowd = next(a for a in content["annotations"] if a["iscrowd"])
    edit(content, plain, crowd)
    path.write_text(json.dumps(content))
    return plain["id"]


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda c, o, w: o.update(bbox=[9, 9, -4, 5]), "has an inverted box"),
        (lambda c, o, w: o.update(bbox=[9, 9, 400, 5]), "outside the image"),
        (lambda c, o, w: o.update(bbox=[-5, 9, 9, 5]), "outside the image"),
        (lambda c, o, w: o.update(bbox=[1, 2, 3]), "four numbers"),
        (lambda c, o, w: o.update(bbox=[1, 2, float("nan"), 3]), "four numbers"),
        (lambda c, o, w: o.update(category_id=99), "unknown category 99"),
        (lambda c, o, w: o.update(category_id=[2]), r"unknown category \[2\]"),
        (
            lambda c, o, w: o.update(image_id={"id": 3}),
            "has the image_id {'id': 3}: it must be a number",
        ),
        (lambda c, o, w: o.update(iscrowd="0"), "has iscrowd '0': it must be 0 or 1"),
        (lambda c, o, w: o.update(area=-1), "area -1"),
        (
            lambda c, o, w: o.update(segmentation=[["a", 2, 3, 4, 5, 6]]),
            "not a flat list of finite numbers",
        ),
        (lambda c, o, w: o.update(segmentation="polygon"), "has the segmentation 'polygon'"),
        (lambda c, o, w: o.update(segmentation=[[1e18, 2, 3, 4, 5, 6]]), r"reaches to 1e\+18 px"),
        (
            lambda c, o, w: o.update(segmentation=[[10**400, 2, 3, 4, 5, 6]]),
            "not a flat list of finite numbers",
        ),
        (
            lambda c, o, w: o.update(segmentation=[[1, 2, 3, 4, 5, math.inf]]),
            "not a flat list of finite numbers",
        ),
        (lambda c, o, w: o.update(category_id="2"), "has the category_id '2' as text: write the"),
        (lambda c, o, w: o.update(image_id="7"), "has the image_id '7' as text: write the number"),
        (lambda c, o, w: o.update(area=1e999), "area inf"),
        (lambda c, o, w: o.update(area=10**400, segmentation=[]), "area 1000"),
        (lambda c, o, w: o.update(bbox=[1, 2, 10**400, 3]), "four numbers"),
        (
            lambda c, o, w: w["segmentation"].update(counts="zzz"),
            "not a valid COCO run-length string",
        ),
        (
            lambda c, o, w: w["segmentation"].update(counts="n" * 99),
            "not a valid COCO run-length string",
        ),
        (lambda c, o, w: c["images"][0].update(height=60.0), "height and width .* decimal point"),
        (lambda c, o, w: c["images"][0].update(height="60"), "height and width .* as text"),
        (lambda c, o, w: c["images"][0].update(height=10**9), "the limit is 89,478,485 pixels"),
        (
            lambda c, o, w: c["images"][0].update(file_name="\ud800.jpg"),
            "invalid file_name",
        ),
        (
            lambda c, o, w: c["images"][0].update(file_name="a\0.jpg"),
            "invalid file_name",
        ),
        (lambda c, o, w: o.update(id=10**30), "'annotations' has the id 10000"),
        (lambda c, o, w: w["segmentation"].update(size=[7, 9]), r"mask of size \[7, 9\]"),
        (lambda c, o, w: w["segmentation"].update(counts=[3, 4]), "runs do not add up"),
        (lambda c, o, w: w["segmentation"].pop("counts"), "mask without counts"),
        (lambda c, o, w: c["annotations"].append(dict(o)), "'annotations' have the id"),
        (lambda c, o, w: c["images"].append(dict(c["images"][0])), "'images' have the id"),
        (
            lambda c, o, w: c["categories"].append({"id": 2, "name": "new"}),
            "'categories' have the id 2",
        ),
        (lambda c, o, w: o.update(id="x"), "has the id 'x'"),
        (lambda c, o, w: c["images"].append({**c["images"][0], "id": 999}), "the file name"),
        (lambda c, o, w: c["categories"].append({"id": 9, "name": "car"}), "are named 'car'"),
        (lambda c, o, w: c["images"][0].pop("height"), "height and width"),
        (lambda c, o, w: c["images"][0].pop("file_name"), "no file_name"),
        (lambda c, o, w: c.pop("categories"), "no COCO annotation file"),
        (lambda c, o, w: c.update(images=[]), "lists no images"),
    ],
)
def test_coco_annotations(coco, breaks, message):
    change(coco, breaks)
    result, _ = problems(coco, "coco")
    path = coco / "annotations" / "instances_train2017.json"
    named = [p for p in result if re.match(re.escape(str(path)) + ": .*" + message, p)]
    assert len(named) == 1, result
    if (
        message.startswith(("has", "outside", "unknown", "polygon", "not a flat list"))
        and "'x'" not in message
    ):
        assert ": object " in named[0]
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_coco(coco, "train2017")


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda c, o, w: o["segmentation"].append([1, 2, 3, 4]), "polygon of 4 numbers.*left out"),
        (lambda c, o, w: o.update(segmentation=[[1, 2, 3, 4]]), "of 4 numbers: .* are trained and"),
        (lambda c, o, w: o.update(segmentation=[list(range(7))]), "of 7 numbers: .* are trained"),
        (lambda c, o, w: o.update(segmentation=[]), "has no segmentation: left out where masks"),
        (lambda c, o, w: o.pop("segmentation"), "has no segmentation: left out where masks are"),
        (lambda c, o, w: o.update(bbox=[3, 4, 5, 0]), "an empty box"),
        (
            lambda c, o, w: o.update(image_id=12345),
            "1 objects belong to images that are not listed",
        ),
    ],
)
def test_coco_notes(coco, breaks, message):
    """Such annotations are in COCO itself."""
    change(coco, breaks)
    result, notes = problems(coco, "coco")
    assert result == [] and len(notes) == 1 and re.search(message, notes[0])
    read_coco(coco, "train2017")


def test_coco_images(coco):
    scenes = read_coco(coco, "train2017").scenes
    (coco / scenes[0].file).unlink()
    photo(coco / scenes[1].file, 33, 44, 0)
    result, _ = problems(coco, "coco")
    assert len(result) == 2
    assert re.search(
        rf"{scenes[0].file}: missing, but .*: image {scenes[0].id} describes", result[0]
    )
    assert re.search(f"{scenes[1].file}: the image is 44x33 px, but", result[1])


def test_coco_categories_of_the_splits_must_agree(coco):
    path = coco / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 30, "name": "yak"})
    path.write_text(json.dumps(content))
    assert re.search("other categories than the training split", problems(coco, "coco")[0][0])


def test_coco_notes_that_boxes_are_corners(coco):
    """Also where most of such boxes would pass the image's edge, and where only areas tell."""
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for o in content["annotations"]:
        x, y, w, h = o["bbox"]
        o["bbox"] = [x, y, x + w, y + h]
    path.write_text(json.dumps(content))
    result, _ = problems(coco, "coco")
    assert len(result) == 1 and "objects fit as corners (x1, y1, x2, y2)" in result[0]
    for o in content["annotations"]:
        x, y, right, bottom = o["bbox"]
        o.update(segmentation=[], area=(right - x) * (bottom - y), iscrowd=0)
    path.write_text(json.dumps(content))
    result, _ = problems(coco, "coco")
    assert len(result) == 1 and "objects fit as corners (x1, y1, x2, y2)" in result[0]


def test_coco_boxes_are_no_fractions(coco):
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for o in content["annotations"]:
        o.update(bbox=[0.25, 0.25, 0.5, 0.5], segmentation=[])
    path.write_text(json.dumps(content))
    result, _ = problems(coco, "coco")
    assert len(result) == 1 and "all boxes lie between 0 and 1" in result[0]


def as_exported(content, kind):
    """The polygons of ordinary objects as run lengths, written in one of their forms."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    for o in content["annotations"]:
        if o["iscrowd"]:
            continue
        parts = coco_mask.frPyObjects(o["segmentation"], *sizes[o["image_id"]])
        whole = coco_mask.merge(parts)
        text = {"size": list(whole["size"]), "counts": whole["counts"].decode()}
        flat = coco_mask.decode(whole).ravel("F")
        edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
        runs = {"size": text["size"], "counts": np.diff([0, *edges, flat.size]).tolist()}
        each = [{"size": text["size"], "counts": p["counts"].decode()} for p in parts]
        o["segmentation"] = {"text": text, "runs": runs, "list": each}[kind]


@pytest.mark.parametrize("kind", ["text", "runs", "list"])
def test_run_lengths_of_ordinary_objects_are_read(coco, kind):
    """The masks are those of the polygons, for training and for scoring."""
    path = coco / "annotations" / "instances_train2017.json"
    plain = read_coco(coco, "train2017")
    content = json.loads(path.read_text())
    as_exported(content, kind)
    path.write_text(json.dumps(content))
    assert problems(coco, "coco") == ([], [])
    scenes = read_coco(coco, "train2017")
    assert scenes.has_run_lengths() and not plain.has_run_lengths()
    assert scenes.with_masks().without_mask == 0
    for scene, other in zip(scenes.scenes, plain.scenes, strict=True):
        shape = (scene.height, scene.width)
        for i, rle in enumerate(scene.objects.rles):
            expected = other.objects.rles[i] or coco_mask.merge(
                coco_mask.frPyObjects([p.tolist() for p in other.objects.polygons[i]], *shape)
            )
            assert np.array_equal(masks.decoded(rle), masks.decoded(expected))


def test_objects_without_a_mask_are_left_out_and_counted(coco):
    number = change(coco, lambda c, o, w: o.update(segmentation=[]))
    scenes = read_coco(coco, "train2017")
    ids = [i for s in scenes.scenes for i in s.objects.ids.tolist()]
    masked = scenes.with_masks()
    kept = [i for s in masked.scenes for i in s.objects.ids.tolist()]
    assert number in ids and [i for i in ids if i != number] == kept
    assert masked.without_mask == 1 and len(masked) == len(scenes)
    for scene, other in zip(masked.scenes, scenes.scenes, strict=True):
        mine = np.isin(other.objects.ids, scene.objects.ids)
        assert np.array_equal(scene.objects.boxes, other.objects.boxes[mine])
        assert np.array_equal(scene.objects.labels, other.objects.labels[mine])


def test_coco_photos_labelled_in_stored_pixels(coco):
    scene = read_coco(coco, "train2017").scenes[1]
    assert scene.height != scene.width
    exif = Image.Exif()
    exif[274] = 6
    photo(coco / scene.file, scene.height, scene.width, 0)
    with Image.open(coco / scene.file) as image:
        image.save(coco / scene.file, exif=exif)
    result, _ = problems(coco, "coco")
    assert len(result) == 1 and result[0].startswith(f"{coco / scene.file}: is turned by its EXIF")


NESTED = '{"images": ' + "[" * 5000 + "]" * 5000 + ', "annotations": [], "categories": []}'
MANY = '{"images": [' + ",".join(["[]"] * 200_000) + '], "annotations": [], "categories": []}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NESTED, r"not valid JSON \(lists or objects are nested too deep\)"),
        (
            MANY,
            r"not valid JSON \(200,00. lists and objects in 600,0.. bytes: too many for",
        ),
        ("x" * 100, r"not valid JSON \(it is not a JSON object\)"),
        ('{"images": ' + "9" * 5000 + "}", "not valid JSON .*4300 digits"),
        (os.mkfifo, "cannot be read: is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read: is not a regular file"),
        (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic"),
        (lambda path: path.touch() or os.truncate(path, 2**40), "1,099,511,627,776 bytes, at most"),
    ],
    ids=["nested", "many", "text", "digits", "pipe", "device", "loop", "large"],
)
def test_coco_files_that_would_hang_or_fill_the_memory(coco, content, message):
    path = coco / "annotations" / "instances_train2017.json"
    path.unlink()
    if callable(content):
        content(path)
    else:
        path.write_text(content)
    result, _ = problems(coco, "coco")
    assert re.match(re.escape(str(path)) + ": .*" + message, result[0]) and len(result) == 1
    assert len(result[0]) < 1000


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(10)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{LAUGHS}]><annotation>&k;</annotation>".encode(), "not well-formed XML .*amplification"),
        (xml(60, 80, [("狗", 5, 5, 9, 9, 0)]).encode("gbk"), "is not in UTF-8 .*iconv"),
        (
            b'<?xml version="1.0" encoding="martian"?><annotation/>',
            "is not in the encoding martian that it declares",
        ),
        (
            b'<?xml version="1.0" encoding="punycode"?><annotation>-' + b"a" * 2**21,
            "declares the encoding punycode, which cannot be used for files",
        ),
        (b"<annotation>" + b"<a/>" * 2**20, "4,194,316 bytes, at most 4,194,304 are read"),
        (xml(10**9, 80, []).encode(), "size/height is '1000000000'"),
        (xml(10**8, 80, []).encode(), "size is 80x100000000: the limit is 89,478,485 pixels"),
        (xml(60, 80, [("cow", 5, 5, "1e999", 9, 0)]).encode(), "outside the image"),
        (os.mkfifo, "annotation cannot be read: is not a regular file"),
    ],
)
def test_voc_files_that_are_refused(devkit, content, message):
    path = devkit / VOC
    path.unlink()
    photo(devkit / IMAGE, 60, 80, 0)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    result, _ = problems(devkit, "voc")
    assert len(result) == 1 and re.match(re.escape(str(path)) + ": .*" + message, result[0]), result
    assert len(result[0]) < 1000


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "latin-1", "utf-16", "utf-8-sig"])
def test_voc_files_in_an_encoding_that_they_declare(devkit, encoding):
    name = "chaton" if encoding == "latin-1" else "猫"
    declared = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    path = devkit / VOC
    height, width = voc.parse(path).height, voc.parse(path).width
    path.write_bytes((declared + xml(height, width, [(name, 5, 5, 9, 9, 0)])).encode(encoding))
    assert problems(devkit, "voc")[0] == []
    assert voc.parse(path).names == [name]


@pytest.mark.parametrize("extension", [".png", ".JPG", ".jpeg", ".PNG", ".bmp"])
def test_voc_images_with_another_extension(devkit, extension):
    folder = devkit / "VOC2012" / "JPEGImages"
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix(extension))
        path.unlink()
    assert problems(devkit, "voc") == ([], [])
    scenes = read_voc(devkit, [(2012, "train")])
    assert all(s.file.endswith(extension) and (devkit / s.file).is_file() for s in scenes.scenes)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "{} 1",
        "{}   -1",
        "{}.jpg",
        "{}.JPG",
        "/data/VOC/JPEGImages/{}.jpg",
        "{}.jpg 1",
        "{} x",
    ],
)
@pytest.mark.parametrize("name", ["{}", "img {}", "a.b {} 1", "{}.jpg"])
def test_voc_lists(devkit, line, name):
    """With flags, folders and extensions, of names that hold spaces and dots."""
    if line == "{} x" and name != "{}":
        pytest.skip("a second word is no part of the name only where the first is one")
    for folder in ("JPEGImages", "Annotations"):
        for path in list((devkit / "VOC2012" / folder).iterdir()):
            path.rename(path.with_name(name.format(path.stem) + path.suffix))
    names = [name.format(n) for n in (devkit / LIST).read_text().split()]
    for file in (devkit / LIST, devkit / LIST.replace("val", "train")):
        own = [name.format(n) for n in file.read_text().split()]
        file.write_text("\ufeff" + "".join(line.format(n) + "\r\n" for n in own), encoding="utf-8")
    assert voc.listed(devkit, 2012, "val") == (names, [])
    assert problems(devkit, "voc") == ([], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.write_bytes(b"\xff\xfe0\x001\x00"), "not UTF-8"),
        (
            lambda path: path.write_text("".join(f"{n}\n" for n in range(2000))),
            "2,000 of its images have no annotation, first '0'",
        ),
    ],
)
def test_voc_lists_that_are_refused(devkit, content, message):
    path = devkit / LIST
    path.unlink()
    content(path)
    result, _ = problems(devkit, "voc")
    assert len(result) == 1 and re.match(re.escape(str(path)) + ": .*" + message, result[0]), result


def test_voc_classes_and_objects_to_look_at(devkit):
    for path in (devkit / "VOC2012" / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    path = next(p for p in (devkit / "VOC2012" / "Annotations").iterdir() if "cow" in p.read_text())
    path.write_text(path.read_text().replace("cow", "Cow", 1))
    result, notes = problems(devkit, "voc")
    assert result == [] and len(notes) == 2
    assert "the classes Cow and cow differ in case only" in notes[0]
    assert "every object of 2012 val is marked difficult, so there is no AP" in notes[1]
