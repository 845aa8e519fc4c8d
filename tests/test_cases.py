"""Small inputs from public bug reports of this field, and how each is answered.

The inputs are made by the scripts of `shared/cases` beside the repository; without it (and without
$LEWEL_BENCH_TEST_DATA, the folder next to it) these tests skip.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from command_line import command, environment, write_images
from photos import DATA
from PIL import Image

from lewel_bench.harness.cli import main
from lewel_bench.harness.status import write_spec
from lewel_bench.pretrain.decode import decode
from tests.harness.test_cost import jobs_of
from tests.harness.test_end_to_end import arguments, records

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

# what `data check` says of each; a tuple: it exits with 2 and names these
FOLDERS: dict[str, str | tuple[str, ...]] = {
    "f00_control": "f00_control: sound",
    "f01_hidden": "train: files that are left out: 6 hidden, 1 .db\n",
    "f03_ext": "train: 91 images of 4 classes (20 to 27 a class)",
    "f03b_all_tif": "train: 80 images of 4 classes (20 to 20 a class)",
    "f04_unicode": "train: 81 images of 4 classes",
    "f04b_bytes": (r"train/ant/caf\udce9.jpg: the name is not UTF-8: rename it",),
    "f04c_bytes_class": (
        r"2 times: the name is not UTF-8: rename it; first ", r"train/caf\udce9", r"val/caf\udce9",
    ),
    "f04d_newline": "train: 80 images of 4 classes",
    "f06_kinds": "1 16-bit greyscale (scaled to 8 bits), first ant/sixteen.png",
    "f07_trunc": ("train/ant/000.jpg: is no readable image (image file is truncated",),
    "f07b_zero": ("train/ant/000.jpg: is empty",),
    "f07c_html": ("val/ant/000.jpg: is no readable image (unknown format)",),
    "f08_no_val": ("no folder val/ or validation/ or valid/ or test/ (found train)",),
    "f08b_test_only": "val: 24 images",
    "f08c_val_one_class": "without images here: 3 classes of the training set, first 'bee'",
    "f08d_train_misses_class": ("1 classes are not in the training set, first 'dog'",),
    "f08e_one_class": ("only one class folder ('ant')",),
    "f08f_tiny": "f08f_tiny: sound",
    "f11_perm": "sound" if os.geteuid() == 0 else ("000.jpg: cannot be read: Permission denied",),
    "f12_extra": "train: files that are left out: 1 .csv, 1 .xml\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_class_folders(made: Made, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = FOLDERS[name]
    code = main(["data", "check", str(made("make_folders.py") / name)])
    said = capsys.readouterr()
    if isinstance(expected, str):
        assert (code, said.err) == (0, "") and expected in said.out
    else:
        assert code == 2 and all(part in said.err for part in expected)


def test_every_class_folder_is_answered(made: Made) -> None:
    assert {path.name for path in made("make_folders.py").iterdir()} == set(FOLDERS)


def test_a_16_bit_image_has_its_grey_levels(made: Made) -> None:
    path = made("make_folders.py") / "f06_kinds" / "train" / "ant" / "sixteen.png"
    with Image.open(path) as image:
        levels = np.asarray(image)
    assert levels.dtype == np.uint16
    assert np.abs(decode(path) - levels[..., None] / 257).max() <= 0.5


# --- Checkpoints: make_ck.py -----------------------------------------------------------------


# --- Hostile checkpoints: hostile_checkpoints.py ---------------------------------------------


# --- Terminal: env_*.sh ----------------------------------------------------------------------


def in_a_shell(script: str, tmp_path: Path) -> str:
    """What a script of the cases prints, all its streams together."""
    program = tmp_path / "bin" / "lewel-bench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lewel_bench.harness.cli "$@"\n')
    program.chmod(0o755)
    variables = environment(PATH=f"{program.parent}:{os.environ['PATH']}")
    done = subprocess.run(
        ["bash", CASES / script],
        cwd=tmp_path, env=variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_closed_standard_output_is_no_error(tmp_path: Path) -> None:
    assert in_a_shell("env_stdout_closed.sh", tmp_path) == ""


def test_a_pipe_that_is_closed_early_is_no_error(tmp_path: Path) -> None:
    printed = in_a_shell("env_pipe.sh", tmp_path)
    assert printed.startswith("Table 1. ") and "Traceback" not in printed


@pytest.mark.skipif(not shutil.which("script"), reason="script(1) makes the terminal")
def test_status_on_a_terminal_of_40_columns(tmp_path: Path) -> None:
    for name in ("lewel_m_100ep", "byol_100ep"):
        write_spec(jobs_of(tmp_path / "runs", name)[0], tmp_path / "runs")
    printed = in_a_shell("env_width40.sh", tmp_path)
    for word in ("lewel_m_100ep", "byol_100ep", "pretrain", "device-hours", "missing"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 40 + len(str(tmp_path))


# --- Run roots: no_hard_links, no_flock, two_users -------------------------------------------


def without(what: str, folder: Path) -> dict[str, str]:
    """The environment of a command whose file system lacks something; `folder/used` shows that the
    command met it."""
    folder.mkdir()
    _, code = (CASES / f"{what}.sitecustomize.py").read_text().split("\n", 1)  # how it is used
    (folder / "sitecustomize.py").write_text(
        f"{code}\nopen({str(folder / 'used')!r}, 'w').close()\n"
    )
    return environment(PYTHONPATH=str(folder))


def run_in(
    cwd: Path, words: list[str], before: Sequence[str] = (), env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, *command(*words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=env or environment(),
    )


@pytest.fixture(scope="module")
def without_links(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run root whose one pre-training was recorded where there are no hard links."""
    cwd = tmp_path_factory.mktemp("links")
    done = run_in(cwd, arguments(images, "moco_v2", ()), env=without("no_hard_links", cwd / "x"))
    assert done.returncode == 0, done.stderr
    assert (cwd / "x" / "used").exists()
    return cwd / "runs"


