"""`data check` on annotated folders."""

import argparse
import shutil
from pathlib import Path

import pytest

from lewel_bench.harness import material
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
