"""Small inputs from public bug reports of this field, and how each is answered.

The inputs are made by the scripts of `shared/cases` beside the repository; without it (and without
$LEWEL_BENCH_TEST_DATA, the folder next to it) these tests skip.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from photos import DATA

CASES = DATA.parent / "cases"
Made = Callable[..., Path]

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not at hand")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Run a script of the cases once; returns the folder with what it made."""
    folders: dict[str, Path] = {}

    def run(script: str, *arguments: str | Path) -> Path:
        if script not in folders:
            folder = tmp_path_factory.mktemp(Path(script).stem) / "cases"
            subprocess.run(
                [sys.executable, CASES / script, *arguments, folder],
                check=True,
                capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            folders[script] = folder
        return folders[script]

    return run


# --- COCO folders: make_det.py ---------------------------------------------------------------


# --- VOC folders: make_voc.py ----------------------------------------------------------------


# --- Segmentation masks: make_seg.py ---------------------------------------------------------


# --- Class folders: make_folders.py ----------------------------------------------------------


# --- Checkpoints: make_ck.py -----------------------------------------------------------------


# --- Hostile checkpoints: hostile_checkpoints.py ---------------------------------------------


# --- Terminal: env_*.sh ----------------------------------------------------------------------


# --- Run roots: no_hard_links, no_flock, two_users -------------------------------------------


# --- Clusters: fake_slurm.sh -----------------------------------------------------------------


# --- kNN: knn_top5.py ------------------------------------------------------------------------


def test_knn_top5_counts_no_class_without_a_vote() -> None:
    printed = subprocess.run(
        [sys.executable, CASES / "knn_top5.py"], check=True, capture_output=True, text=True
    ).stdout
    one, five = (ast.literal_eval(line.split(" ", 1)[1])[0] for line in printed.splitlines())
    assert one == pytest.approx({"top1": 10.2, "top5": 10.2}) and five["top1"] < five["top5"] < 50
