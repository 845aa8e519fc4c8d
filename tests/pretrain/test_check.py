"""What `check` says about good and bad data sets."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from photos import drawn, extract
from PIL import Image

from lewel_bench.pretrain.check import check, fingerprint
from lewel_bench.pretrain.data import read_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with 6 training and 3 validation images each."""
    for split, count in (("train", 6), ("val", 3)):
        for name in "ab":
            for i in range(count):
                path = tmp_path / "set" / split / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(drawn(24, 30, i)).save(path)
    return tmp_path / "set"


def test_a_good_data_set_has_counts_and_no_problems(root: Path) -> None:
    report = check(root)
    assert report.problems == [] and report.notes == []
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, train.decoded, train.per_class) == (12, 12, {"a": 6, "b": 6})
    assert (val.images, val.folder, val.per_class) == (6, root / "val", {"a": 3, "b": 3})
    assert train.fingerprint == fingerprint(read_folder(root, "train"))


def test_everything_wrong_is_named_at_once(root: Path) -> None:
    train = root / "train"
    data = (train / "a" / "0.jpg").read_bytes()
    (train / "a" / "cut.jpg").write_bytes(data[: len(data) // 2])
    (train / "a" / "text.jpg").write_text("hello")
    (train / "b" / "empty.jpg").touch()
    Image.new("RGB", (1, 1)).save(train / "b" / "dot.png")
    Image.new("RGB", (7, 30)).save(root / "val" / "b" / "thin.png")
    (root / "val" / "a" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    report = check(root)
    for name, reason in [
        ("train/a/cut.jpg", "truncated"),
        ("train/a/text.jpg", "unknown format"),
        ("train/b/empty.jpg", "is empty"),
        ("train/b/dot.png", "1x1 px is too small"),
    ]:
        actual = [p for p in report.problems if str(root / name) in p]
        assert len(actual) == 1 and reason in actual[0].lower()
    assert any("gone.jpg: cannot be read: No such file" in p for p in report.problems)
    assert any("thin.png: an image of 7x30 px is too small" in p for p in report.problems)
    assert len(report.problems) == 6


def test_converted_and_left_out_files_are_notes(root: Path) -> None:
    train = root / "train" / "a"
    image = Image.fromarray(drawn(24, 30, 9))
    image.convert("L").save(train / "grey.jpg")
    image.convert("L").save(train / "grey2.png")
    image.convert("CMYK").save(train / "cmyk.jpg")
    image.save(train / "png.JPEG", format="PNG")
    image.convert("P").save(train / "palette.png")
    (train / "notes.txt").write_text("x")
    report = check(root)
    assert report.problems == []
    place = root / "train"
    assert report.notes == [
        f"{place}: converted to RGB: 1 CMYK, first a/cmyk.jpg",
        f"{place}: converted to RGB: 1 JPEG-named PNG, first a/png.JPEG",
        f"{place}: converted to RGB: 1 P-mode, first a/palette.png",
        f"{place}: converted to RGB: 2 greyscale, first a/grey.jpg",
        f"{place}: skipped files: 1 .txt",
    ]


def test_classes_that_do_not_match_are_reported(root: Path) -> None:
    for path in (root / "val" / "b").iterdir():
        path.unlink()
    (root / "val" / "b").rmdir()
    report = check(root)
    assert report.problems == []
    assert report.splits["val"].per_class == {"a": 3, "b": 0}
    assert "classes of the training set without images here: 1, first 'b'" in report.notes[0]
    (root / "val" / "c").mkdir()
    Image.new("RGB", (9, 9)).save(root / "val" / "c" / "1.png")
    (problem,) = check(root).problems
    assert "1 classes are not in the training set, first 'c'" in problem


def test_classes_that_differ_in_case_only_are_named(root: Path) -> None:
    (root / "train" / "a").rename(root / "train" / "caf\u00e9")
    for name in ("B", "cafe\u0301"):
        (root / "train" / name).mkdir()
        Image.new("RGB", (9, 9)).save(root / "train" / name / "1.png")
    notes = [note for note in check(root).notes if "are they the same class?" in note]
    assert len(notes) == 2 and "'B', 'b'" in notes[0] and "cafe\u0301" in notes[1]


def test_what_cannot_be_read_leaves_the_rest_checked(root: Path) -> None:
    os.mkfifo(root / "train" / "a" / "pipe.jpg")
    (root / "train" / "b" / "self").symlink_to(".")
    (root / "train" / "b" / "cut.jpg").write_bytes(b"\xff\xd8")
    report = check(root)
    assert report.splits["train"].images == 13
    names = ("pipe.jpg", "self", "cut.jpg")
    assert len(report.problems) == 3
    assert all(n in p for n, p in zip(names, report.problems, strict=True))
    os.rename(root / "train", os.fsencode(root) + b"/only")
    os.mkdir(root / "train")
    os.rename(root / "only", os.fsencode(root) + b"/train/\xe9")
    (problem,) = [p for p in check(root).problems if "/train" in p]
    assert problem == f"{root}/train/\\udce9: the name is not UTF-8: rename it"


def test_unusable_folders_are_problems_and_never_raise(root: Path, tmp_path: Path) -> None:
    assert len(check(tmp_path / "absent").problems) == 2
    (tmp_path / "empty").mkdir()
    assert all("it is empty" in p for p in check(tmp_path / "empty").problems)
    single = check(root, classes=["a"])
    assert len(single.problems) == 2 and "only one class folder ('a')" in single.problems[0]
    flat = tmp_path / "flat"
    (flat / "val").mkdir(parents=True)
    for i in range(3):
        (flat / "val" / f"ILSVRC2012_val_{i:08}.JPEG").touch()
    assert any("3 image files without class folders" in p for p in check(flat).problems)


def test_a_sample_is_decoded_unless_everything_is_asked_for(root: Path) -> None:
    (root / "train" / "a" / "0.jpg").write_text("broken")
    report = check(root, sample=4)
    assert report.splits["train"].decoded == report.splits["val"].decoded == 4
    assert f"{root / 'train'}: 4 of 12 images were decoded" in report.notes
    assert report == check(root, sample=4)
    full = check(root, sample=4, full=True)
    assert full.splits["train"].decoded == 12
    assert len(full.problems) == 1 and "a/0.jpg" in full.problems[0]


def test_the_fingerprint_follows_names_and_sizes_and_nothing_else(
    root: Path, tmp_path: Path
) -> None:
    images = read_folder(root, "train")
    before = fingerprint(images)
    files = [f"{name}/{i}.jpg" for name in "ab" for i in range(6)]  # keys of runs depend on this
    lines = "".join(f"{file}\0{(root / 'train' / file).stat().st_size}\n" for file in files)
    assert before == hashlib.sha256(lines.encode()).hexdigest()[:12]
    (root / "train" / "a" / "notes.txt").write_text("no image")
    assert fingerprint(read_folder(root, "train")) == before
    root.rename(tmp_path / "moved")
    moved = read_folder(tmp_path / "moved", "train")
    os.utime(moved.root / moved.files[0], (1, 1))
    assert fingerprint(moved) == before
    assert fingerprint(moved.take(np.arange(len(moved))[::-1])) == before
    assert fingerprint(moved.take(np.arange(len(moved) - 1))) != before
    with (moved.root / moved.files[3]).open("ab") as file:
        file.write(b"x")
    longer = fingerprint(moved)
    assert longer != before
    (moved.root / moved.files[3]).rename(moved.root / "a" / "renamed.jpg")
    assert fingerprint(read_folder(tmp_path / "moved", "train")) not in (before, longer)


def test_a_real_data_set_is_sound(tmp_path: Path) -> None:
    extract("clothing10-128.tar.gz", tmp_path)
    report = check(tmp_path / "clothing10")
    assert report.problems == [] and report.notes == []
    assert report.splits["train"].images == 1000
    assert set(report.splits["train"].per_class.values()) == {100}
    assert set(report.splits["val"].per_class.values()) == {24}
