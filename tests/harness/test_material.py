"""`data check` on annotated folders, and whether there are images enough."""

import argparse
import shutil
from pathlib import Path

import pytest
from command_line import write_images

from lewel_bench.harness import material, plan
from lewel_bench.harness.cells import Selection
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
    arguments = argparse.Namespace(format="text", full=False)
    code = material._check_annotations(root, "voc", arguments)
    said = capsys.readouterr()
    assert f"{root} (voc, {tasks}): " in said.out
    if lists == "Segmentation":  # sound, though nothing in it is for detection
        assert (code, said.err) == (0, "")
    else:
        assert code == 2 and ("Annotations" if lists else "no VOC data set") in said.err


def test_what_asks_for_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    datasets = Datasets(Site(), tmp_path, SHAPES, {"": write_images(tmp_path / "images")})
    small = ("batch", 8), ("bn_group", 8), ("args.queue", 16)

    def check(*settings: tuple[str, object]) -> None:
        selection = Selection(methods=("pcl_200ep",), evals=("none",), settings=settings)
        (job,) = plan.plan(selection, SHAPES, datasets)
        material._fits(job, job.data)

    with pytest.raises(ValueError, match=r"batch 64 is more than the 48 .* --set batch=12"):
        check()
    with pytest.raises(ValueError, match=r"200 clusters are more .* --set args.clusters=2"):
        check(*small)
    check(*small, ("args.clusters", "2,48"))
