"""`data check` on annotated folders, and whether there are images enough."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import write_images

from lewel_bench.harness import fits, job, material, plan, splits
from lewel_bench.harness.cells import Selection
from lewel_bench.harness.cli import main
from lewel_bench.harness.datasets import Datasets
from lewel_bench.harness.site import Site
from lewel_bench.harness.suites import SHAPES
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
    arguments = argparse.Namespace(format="text", full=False, all=False)
    code = material._check_annotations(root, "voc", arguments)
    said = capsys.readouterr()
    assert f"{root} (voc, {tasks}): " in said.out
    if lists == "Segmentation":  # sound, though nothing in it is for detection
        assert (code, said.err) == (0, "")
    else:
        assert code == 2 and ("Annotations" if lists else "no VOC data set") in said.err


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
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("problem: 5 times: is empty: replace the file")
    assert all(f"empty{n}.jpg" in lines[0] for n in range(3)) and "empty3.jpg" not in lines[0]
    assert "text.jpg: is no readable image (unknown format)" in lines[1]
    assert f"{many_broken}: 6 problems\n--all lists every place\n" in said.out
    assert check(many_broken, "--all") == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 6 and "--all" not in said.out


def test_what_run_refuses_is_grouped_too(many_broken: Path, tmp_path: Path) -> None:
    data = Datasets(Site(), tmp_path, SHAPES, {"": many_broken})("imagenet", "")
    with pytest.raises(ValueError, match="cannot be used as it is") as error:
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
    note = f"note: {root}/train: files that are left out: 1 .heic\n"
    material._check_once(data, "images", tmp_path)
    assert capsys.readouterr().err == f"checking images at {root}\n{note}"
    material._check_once(data, "images", tmp_path)  # remembered, with its notes
    assert capsys.readouterr().err == note
    (root / "train" / "class0" / "a.heic").rename(root / "train" / "class0" / "b.tiff")
    with pytest.raises(ValueError, match=r"b\.tiff: is empty"):
        material._check_once(data, "images", tmp_path)
    (root / "train" / "class0" / "b.tiff").rename(root / "train" / "class0" / "a.heic")
    images = splits.read(data, "train")
    assert job._described(data, images.take(np.arange(5))).left_out == {".heic": 1}
    assert job._described(data, splits.read(data, "val")).left_out == {}


def test_what_asks_for_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    datasets = Datasets(Site(), tmp_path, SHAPES, {"": write_images(tmp_path / "images")})
    small = ("batch", 8), ("bn_group", 8), ("args.queue", 16)

    def check(*settings: tuple[str, object]) -> None:
        selection = Selection(methods=("pcl_200ep",), evals=("none",), settings=settings)
        (planned,) = plan.plan(selection, SHAPES, datasets)
        fits.check_data([planned], lambda one: fits.Place(1, True))

    with pytest.raises(ValueError, match=r"batch 64 is more than the 48 .* --set batch=12"):
        check()
    with pytest.raises(ValueError, match=r"200 clusters are more .* --set args.clusters=2"):
        check(*small)
    check(*small, ("args.clusters", "2,48"))
