import os
from pathlib import Path

import pytest
from command_line import write_images

from lewel_bench.harness.plan import datasets, suites
from lewel_bench.harness.plan.datasets import Datasets, MissingData
from lewel_bench.harness.plan.site import Site

PAPER = suites.SUITES["paper"]


def _datasets(tmp_path: Path, **data: str) -> Datasets:
    return Datasets(Site(data=data), tmp_path / "runs", PAPER)


def test_missing_imagenet_says_how_to_configure_it(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        _datasets(tmp_path)("imagenet", "pretrain")
    for words in ("lewel-bench.toml", "[data]", "--data", "--suite shapes"):
        assert words in str(caught.value)


def test_labelled_subsets_of_imagenet_are_the_published_lists(tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "mine.txt").write_text("n01440764_10026.JPEG\n")
    where = {"imagenet": str(tmp_path / "imagenet")}
    assert _datasets(tmp_path, **where)("imagenet", "linear").lists == {}
    with pytest.raises(MissingData, match="imagenet_1pct"):
        _datasets(tmp_path, **where)("imagenet", "semi")
    with pytest.raises(MissingData, match="not the published list"):
        mine = str(tmp_path / "mine.txt")
        _datasets(tmp_path, **where, imagenet_1pct=mine, imagenet_10pct=mine)("imagenet", "semi")


def test_class_list_of_imagenet100_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "classes.txt").write_text("n02869837\n")
    data = {"imagenet": str(tmp_path / "imagenet"), "imagenet100_classes": "classes.txt"}
    site = Site(data=data, path=tmp_path / "lewel-bench.toml")
    with pytest.raises(MissingData, match="not the published list"):
        Datasets(site, tmp_path, PAPER)("imagenet100", "pretrain")


def test_a_folder_is_known_by_its_files_and_not_by_its_place(tmp_path: Path) -> None:
    first = write_images(tmp_path / "a" / "pictures")
    second = write_images(tmp_path / "b" / "photos")
    errors = [
        Datasets(Site(), tmp_path / "runs", PAPER, {"": root})("imagenet", "linear")
        for root in (first, second)
    ]
    assert errors[0].id == errors[1].id and errors[0].id.startswith("folder-")
    (second / "val" / "class0" / "000.jpg").unlink()
    changed = Datasets(Site(), tmp_path / "runs", PAPER, {"": second})("imagenet", "linear")
    assert changed.id != errors[0].id


def test_a_fingerprint_is_kept_where_it_can_be(tmp_path: Path, monkeypatch) -> None:
    folder, root = write_images(tmp_path / "mine"), tmp_path / "runs"

    def known() -> str:
        return Datasets(Site(), root, PAPER, {"": folder})("imagenet", "linear").id

    first = known()
    assert not root.exists()
    root.mkdir()
    with monkeypatch.context() as patch:

        def refuse(path: Path, data: str) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        patch.setattr(datasets, "write_atomically", refuse)
        assert known() == first
    assert known() == first
    monkeypatch.setattr(datasets, "_measure", lambda *_: pytest.fail("measured again"))
    assert known() == first


def test_one_role_of_ones_own(tmp_path: Path) -> None:
    root = write_images(tmp_path / "mine")
    own = Datasets(Site(), tmp_path / "runs", suites.SUITES["shapes"], {"linear": root})
    assert own("shapes", "linear").name == "mine"
    assert own("shapes", "pretrain").id == datasets.shapes_id()


def test_a_name_that_a_site_file_cannot_give_is_refused_where_data_is_needed(
    tmp_path: Path,
) -> None:
    site = Site(data={"imagnet": "x"})
    with pytest.raises(ValueError, match=r"section \[data\]: unknown data set 'imagnet'. Did you"):
        Datasets(site, tmp_path, PAPER)
    Datasets(site, tmp_path, PAPER, needed=False)  # tables need none of it


def test_a_folder_whose_path_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    with pytest.raises(ValueError, match=r"caf\\udce9: the path has .* or is not UTF-8: rename"):
        Datasets(Site(), tmp_path, PAPER, {"": folder})("imagenet", "")


def test_a_link_or_pipe_beside_class_folders_does_not_stop_a_run(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "images" / "list.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "images" / "pipe.json")
    dataset = Datasets(Site(), tmp_path, PAPER, {"": tmp_path / "images"})("imagenet", "")
    assert dataset.id.startswith("folder-")


def _voc(folder: Path) -> Path:
    annotations = folder / "VOC2007" / "Annotations"
    annotations.mkdir(parents=True)
    (annotations / "a.xml").write_text("<annotation/>")
    return folder


def _voc_id(tmp_path: Path, folder: Path) -> str:
    return Datasets(Site(), tmp_path / "runs", PAPER, {"voc": folder})("voc", "detection").id


def test_what_cannot_be_read_does_not_stop_a_fingerprint(tmp_path: Path) -> None:
    folder = _voc(tmp_path / "voc")
    whole = _voc_id(tmp_path, folder)
    odd = folder / "VOC2007" / "Annotations"
    os.mkfifo(odd / "pipe.xml")
    (odd / "zero.xml").symlink_to("/dev/zero")
    (odd / "dangling.jpg").symlink_to("nowhere")
    (odd / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    (folder / "VOC2007" / "JPEGImages").symlink_to(folder)  # a loop
    (folder / "disk").symlink_to("/")
    assert _voc_id(tmp_path, folder) != whole


def test_data_behind_links_are_known_by_their_files(tmp_path: Path) -> None:
    """Two folders of nothing but links have other fingerprints, and a change is noticed."""
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        data = _voc(tmp_path / f"data-{place.name}")
        (data / "VOC2007" / "Annotations" / f"{place.name}.xml").write_text("<annotation/>")
        place.mkdir()
        (place / "VOC2007").symlink_to(data / "VOC2007")
    first, second = (_voc_id(tmp_path, place) for place in places)
    assert first != second == _voc_id(tmp_path, tmp_path / "data-b")
    images = write_images(tmp_path / "images")
    folder = tmp_path / "linked"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).symlink_to(images / split)
    before = datasets.stamp(folder)
    os.utime(images / "train" / "class0", (1, 1))  # as when a file is added
    assert datasets.stamp(folder) != before