def test_no_hard_links(without_links: Path) -> None:
    (found,) = records(without_links).values()
    assert found["kind"] == "pretrain"
    assert not [path for path in without_links.rglob(".*") if path.name.endswith(".tmp")]


def test_no_flock(images: Path, tmp_path: Path) -> None:
    done = run_in(
        tmp_path, arguments(images, "moco_v2", ()), env=without("no_flock", tmp_path / "x")
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (last,) = done.stderr.strip().splitlines()[-1:]
    assert last.startswith(
        f"lewel-bench: cannot write to the run root {tmp_path}/runs: files canno"
    )
    assert "Choose a --root" in last and "Lustre with -o flock" in last
    assert not os.listdir(tmp_path / "runs")


NO_RIGHTS = "-dac_override,-dac_read_search,-fowner,-chown"
OTHER_USER = ("setpriv", f"--bounding-set={NO_RIGHTS}", f"--inh-caps={NO_RIGHTS}")


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, who may become another"
)
def test_two_users(images: Path, without_links: Path, tmp_path: Path) -> None:
    root = shutil.copytree(without_links, tmp_path / "runs")
    (folder,) = (path.parent for path in root.glob("*/record.json"))
    (folder / "record.json").unlink()  # interrupted
    for path in (root, *root.rglob("*")):
        shutil.chown(path, "nobody")
    for path in root.iterdir():
        path.chmod(0o755)
    root.chmod(0o777)
    words = arguments(images, "moco_v2", ())
    done = run_in(tmp_path, words, before=OTHER_USER)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (text,) = [line for line in done.stderr.splitlines() if line.startswith("lewel-bench:")]
    assert text.startswith(f"lewel-bench: cannot write to the folder of a job, {folder}: ")
    assert "belongs to nobody. To share a run root, put its users into one group" in text
    mine = write_images(tmp_path / "new", val=7)
    done = run_in(tmp_path, arguments(mine, "moco_v2", ()), before=OTHER_USER)
    assert done.returncode == 0, done.stderr
    assert f"note: {root}/.queues: Permission denied" in done.stderr
    assert len(records(root)) == 1


# --- Clusters: fake_slurm.sh -----------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`lewel-bench run --cluster lab`, where SLURM's commands are scripts."""
    commands, log = tmp_path / "bin", tmp_path / "log"
    log.mkdir()
    subprocess.run(["bash", CASES / "fake_slurm.sh", commands], check=True, capture_output=True)
    profile = "[clusters.lab.defaults]\npartition = 'gpu'\ngpus_per_node = 1\nsignal_delay_s = 30\n"
    (tmp_path / "lewel-bench.toml").write_text(profile)

    def run(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        asked = [
            "run",
            "--suite",
            "shapes",
            "--method",
            "moco_v2",
            "--epochs",
            "200",
            "--evals",
            "none",
        ]
        path = f"{commands}:{os.environ['PATH']}"
        return subprocess.run(
            command(*asked, *words, "--cluster", "lab"),
            cwd=tmp_path,
            env=environment(PATH=path, FAKE_LOG=str(log), **variables),
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


def test_arrays_fit_the_cluster_and_nothing_of_a_job_reaches_its_children(
    slurm: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    done = slurm("--seeds", "12", SLURM_ARRAY_TASK_ID="3", SBATCH_PARTITION="x", SLURM_CONF="/c")
    assert done.returncode == 0, done.stderr
    assert "10 pretrain jobs in 10 tasks" in done.stdout  # MaxArraySize is 11
    assert "2 pretrain jobs in 2 tasks" in done.stdout
    script = (tmp_path / "log" / "101.sh").read_text()
    assert "#SBATCH --array=0-9%10\n" in script and "#SBATCH --gpus-per-node=1\n" in script
    assert "wckey" not in script
    assert (tmp_path / "log" / "101.env").read_text() == "SLURM_CONF=/c\n"


@pytest.mark.parametrize(
    ("variable", "message", "advice"),
    [
        ("FAKE_REJECT", "QOSMaxSubmitJobPerUserLimit", "max_queued of cluster lab (now 2000)"),
        ("FAKE_REFUSE", "Invalid qos specification", "kinds.pretrain, light: "),
    ],
)
def test_what_slurm_refuses_is_one_line_with_the_setting(
    slurm: Callable[..., "subprocess.CompletedProcess[str]"],
    variable: str,
    message: str,
    advice: str,
) -> None:
    done = slurm(**{variable: message})
    assert done.returncode == 2, done.stdout
    line = done.stderr.splitlines()[-1]  # sbatch may have had its own word before
    assert line.count(message) == 1 and advice in line


# --- kNN: knn_top5.py ------------------------------------------------------------------------


def test_knn_top5_counts_no_class_without_a_vote() -> None:
    printed = subprocess.run(
        [sys.executable, CASES / "knn_top5.py"], check=True, capture_output=True, text=True
    ).stdout
    one, five = (ast.literal_eval(line.split(" ", 1)[1])[0] for line in printed.splitlines())
    assert one == pytest.approx({"top1": 10.2, "top5": 10.2}) and five["top1"] < five["top5"] < 50
