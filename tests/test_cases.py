"""Small inputs from public bug reports of this field, and how each is answered.

The inputs are made by the scripts of `shared/cases` beside the repository; without it (and without
$LEWEL_BENCH_TEST_DATA, the folder next to it) these tests skip.
"""

import ast
import os
import re
import resource
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, environment, write_images
from faster_coco_eval import COCO as COCO_API
from photos import DATA
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from lewel_bench.evals.checkpoints import importer
from lewel_bench.evals.detection import metrics, views, voc
from lewel_bench.evals.detection.annotated_images import read_coco, read_voc
from lewel_bench.harness.cli import main
from lewel_bench.harness.rundir import RunDir
from lewel_bench.pretrain.decode import decode
from lewel_bench.pretrain.recipe import Backbone
from tests.harness.test_cost import jobs_of
from tests.harness.test_end_to_end import arguments, records

CASES = DATA.parent / "cases"
Made = Callable[..., Path]

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not at hand")


class Conv2d(nn.Conv2d):
    """With an eighth of the channels."""

    def __init__(self, inside: int, outside: int, **more: Any) -> None:
        super().__init__(inside if inside == 3 else inside // 8, outside // 8, **more)


class BatchNorm2d(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels // 8)


class Linear(nn.Linear):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside // 8, outside)


@contextmanager
def narrow() -> Iterator[None]:
    """Torchvision's ResNets are built an eighth as wide, of 0.8 MB instead of 45."""
    with pytest.MonkeyPatch.context() as patch:
        for layer in (Conv2d, BatchNorm2d, Linear):
            patch.setattr(nn, layer.__name__, layer)
        yield


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

# what `data check` says of each; a tuple: it exits with 2 and names these
COCO: dict[str, str | tuple[str, ...]] = {
    "k00_control": "sound",
    "k01_ids_gap": "sound",
    "k02_cat0": "sound",
    "k04b_all_empty_seg": "note: 36 times: has no segmentation: left out where masks are trained",
    "k04c_no_seg_key": "note: 36 times: has no segmentation: left out where masks are trained",
    "k05_uncompressed_rle": "sound",
    "k05c_list_of_rle": "sound",
    "k06_four_numbers": "note: 2 times: has a polygon of too few numbers",
    "k07_ann_id0": "sound",
    "k09_dup_image": ("several entries of 'images' have the same id: give each its own",),
    "k11_float_sizes": (
        "18 times: has height and width with a decimal point: write whole numbers of pixels",
        "18 problems",
    ),
    "k12b_exif_labelled_raw": (
        "18 times: is turned by its EXIF tag, but labelled as its pixels are stored: remove the",
        "18 problems",
    ),
    "k13_prefix": ("18 times: missing, but annotated", "train2017/train2017/000000000001.jpg"),
    "k13b_absolute": "sound",
    "k13c_dotdot": "sound",
    "k15_no_categories": ("expected lists 'images', 'annotations' and 'categories'",),
    "k16_one_class": "sound",
    "k18_ignore_flag": "sound",
    "k19_bom": "sound",
    "k21_box_outside": ("has a box (x, y, width, height) outside its image", "2 problems"),
    "k22_xyxy": (
        "the boxes of 24 of 24 objects fit as corners (x1, y1, x2, y2)",
        "subtract x1 from x2",
        "2 problems",
    ),
    "k24_unicode_names": "sound",
    "k25_background_images": "sound",
    "k27_grey": "sound",
    "k29_float_image_id": "sound",
    "k31_area_zero": "sound",
}


def check_case(root: Path, expected: str | tuple[str, ...], capsys: Any) -> None:
    code = main(["data", "check", str(root)])
    output = capsys.readouterr()
    if isinstance(expected, str):
        assert (code, output.err) == (0, "") and ": sound" in output.out and expected in output.out
        assert expected != "sound" or "note" not in output.out
    else:
        assert code == 2 and all(part in output.err + output.out for part in expected), output


@pytest.mark.parametrize("name", COCO)
def test_coco_folders(made: Made, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_case(made("make_det.py") / name, COCO[name], capsys)


def test_every_coco_folder_is_answered(made: Made) -> None:
    assert {path.name for path in made("make_det.py").iterdir()} == set(COCO)


SOUND = [name for name, message in COCO.items() if isinstance(message, str)]


@pytest.mark.parametrize("name", SOUND)
def test_sound_coco_folders_are_read_and_decoded(made: Made, name: str) -> None:
    """What is checked is what is trained on: every image, box and mask."""
    scenes = read_coco(made("make_det.py") / name, "train2017")
    with_masks = not name.startswith("k04")
    for scene in scenes.scenes:
        example = views.view(scenes.root, scene, 64, 100, False, with_masks)
        assert len(example.polygons) == (len(scene.objects) if with_masks else 0)
    assert sum(map(len, (scene.objects for scene in scenes.scenes))) == (
        16 if "k25" in name else 24
    )


def test_run_lengths_are_the_masks_that_polygons_are(made: Made) -> None:
    """A rectangle is the same as polygon, as run lengths and as a list of these."""
    root = made("make_det.py")
    masks = []
    for name in ("k00_control", "k05_uncompressed_rle", "k05c_list_of_rle"):
        scenes = read_coco(root / name, "val2017")
        truth = COCO_API(scenes.coco_json(), print_function=lambda *_: None)
        masks.append(np.stack([truth.annToMask(truth.anns[i]) for i in sorted(truth.anns)]))
        result = metrics.coco_ap(scenes, _perfect(scenes, masks[-1]), masks=True)
        assert result["mask_ap"] == pytest.approx(100)
    assert np.array_equal(masks[1], masks[0]) and np.array_equal(masks[2], masks[0])


def _perfect(scenes: Any, drawn: Any) -> list[dict[str, Any]]:
    results, first = [], 0
    for scene in scenes.scenes:
        o = scene.objects
        some = drawn[first : first + len(o)]
        first += len(o)
        boxes, scores = o.boxes.astype(np.float32), np.ones(len(o))
        results += metrics.as_predictions(
            scene.id, scenes.category_ids, boxes, scores, o.labels, some.astype(bool)
        )
    return results


@pytest.mark.parametrize("name", ["k04b_all_empty_seg", "k04c_no_seg_key"])
def test_boxes_without_masks_are_for_protocols_without_masks(made: Made, name: str) -> None:
    scenes = read_coco(made("make_det.py") / name, "train2017")
    assert sum(len(scene.objects) for scene in scenes.scenes) == 24
    with pytest.raises(ValueError, match=r"no object has a segmentation.*masks=false"):
        scenes.with_masks()


# --- VOC folders: make_voc.py ----------------------------------------------------------------

VOC: dict[str, str | tuple[str, ...]] = {
    "v00_control": "sound",
    "v01_no_difficult": "sound",
    "v02_float_boxes": "sound",
    "v03_zero_based": "sound",
    "v03b_zero_and_full": "sound",
    "v05_size_zero": (
        "18 times: has no size/height: it must be a whole number of pixels",
        "18 problems",
    ),
    "v05b_no_size": (
        "18 times: has no size/height: it must be a whole number of pixels",
        "18 problems",
    ),
    "v06_list_with_ext": "sound",
    "v06b_list_paths": "sound",
    "v06c_list_flags": "sound",
    "v07b_gbk": (
        "18 times: is not in UTF-8 and declares no encoding: convert it",
        "VOC2007/Annotations/000001.xml",
        "18 problems",
    ),
    "v08_bom": "sound",
    "v09_order": "sound",
    "v11_swapped": ("36 times: an object has an inverted box",),
    "v12_train_val_only": "sound",
    "v13_trainval_only": ("list of images cannot be read: No such file", "ImageSets/Main/val.txt"),
    "v15_case": "v15_case: the classes Cat and cat differ in case only",
    "v17_degenerate": "sound",
    "v18_spaces_in_names": "sound",
    "v20_all_difficult": "every object of 2007 test is marked difficult, so there is no AP",
}


@pytest.mark.parametrize("name", VOC)
def test_voc_folders(made: Made, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_case(made("make_voc.py") / name, VOC[name], capsys)


def test_every_voc_folder_is_answered(made: Made) -> None:
    assert {path.name for path in made("make_voc.py").iterdir()} == set(VOC)


@pytest.mark.parametrize(
    "name", [name for name, message in VOC.items() if isinstance(message, str)]
)
def test_sound_voc_folders_are_read_and_decoded(made: Made, name: str) -> None:
    root = made("make_voc.py") / name
    scenes = read_voc(root, voc.splits(root)[0])
    assert len(scenes) == 12
    for scene in scenes.scenes:
        assert len(views.view(root, scene, 64, 100, False, False).boxes) == 2


# --- Segmentation masks: make_seg.py ---------------------------------------------------------

SEG: dict[str, str | tuple[str, ...]] = {
    "s00_control": "sound",
    "s01_binary_0_255": ("got 1: background", "in binary masks write 1, not 255"),
    "s01b_binary_0_255_labels": (
        "no pixel in the masks of train: road (1)",
        "in binary masks write 1, not 255",
        "no pixel in the masks of val: road (1); mIoU is the mean over the others",
    ),
    "s02_rgb": ("a mask of mode RGB: use 8-bit PNGs",),
    "s04_from_one": ("15 times: a label outside the classes: labels are 0 to 2 and 255 (void)",),
    "s06_exif_image_raw_mask": (
        "15 times: is turned by its EXIF tag, but labelled as its pixels are stored",
    ),
    "s07_rgba": ("a mask of mode RGBA: use 8-bit PNGs",),
    "s08_la": ("a mask of mode LA: use 8-bit PNGs",),
    "s09_palette_reindexed": (
        "15 times: the palette gives a label the colour of void",
        "PNG optimisers reorder palettes",
    ),
    "s11_bmp_mask": "sound",
    "s12_size_swapped": ("15 times: a mask whose size differs from its image",),
}


@pytest.mark.parametrize("name", SEG)
def test_segmentation_folders(made: Made, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_case(made("make_seg.py") / name, SEG[name], capsys)


def test_every_segmentation_folder_is_answered(made: Made) -> None:
    folders = {path.name for path in made("make_seg.py").iterdir() if path.is_dir()}
    assert folders == set(SEG)


# --- Class folders: make_folders.py ----------------------------------------------------------

# what `data check` says of each; a tuple: it exits with 2 and names these
FOLDERS: dict[str, str | tuple[str, ...]] = {
    "f00_control": "f00_control: sound",
    "f01_hidden": "train: skipped files: 6 hidden, 1 .db\n",
    "f03_ext": "train: 91 images of 4 classes (20 to 27 per class)",
    "f03b_all_tif": "train: 80 images of 4 classes (20 to 20 per class)",
    "f04_unicode": "train: 81 images of 4 classes",
    "f04b_bytes": (r"train/ant/caf\udce9.jpg: the name is not UTF-8: rename it",),
    "f04c_bytes_class": (
        r"2 times: the name is not UTF-8: rename it; first ", r"train/caf\udce9", r"val/caf\udce9",
    ),
    "f04d_newline": "train: 80 images of 4 classes",
    "f06_kinds": "1 16-bit greyscale (scaled to 8 bits), first ant/sixteen.png",
    "f07_trunc": ("train/ant/000.jpg: is not a readable image (image file is truncated",),
    "f07b_zero": ("train/ant/000.jpg: is empty",),
    "f07c_html": ("val/ant/000.jpg: is not a readable image (unknown format)",),
    "f08_no_val": ("no folder val/ or validation/ or valid/ or test/ (found train)",),
    "f08b_test_only": "val: 24 images",
    "f08c_val_one_class": "classes of the training set without images here: 3, first 'bee'",
    "f08d_train_misses_class": ("1 classes are not in the training set, first 'dog'",),
    "f08e_one_class": ("only one class folder ('ant')",),
    "f08f_tiny": "f08f_tiny: sound",
    "f11_perm": "sound" if os.geteuid() == 0 else ("000.jpg: cannot be read: Permission denied",),
    "f12_extra": "train: skipped files: 1 .csv, 1 .xml\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_class_folders(made: Made, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = FOLDERS[name]
    code = main(["data", "check", str(made("make_folders.py") / name)])
    output = capsys.readouterr()
    if isinstance(expected, str):
        assert (code, output.err) == (0, "") and expected in output.out
    else:
        assert code == 2 and all(part in output.err for part in expected)


def test_every_class_folder_is_answered(made: Made) -> None:
    assert {path.name for path in made("make_folders.py").iterdir()} == set(FOLDERS)


def test_a_16_bit_image_has_its_grey_levels(made: Made) -> None:
    path = made("make_folders.py") / "f06_kinds" / "train" / "ant" / "sixteen.png"
    with Image.open(path) as image:
        levels = np.asarray(image)
    assert levels.dtype == np.uint16
    assert np.abs(decode(path) - levels[..., None] / 257).max() <= 0.5


# --- Checkpoints: make_ck.py -----------------------------------------------------------------

# the format and network of each, and how many names are the same, renamed, left aside; or how it is
# refused
CHECKPOINTS: dict[str, tuple[str, int, int, int] | str] = {
    "c02_moco_nomodule.pth.tar": ("moco query", 0, 120, 4),
    "c03_simsiam_nomodule.pth.tar": ("simsiam online", 0, 120, 2),
    "c04_numpy_scalar.pth": ("torchvision backbone", 120, 0, 2),
    "c05_namespace.pth": ("torchvision backbone", 120, 0, 2),
    "c06_omegaconf.pth": ("torchvision backbone", 120, 0, 2),
    "c06b_omegaconf_lightning.ckpt": ("solo_learn online", 0, 120, 1),
    "c08_sharded": ("torchvision backbone", 120, 0, 2),
    "c10_fsdp.pth": ("torchvision backbone", 0, 120, 2),
    "c10b_fsdp_ckpt.pth": ("torchvision backbone", 0, 120, 2),
    "c11_timm_train.pth.tar": ("timm_training ema", 0, 120, 4),
    "c11b_torchvision_refs.pth": ("torchvision_training model", 0, 120, 5),
    "c13_lightning_model.ckpt": 'names begin with "state_dict.model.". A layout of your own',
    "c13b_lightning_net.ckpt": 'names begin with "state_dict.net.". A layout of your own',
    "c13c_lightning_encoder.ckpt": "nearest to, but does not fit, the format solo_learn",
    "c14_module_module.pth": ("torchvision backbone", 0, 120, 2),
    "c16_sequential.pth": ("sequential whole", 0, 120, 0),
    "c16b_sequential_backbone.pth": ("sequential backbone", 0, 120, 0),
    "c17_no_counter.pth": ("torchvision backbone", 100, 0, 2),
    "c19_nan.pth": "layer4.1.conv2.weight: 1 of its 36864 numbers are not finite",
    "c20_deepstem.pth": "nearest to conv1.weight: conv1.3.weight",
    "c22_torchscript.pt": "a TorchScript archive, which holds code that is not run here: in the "
    "software that wrote it, save the weights alone, torch.save(model.state_dict(), FILE)",
    "c23_spt.ckpt": ("stable_pretraining backbone", 0, 120, 3),
    "c25_dino_ddp_compile.pth": ("dino teacher", 0, 120, 3),
    "c26_datetime.pth": "it needs datetime.datetime, which is no plain data and is not run: save "
    "the weights alone",
    "c27_misc.pth": "it needs datetime.timedelta, which is no plain data and is not run: save the "
    "weights alone",
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_checkpoints_that_people_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cases"
    monkeypatch.setattr(sys, "argv", ["make_ck.py", str(folder)])
    with narrow():
        runpy.run_path(str(CASES / "make_ck.py"))
    absent = set() if (folder / "c06_omegaconf.pth").exists() else {"c06_omegaconf.pth"}
    absent |= {"c06b_omegaconf_lightning.ckpt"} if absent else set()  # without omegaconf
    assert {path.name for path in folder.iterdir()} == CHECKPOINTS.keys() - absent
    for path in sorted(folder.iterdir()):
        expected = CHECKPOINTS[path.name]
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=re.escape(expected)):
                importer.read(path)
        else:
            result = importer.read(path)
            assert result.spec == Backbone(arch="resnet18", width=8), path.name
            read = (f"{result.format} {result.network}", result.same, result.renamed, result.aside)
            assert read == expected, path.name


# --- Hostile checkpoints: hostile_checkpoints.py ---------------------------------------------

# of some, what is said of it
HOSTILE = {
    "b_dtype_state_hash.pkl": "takes more than 2 s to read",
    "b_ints_collide.pkl": "takes more than 2 s to read",
    "b_legacy_keys_hash.pth": "takes more than 2 s to read",
    "b_plain_key_work.pkl": "takes more than 2 s to read",
    "o_devzero.pth": "is no regular file",
    "o_fifo.pth": "is no regular file",
    "o_selflink.pth": "Too many levels of symbolic links",
    "o_torchscript.pt": "a TorchScript archive",
    "p_globalname_ansi.pkl": r"its pickle names a global 'o\x1b[31ms.sys\x07tem'",
    "p_stack_global.pkl": "it needs os.system, which is no plain data and is not run",
    "s_deep.safetensors": "is nested too deeply",
    "s_dup.safetensors": "it has the same name twice",
    "s_full_98mb_meta.safetensors": "its header says that it has 102,771,968 bytes",
    "s_full_bigint_meta.safetensors": 'its header "backbone" is broken JSON',
    "s_many.safetensors": "its header says that it has 87,388,891 bytes",
    "t_evil_in_zip.pth": "it needs posix.system",
    "t_evil_legacy.pth": "it needs posix.system",
    "z_60000_members.pth": "holds no tensors",
    "z_deflate_bomb.pth": "PyTorch compresses nothing",
    "z_full_many_members.pth": "a zip archive whose list of members has 4,196,747 bytes",
}


def test_hostile_checkpoints(made: Made, tmp_path: Path) -> None:
    """Each is refused in one line, within 2 s of CPU and little memory, and none is run."""
    with narrow():
        weights = resnet18().state_dict()
    torch.save(weights, tmp_path / "base.pth")
    save_file(weights, tmp_path / "base.safetensors")
    folder = made("hostile_checkpoints.py", tmp_path / "base.pth", tmp_path / "base.safetensors")
    importer.read(tmp_path / "base.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    paths = sorted(folder.iterdir())
    assert len(paths) == 121 and HOSTILE.keys() <= {path.name for path in paths}
    for path in paths:
        began = _cpu()
        with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as caught:
            importer.read(path)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 1000 and message.isprintable(), path.name
        assert HOSTILE.get(path.name, "") in message, message
        assert _cpu() - began < 2.5, path.name  # 2 s, and the parent's work
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert not (folder / "EXECUTED").exists()


def _cpu() -> float:
    group = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(entry.ru_utime + entry.ru_stime for entry in group)


# --- Terminal: env_*.sh ----------------------------------------------------------------------


def in_a_shell(script: str, tmp_path: Path) -> str:
    """What a script of the cases prints, all its streams together."""
    program = tmp_path / "bin" / "lewel-bench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lewel_bench.harness.cli "$@"\n')
    program.chmod(0o755)
    variables = environment(PATH=f"{program.parent}:{os.environ['PATH']}")
    variables.pop("COLUMNS", None)  # set under xdist: it would hide the terminal's width
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
        job = jobs_of(tmp_path / "runs", name)[0]
        RunDir(tmp_path / "runs").job(job.key).write_spec(job)
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
    (record,) = records(without_links).values()
    assert record["kind"] == "pretrain"
    assert not [path for path in without_links.rglob(".*") if path.name.endswith(".tmp")]


def test_no_flock(images: Path, tmp_path: Path) -> None:
    done = run_in(
        tmp_path, arguments(images, "moco_v2", ()), env=without("no_flock", tmp_path / "x")
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (last,) = done.stderr.strip().splitlines()[-1:]
    assert last.startswith(
        f"lewel-bench: cannot write to the run root {tmp_path}/runs: file locks do not work"
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
    assert text.startswith(f"lewel-bench: cannot use the files of a job, {folder}: ")
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


def test_knn_top5_counts_no_class_without_a_vote(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(CASES / "knn_top5.py"))
    printed = capsys.readouterr().out
    entry, five = (ast.literal_eval(line.split(" ", 1)[1])[0] for line in printed.splitlines())
    assert entry == pytest.approx({"top1": 10.2, "top5": 10.2}) and five["top1"] < five["top5"] < 50
