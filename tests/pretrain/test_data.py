"""Reading folders and files: the images, the refused layouts and the error messages."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import drawn, extract
from PIL import Image

from lewel_bench.pretrain.data import (
    Images,
    decode,
    holdout,
    read_classes,
    read_folder,
    subset,
    subset_from_list,
)
from lewel_bench.pretrain.folder import counted, list_folder


def picture(path: Path, seed: int = 0, mode: str = "RGB", side: int = 24, **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn(side, side + 4, seed)).convert(mode).save(path, **save)
    return path


def folder(root: Path, names: dict[str, list[str]]) -> Path:
    """Empty files below `root`: reading a folder looks at names only."""
    root.mkdir(exist_ok=True)
    for place, files in names.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for file in files:
            (root / place / file).touch()
    return root


def some(sizes: list[int]) -> Images:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    files = tuple(f"c{label:03}/{i:06}.jpg" for i, label in enumerate(labels))
    return Images(Path("root"), files, labels, tuple(f"c{i:03}" for i in range(len(sizes))))


# --- folders


def test_files_are_sorted_labelled_and_of_any_extension_in_any_case(tmp_path: Path) -> None:
    folder(
        tmp_path,
        {
            "train/b": ["2.JPEG", "10.jpg", "1.PnG", "notes.txt"],
            "train/a": ["x.webp", ".hidden.jpg"],
            "train/c/images": ["deep.bmp"],
            "train/.cache": ["y.jpg"],
            "validation/b": ["v.jpg"],
            "validation/c": ["w.jpg"],
        },
    )
    train = read_folder(tmp_path, "train")
    assert train.classes == ("a", "b", "c")
    assert train.files == ("a/x.webp", "b/1.PnG", "b/10.jpg", "b/2.JPEG", "c/images/deep.bmp")
    assert train.labels.tolist() == [0, 1, 1, 1, 2]
    assert train.root == tmp_path / "train"
    assert len(train) == 5
    part = train.take(np.array([4, 0]))
    assert part.files == ("c/images/deep.bmp", "a/x.webp")
    assert part.labels.tolist() == [2, 0] and part.classes == train.classes


def test_val_is_numbered_as_train_even_where_it_lacks_a_class(tmp_path: Path) -> None:
    folder(tmp_path, {f"train/{c}": ["1.jpg"] for c in "abcd"})
    folder(tmp_path, {f"test/{c}": ["1.jpg"] for c in "bd"})
    val = read_folder(tmp_path, "val")
    assert val.classes == ("a", "b", "c", "d")
    assert val.labels.tolist() == [1, 3]


def test_a_class_list_chooses_and_its_order_does_not_matter(tmp_path: Path) -> None:
    folder(tmp_path, {f"train/n{c}": ["1.jpg"] for c in range(6)})
    (tmp_path / "list.txt").write_bytes(b"n4 garden hose\r\n\r\nn1\r\nn3\n")
    assert read_classes(tmp_path / "list.txt") == ["n4", "n1", "n3"]
    images = read_folder(tmp_path, "train", tmp_path / "list.txt")
    assert images.classes == ("n1", "n3", "n4")
    assert images.files == ("n1/1.jpg", "n3/1.jpg", "n4/1.jpg")
    assert read_folder(tmp_path, "train", ["n3", "n1"]).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "split", "classes", "message"),
    [
        ({}, "train", None, r"no folder train/ \(it is empty\)"),
        ({"train": []}, "train", None, r"train: no class folders \(it is empty\)"),
        ({"train/a": ["1.jpg"]}, "train", None, r"only one class folder \('a'\)"),
        ({"train/a": ["1.jpg"], "train/b": []}, "train", None, r"train/b: class folder without"),
        ({"train/a": ["1.jpg"], "train/b": ["1.txt"]}, "train", None, r"b: class folder without"),
        (
            {"a": ["1.jpg"], "b": ["1.jpg"]},
            "train",
            None,
            r"no folder train/ \(found a, b\); expec",
        ),
        ({"val": [f"{i}.JPEG" for i in range(12)]}, "val", None, "12 image files without class"),
        ({"train/a": []}, "val", None, "no folder val/ or validation/ or valid/ or test/"),
        (
            {"train/a": ["1.jpg"], "train/b": ["1.jpg"], "val/a": ["1.jpg"], "val/x": ["1.jpg"]},
            "val",
            None,
            "1 classes are not in the training set, first 'x'",
        ),
        ({"train/a": ["1.jpg"]}, "train", ["a", "q", "p"], "2 of the 3 listed classes, first 'p'"),
        ({"train/a": ["1.jpg"]}, "train", ["a", "a"], "names 'a' twice"),
        ({"train/a": ["1.jpg"]}, "train", [], "the class list is empty"),
        ({"train/a": ["1.jpg"]}, "train", Path("none.txt"), "none.txt: class list cannot be read"),
    ],
)
def test_a_wrong_folder_is_named_with_what_was_found(
    tmp_path: Path, names: dict[str, list[str]], split, classes, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_folder(folder(tmp_path / "set", names), split, classes)
    assert str(tmp_path) in str(error.value) or "list" in str(error.value)


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    folder(
        tmp_path,
        {
            "train": ["labels.csv", "loose.jpg", ".DS_Store"],
            "train/a": ["1.jpg", "2.heic", "3.HEIC", "._1.jpg", "Makefile"],
            "train/a/.ipynb_checkpoints": ["1.jpg"],
            "train/b/more": ["1.tif", "2.ppm", "3.gif", "4.jfif", "5.jp2", "6.avif", "a.xml"],
            "train/__MACOSX": ["._1.jpg"],
        },
    )
    images = read_folder(tmp_path, "train")
    assert images.classes == ("a", "b") and len(images) == 7
    assert images.left_out == {
        "hidden": 4,
        ".heic": 2,
        ".csv": 1,
        ".xml": 1,
        "images outside the class folders": 1,
        "without an extension": 1,
    }
    assert counted(images.left_out).startswith("4 hidden, 2 .heic, 1 ")
    assert images.take(np.array([0])).left_out == images.left_out
    folder(tmp_path, {"train/c": [f"x.{n}" for n in range(50)]})
    with pytest.raises(ValueError, match="train/c: class folder without images") as error:
        read_folder(tmp_path, "train")
    assert re.search(
        r"\(it contains 40 others, 1 \.0, .*; AVIF, .*JPEG, .* are read\)", str(error.value)
    )


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda a: os.mkfifo(a / "x.jpg"), "a/x.jpg: is not a regular file: remove it"),
        (lambda a: (a / "x.jpg").symlink_to("/dev/zero"), "a/x.jpg: is not a regular file"),
        (lambda a: (a / "x.jpg").symlink_to("x.jpg"), "a/x.jpg: cannot be read: Too many levels"),
        (lambda a: (a / "x").symlink_to("x"), "a/x: cannot be read: Too many levels"),
        (lambda a: (a / "x.jpg").symlink_to("gone"), "a/x.jpg: cannot be read: No such file"),
        (lambda a: (a / "x").symlink_to("."), "a/x: the link leads back to a folder that it is in"),
        (lambda a: (a / "x").symlink_to("/"), "a/x: the link leads back to a folder that it is in"),
        (lambda a: (a.parent / "x").symlink_to(".."), "train/x: the link leads back to a folder"),
        (lambda a: (a.parent / "x").symlink_to("x"), "train/x: cannot be read: Too many levels"),
        (
            lambda a: os.link(a / "1.jpg", os.fsencode(a) + b"/\xe9.jpg"),
            r"a/\udce9.jpg: the name is not UTF-8",
        ),
        (lambda a: os.mkdir(os.fsencode(a) + b"/\xe9"), r"a/\udce9: the name is not UTF-8"),
        (lambda a: os.mkdir(os.fsencode(a) + b"\xe9"), r"train/a\udce9: the name is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, spoil, problem: str) -> None:
    folder(tmp_path, {"train/a": ["1.jpg"], "train/b": ["1.jpg"]})
    spoil(tmp_path / "train" / "a")
    with pytest.raises(ValueError, match=re.escape(problem)) as error:
        read_folder(tmp_path, "train")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    images, problems = list_folder(tmp_path, "train")
    assert images.files == ("a/1.jpg", "b/1.jpg") and len(problems) == 1


def test_each_folder_of_a_class_is_read_once(tmp_path: Path) -> None:
    """Links can lead to a folder in 2^20 ways, or around a circle that holds no folder twice."""
    folder(tmp_path, {"train/a": ["1.jpg"], "train/b": ["1.jpg"], "0": ["x.jpg"], "19": []})
    for n in range(20):
        (tmp_path / f"{n}").mkdir(exist_ok=True)
        for name in "lr":
            (tmp_path / f"{n}" / name).symlink_to(tmp_path / f"{n + 1}")
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "back").symlink_to(tmp_path / "0")
    (tmp_path / "train" / "a" / "x").symlink_to(tmp_path / "0")
    images, problems = list_folder(tmp_path, "train")
    assert images.files == ("a/1.jpg", "a/x/x.jpg", "b/1.jpg")
    assert len(problems) == 21
    with pytest.raises(ValueError, match="21 times: the folder is reached twice, through a link"):
        read_folder(tmp_path, "train")


def test_classes_may_be_links(tmp_path: Path) -> None:
    folder(tmp_path, {"train/a": ["1.jpg"], "elsewhere": ["2.jpg"]})
    (tmp_path / "train" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "b" / "3.jpg").symlink_to(tmp_path / "train" / "a" / "1.jpg")
    assert read_folder(tmp_path, "train").files == ("a/1.jpg", "b/2.jpg", "b/3.jpg")


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent: no folder train/ .the folder does not exist"):
        read_folder(tmp_path / "absent", "train")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: no folder train/ .it is a file"):
        read_folder(tmp_path / "file", "train")


# --- decoding


@pytest.mark.parametrize(
    ("mode", "name", "save"),
    [
        ("RGB", "plain.jpg", {"quality": 90}),
        ("RGB", "full.jpeg", {"quality": 95, "subsampling": 0}),
        ("RGB", "progressive.jpg", {"progressive": True}),
        ("L", "grey.jpg", {}),
        ("CMYK", "cmyk.JPEG", {}),
        ("RGB", "really_a_png.JPEG", {"format": "PNG"}),
        ("P", "palette.png", {}),
        ("RGBA", "alpha.png", {}),
        ("1", "bits.bmp", {}),
        ("RGB", "lossy.webp", {}),
    ],
)
def test_every_kind_of_image_decodes_as_pillow_does(
    tmp_path: Path, mode: str, name: str, save: dict[str, object]
) -> None:
    path = picture(tmp_path / name, mode=mode, **save)
    pixels = decode(path)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
    assert np.array_equal(pixels, np.array(Image.open(path).convert("RGB")))


def test_a_rotation_tag_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = picture(tmp_path / "turned.jpg", exif=exif)
    assert decode(path).shape == (24, 28, 3)


def test_real_photographs_decode_as_pillow_does(tmp_path: Path) -> None:
    for path in extract("clothing10-128.tar.gz", tmp_path, 40):
        assert np.array_equal(decode(path), np.array(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"a text file\n", "is not a readable image (unknown format)"),
        (b"\xff\xd8\xff\xe0 not much of a JPEG", "is not a readable image"),
    ],
)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        decode(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_truncated_jpeg_is_named(tmp_path: Path, mode: str, share: float) -> None:
    path = picture(tmp_path / "cut.jpg", mode=mode, side=200)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"is not a readable image .*[tT]runcated") as error:
        decode(path)
    assert str(path) in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_pixels_or_a_value_error(junk: bytes, at: int) -> None:
    import tempfile

    buffer = io.BytesIO()
    Image.fromarray(drawn(16, 16, 0)).save(buffer, "JPEG")
    data = buffer.getvalue()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.jpg"
        path.write_bytes(data[:at] + junk + data[at + len(junk) :])
        try:
            assert decode(path).ndim == 3
        except ValueError as error:
            assert str(path) in str(error)


def test_a_missing_file_and_one_too_small_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.jpg: cannot be read: No such file"):
        decode(tmp_path / "gone.jpg")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.jpg")
    with pytest.raises(ValueError, match=r"dot\.jpg: an image of 1x1 px is too small"):
        decode(tmp_path / "dot.jpg")


def test_the_fast_path_is_taken_for_plain_jpeg_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a: calls.append(1) or real(*a))
    for mode, count in (("RGB", 1), ("L", 1), ("CMYK", 1)):
        decode(picture(tmp_path / f"{mode}.jpg", mode=mode))
        assert len(calls) == count


# --- parts of a set


@given(
    sizes=st.lists(st.integers(2, 40), min_size=2, max_size=8),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_holdout_is_stratified_disjoint_and_complete(
    sizes: list[int], share: float, seed: int
) -> None:
    images = some(sizes)
    count = max(1, int(share * len(images)))
    barred = range(0, len(images), 5)
    free = np.bincount(
        [images.labels[i] for i in range(len(images)) if i % 5], minlength=len(sizes)
    )
    if count > np.minimum(free, np.array(sizes) - 1).sum():
        return
    rest, held_out = holdout(images, count, seed, exclude=barred)
    assert len(held_out) == count
    assert sorted([*rest, *held_out]) == list(range(len(images)))
    assert not set(held_out) & set(barred)
    per_class = np.bincount(images.labels[held_out], minlength=len(sizes))
    free = np.minimum(free, np.array(sizes) - 1)
    assert (np.abs(per_class - free * count / free.sum()) < 1).all()
    assert np.array_equal(holdout(images, count, seed, exclude=barred)[1], held_out)


def test_holdouts_of_other_seeds_differ_and_too_many_are_refused() -> None:
    images = some([50, 50])
    first, second = holdout(images, 20, 0)[1], holdout(images, 20, 1)[1]
    assert not np.array_equal(first, second)
    # 4 expected in common of 20 drawn from 100: far from all, far from none by chance
    assert 0 < len(set(first) & set(second)) < 12
    with pytest.raises(ValueError, match=r"cannot hold out 99 of 100 images: .* 1 and 98"):
        holdout(images, 99, 0)
    with pytest.raises(ValueError, match="cannot hold out 0 of 100"):
        holdout(images, 0, 0)


@given(sizes=st.lists(st.integers(1, 300), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_a_fraction_is_taken_of_every_class_and_holds_the_smaller_one(
    sizes: list[int], seed: int
) -> None:
    images = some(sizes)
    entry, ten = subset(images, 0.01, seed), subset(images, 0.1, seed)
    assert set(entry) <= set(ten)
    for part, fraction in ((entry, 0.01), (ten, 0.1)):
        assert np.array_equal(part, np.unique(part))
        want = [max(1, round(fraction * size)) for size in sizes]
        assert np.bincount(images.labels[part], minlength=len(sizes)).tolist() == want
    assert subset(images, 1, seed).tolist() == list(range(len(images)))


def test_a_fraction_out_of_range_is_refused() -> None:
    for fraction in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            subset(some([3, 3]), fraction, 0)


def test_a_published_list_names_files(tmp_path: Path) -> None:
    images = some([3, 3])
    path = tmp_path / "1percent.txt"
    path.write_bytes(b"000004.jpg\r\n000001.jpg\r\nc000/000002.jpg\n\n")
    assert subset_from_list(images, path).tolist() == [1, 2, 4]
    path.write_text("000001.jpg\nn99_1.JPEG\nn99_2.JPEG\n")
    with pytest.raises(ValueError, match=r"2 of 3 files are not in root, first 'n99_1.JPEG'"):
        subset_from_list(images, path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="empty list"):
        subset_from_list(images, path)
    with pytest.raises(ValueError, match=r"absent\.txt: list of files cannot be read"):
        subset_from_list(images, tmp_path / "absent.txt")


def test_a_listed_name_in_two_classes_is_refused(tmp_path: Path) -> None:
    images = Images(Path("r"), ("a/1.jpg", "b/1.jpg"), np.array([0, 1]), ("a", "b"))
    path = tmp_path / "list.txt"
    path.write_text("1.jpg")
    with pytest.raises(ValueError, match=r"'1.jpg' exists in several class folders"):
        subset_from_list(images, path)
    path.write_text("b/1.jpg")
    assert subset_from_list(images, path).tolist() == [1]
