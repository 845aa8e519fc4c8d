"""`data check` on annotated folders, and whether there are images enough."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import planning
import pytest
from annotated import make_voc
from command_line import write_images

from lewel_bench.evals import splits
from lewel_bench.evals.dataset import Dataset
from lewel_bench.harness.cli import main
from lewel_bench.harness.jobs import job
from lewel_bench.harness.plan import contents, fits
from lewel_bench.harness.plan import data_check as material
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.plan.suites import PAPER, SHAPES
from lewel_bench.harness.verbs.data import check_annotations
from tests.evals.segmentation.making import devkit


@pytest.mark.parametrize(
    ("lists", "tasks"),
    [("Segmentation", "segmentation"), ("Main", "detection"), ("", "detection and segmentation")],
)
def test_a_devkit_is_checked_for_what_its_lists_are_of(
    lists: str, tasks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = devkit(tmp_path / "VOCdevkit")
    sets = root / "VOC2012" / "ImageSets"
    if lists:  # Main: images without the annotations of detection
        (sets / "Segmentation").rename(sets / lists)
    else:
        shutil.rmtree(sets / "Segmentation")
    code = check_annotations(root, "voc")
    output = capsys.readouterr()
    assert f"{root} (voc, {tasks}): " in output.out
    if lists == "Segmentation":  # sound, though nothing in it is for detection
        assert (code, output.err) == (0, "")
    else:
        assert code == 2 and ("Annotations" if lists else "not a VOC data set") in output.err


def test_what_is_configured_as_imagenet_must_be_imagenet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path / "imagenet")
    monkeypatch.chdir(tmp_path)
    assert check(root) == 0  # a folder of one's own
    (tmp_path / "lewel-bench.toml").write_text('[data]\nimagenet = "imagenet"\n')
    for what in ("imagenet", str(root)):
        capsys.readouterr()
        assert check(Path(what)) == 2
        output = capsys.readouterr()
        assert (
            "train has 48 images of 3 classes, not ImageNet-1K's 1,281,167 of 1,000" in output.err
        )
        assert "val has 18 images of 3 classes, not ImageNet-1K's 50,000 of 1,000" in output.err
        assert f"--data {root}" in output.err and "sound" not in output.out
    # and a run refuses it, but not as data of one's own
    mine = Datasets(Site(), tmp_path, PAPER, {"": root})("imagenet", "")
    named = Dataset(name="imagenet", id="imagenet", root=str(root))
    material._check_once(mine, "images", tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="not ImageNet-1K's"):
            material._check_once(named, "images", tmp_path)


@pytest.mark.parametrize(
    ("sets", "classes", "sound"),
    [
        ({(2012, "train"): 4, (2012, "val"): 4}, ("cat", "cow"), False),
        ({(2007, "train"): 4, (2007, "val"): 4}, ("cat", "cow"), True),
        ({(2012, "train"): 4, (2012, "val"): 4}, ("cat", "yak"), True),  # data of one's own
    ],
)
def test_a_part_of_voc_without_2007_is_not_for_detection(
    sets: Any, classes: Any, sound: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_voc(tmp_path / "VOCdevkit", sets, classes)
    assert check(root) == (0 if sound else 2)
    err = capsys.readouterr().err
    assert ("without VOC2007, which voc07_det_c4 trains and" in err) == (not sound)
    data = Datasets(Site(), tmp_path, SHAPES, {"voc": root})("voc", "detection")
    if sound:
        material._check_once(data, "detection", tmp_path)
    else:
        with pytest.raises(ValueError, match="without VOC2007"):
            material._check_once(data, "detection", tmp_path)


def test_what_is_configured_as_voc_must_have_all_its_images(tmp_path: Path) -> None:
    sets = {(2007, "trainval"): 4, (2007, "test"): 4, (2012, "trainval"): 4}
    root = make_voc(tmp_path / "VOCdevkit", sets)
    named = Dataset(name="voc", id="voc", root=str(root), layout="voc")
    with pytest.raises(
        ValueError, match=r"train has 8 images of 3 classes, not VOC07\+12's 16,551"
    ):
        material._check_once(named, "detection", tmp_path)


@pytest.fixture
def many_broken(tmp_path: Path) -> Path:
    """Class folders with 5 empty files and 1 text file."""
    root = write_images(tmp_path / "images")
    for n in range(5):
        next((root / "train").iterdir()).joinpath(f"empty{n}.jpg").touch()
    next((root / "val").iterdir()).joinpath("text.jpg").write_text("x")
    return root


def check(root: Path, *options: str) -> int:
    return main(["data", "check", str(root), *options])


def test_a_kind_of_problem_is_one_line_and_all_lists_every_place(
    many_broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(many_broken) == 2
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("problem: 5 times: is empty: replace the file")
    assert all(f"empty{n}.jpg" in lines[0] for n in range(3)) and "empty3.jpg" not in lines[0]
    assert "text.jpg: is not a readable image (unknown format)" in lines[1]
    assert f"{many_broken}: 6 problems\n--all lists every problem\n" in output.out
    assert check(many_broken, "--all") == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 6 and "--all" not in output.out


def test_what_run_refuses_is_grouped_too(many_broken: Path, tmp_path: Path) -> None:
    data = Datasets(Site(), tmp_path, SHAPES, {"": many_broken})("imagenet", "")
    with pytest.raises(ValueError, match="has problems") as error:
        material._check_once(data, "images", tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and "5 times: is empty" in lines[1]
    assert f"lewel-bench data check {many_broken} --all" in lines[-1]


def test_files_left_out_are_named_by_run_and_in_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "images")
    (root / "train" / "class0" / "a.heic").touch()
    data = Datasets(Site(), tmp_path, SHAPES, {"": root})("imagenet", "")
    note = f"note: {root}/train: skipped files: 1 .heic\n"
    material._check_once(data, "images", tmp_path)
    assert capsys.readouterr().err == f"checking images at {root}\n{note}"
    material._check_once(data, "images", tmp_path)  # remembered, with its notes
    assert capsys.readouterr().err == note
    (root / "train" / "class0" / "a.heic").rename(root / "train" / "class0" / "b.tiff")
    with pytest.raises(ValueError, match=r"b\.tiff: is empty"):
        material._check_once(data, "images", tmp_path)
    (root / "train" / "class0" / "b.tiff").rename(root / "train" / "class0" / "a.heic")
    images = splits.read(data, "train")
    whole = contents.contents(images)
    assert (whole.images, whole.classes, whole.per_class) == (48, 3, (16, 16))
    description = job._described(data, images.take(np.arange(5)), whole)
    assert (description.left_out, description.images, description.whole) == ({".heic": 1}, 5, whole)
    assert job._described(data, splits.read(data, "val"), whole).left_out == {}


def test_what_asks_for_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    datasets = Datasets(Site(), tmp_path, SHAPES, {"": write_images(tmp_path / "images")})
    small = ("batch", 8), ("bn_group", 8), ("args.queue", 16)

    def check(*settings: tuple[str, object]) -> None:
        (planned,) = planning.jobs(
            SHAPES, datasets, method=("pcl_200ep",), evals=("none",), settings=settings
        )
        fits.check_data([planned], lambda job: fits.Place(1, True))

    with pytest.raises(ValueError, match=r"batch 64 is more than the 48 .* --set batch=12"):
        check()
    with pytest.raises(ValueError, match=r"200 clusters, more than .* --set args.clusters=2"):
        check(*small)
    check(*small, ("args.clusters", "2,48"))
