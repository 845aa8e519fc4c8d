"""What `run` refuses, `run --dry-run` refuses too, before anything is written."""

from collections.abc import Callable
from pathlib import Path

import planning
import pytest
from command_line import write_images

from lewel_bench.harness.cli import main
from lewel_bench.harness.jobs import launch
from lewel_bench.harness.plan import fits, plan, suites
from lewel_bench.harness.plan.catalog import PACKAGED, ScaledCatalog
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.fits import Place
from lewel_bench.harness.plan.site import Site
from lewel_bench.pretrain import methods, shapes
from lewel_bench.pretrain.recipe import shares
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.pretrain.shapes_revision import KINDS, Counts
from tests.evals.segmentation.making import devkit

SMALL = ("--set", "batch=8", "--set", "bn_group=8", "--set", "args.queue=16")
RUN = ("run", "--suite", "shapes", "--method", "lewel_m", "--epochs", "200", "--device", "cpu")
DET, SEG = "voc07_det_c4", "voc12_seg_fcn_d8"

# on 48 class-folder images, and on generated ones that are not made
REFUSED = [
    (("--evals", "none"), "batch 64 is more than the 48 training images of images: set a smaller "
     "batch, such as --set batch=12 --set bn_group=12"),
    ((*SMALL, "--evals", "linear"), "linear_lars.held_out 360: at most 45 of the 48 training "
     "images can be held out; try --set linear_lars.held_out=9"),
    ((*SMALL, "--evals", "semi_1pct"), "--set semi_1pct.held_out=9"),
    ((*SMALL, "--evals", "linear", "--set", "linear_lars.held_out=9", "--processes", "4",
      "--set", "linear_lars.batch=6"), "batch 6 is not divisible by 4 processes"),
    ((*SMALL, "--evals", "none", "--processes", "3"), "batch 8 is not divisible by 3 processes"),
    ((*SMALL, "--evals", "none", "--micro-batch", "4"), "whole batch-norm groups of 8"),
]  # fmt: skip
REFUSED_UNMADE = [
    (("--set", "batch=4096", "--set", "args.queue=8192", "--evals", "none"),
     "batch 4096 is more than the 2592 training images of shapes"),
    (("--set", "linear_lars.held_out=2581", "--evals", "linear"), "at most 2580 of the"),
    (("--set", f"{DET}.held_out=300", "--evals", DET), "at most 299 of the 300 training images"),
    (("--set", f"{SEG}.held_out=100", "--evals", SEG), "at most 99 of the 100 training images"),
    (("--evals", "semi_10pct", "--processes", "4"), "batch 54 is not divisible by 4"),
    (("--evals", "semi_1pct", "--set", "bn_group=8", "--micro-batch", "8"),
     "micro-batch 8 is not a multiple of the batch-norm group of 24"),
]  # fmt: skip


def refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], root: Path) -> str:
    """The one line that a dry run, which writes nothing, and a run both end with."""
    messages = []
    for more in (("--dry-run",), ()):
        assert main([*RUN, *words, "--root", str(root), *more]) == 2
        messages.append(capsys.readouterr().err.strip().splitlines()[-1])
        assert bool(more) <= (not root.exists())
    assert messages[0] == messages[1] and not list(root.glob("*/spec.json"))
    return messages[0]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_folders_that_are_too_small(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images")
    refusal = refused((*words, "--data", str(images)), capsys, tmp_path / "runs")
    assert message in refusal


@pytest.mark.parametrize(("words", "message"), REFUSED_UNMADE)
def test_generated_images_that_do_not_exist_yet(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in refused(words, capsys, tmp_path / "runs")
    assert not (tmp_path / "runs" / "data").exists()


def test_segmentation_of_one_class(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = devkit(tmp_path / "VOCdevkit")
    (root / "VOC2012" / "labels.txt").write_text("background\n")
    words = ("--evals", SEG, "--data", f"voc={root}", "--set", f"{SEG}.held_out=2")
    assert main([*RUN, *words, "--dry-run", "--root", str(tmp_path / "runs")]) == 2
    output = capsys.readouterr().err
    assert "segmentation needs at least two classes, got 1: background" in output


def test_a_root_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--root", "/proc/none", "--dry-run"]) == 2
    assert "cannot write to the run root" in capsys.readouterr().err


def jobs(method: str, evals: str, tmp_path: Path, **settings: object) -> list[plan.Job]:
    datasets = Datasets(Site(), tmp_path, suites.SUITES["shapes"])
    return planning.jobs(
        suites.SUITES["shapes"],
        datasets,
        method=(method,),
        epochs=(200,),
        evals=(evals,),
        settings=tuple(settings.items()),
    )


def on(processes: int, cpu: bool = False, micro: int | None = None) -> Callable[..., Place]:
    return lambda job: Place(processes, cpu, micro)


def check(every: list[plan.Job], place: Callable[..., Place]) -> None:
    fits.check_machine(every, place)
    fits.check_data(every, place)


def test_processes_of_a_cluster(tmp_path: Path) -> None:
    """Each was refused by the evaluation alone, after the pre-training."""
    dense = jobs("lewel_m", DET, tmp_path)
    check(dense, on(4))
    with pytest.raises(ValueError, match=r"batch 4 is not divisible by 8 processes"):
        check(dense, on(8))
    with pytest.raises(ValueError, match=r"2 processes on a CPU"):
        check(dense, on(2, cpu=True))
    half = jobs(
        "lewel_m", DET, tmp_path, **{f"{DET}.engine": "detectron2", f"{DET}.precision": "bf16"}
    )
    check(half, on(1))
    with pytest.raises(ValueError, match=r"precision bf16: .* --set voc07_det_c4.precision=fp32"):
        check(half, on(1, cpu=True))
    with pytest.raises(ValueError, match=r"bn_group 32 does not fit the 12 images of each of 8"):
        check(jobs("byol", "none", tmp_path, batch=96), on(8))
    with pytest.raises(ValueError, match=r"barlow_twins compares all images of a batch"):
        check(jobs("barlow_twins", "none", tmp_path, bn_group=16), on(1, micro=16))


def test_methods_that_need_their_batch_in_one_piece_are_known() -> None:
    whole = {name for name, settings in methods.METHODS.items() if settings.whole_batch}
    assert whole == {"barlow_twins", "simclr", "swav"}


def test_every_job_of_the_shapes_suite_fits_its_images(tmp_path: Path) -> None:
    datasets = Datasets(Site(), tmp_path, suites.SUITES["shapes"])
    every = [
        job
        for name, recipe in RECIPES.items()
        for job in planning.chain(recipe, ["linear_lars", "semi_1pct", DET, SEG, "coco_fpn_1x"], 0,
                              suites.SUITES["shapes"], datasets)
    ]  # fmt: skip
    check(every, on(1, cpu=True))


def test_the_numbers_of_generated_images(tmp_path: Path) -> None:
    from lewel_bench.evals.detection import annotated_images, voc
    from lewel_bench.evals.segmentation import labelled_images as pictures
    from lewel_bench.pretrain.folder import read_folder

    few = Counts(
        train=2, val=1, voc2007_train=2, voc2007_val=3, voc2007_test=1, voc2012_train=4,
        voc2012_val=5, coco_train=6, coco_val=1,
    )  # fmt: skip
    folder = shapes.make(tmp_path / "shapes", counts=few)
    assert len(shapes.CLASSES) == KINDS
    assert len(read_folder(folder / "imagenet", "train")) == few.training("folders", "")
    root = folder / "VOCdevkit"
    assert len(annotated_images.read_voc(root, voc.splits(root)[0])) == few.training(
        "voc", "detection"
    )
    assert len(pictures.read(root)[0]) == few.training("voc", "segmentation")
    coco = annotated_images.read_coco(folder / "coco", "train2017")
    assert len(coco) == few.training("coco", "detection")


@pytest.mark.parametrize(
    ("device", "processes", "refused"), [("cuda", 2, None), ("cuda", 3, "cuda has 2"),
                                         ("cuda:1", 2, "cuda:1 has 1")],
)  # fmt: skip
def test_more_processes_than_gpus(
    device: str, processes: int, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    settings = launch.MachineSettings(device=device, processes=processes)
    if refused is None:
        assert launch._place(settings, quick=True) == Place(2, False)
        return
    with pytest.raises(ValueError, match=refused):
        launch._place(settings)


def test_a_dry_run_of_data_that_is_at_hand_is_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images")
    (images / "train" / "class0" / "000.jpg").write_bytes(b"no image")
    words = (*SMALL, "--evals", "none", "--data", str(images), "--root", str(tmp_path / "runs"))
    assert main([*RUN, *words, "--dry-run"]) == 2
    assert "000.jpg" in capsys.readouterr().err


def test_half_the_micro_batch_only_where_the_result_stays(tmp_path: Path) -> None:
    paper = suites.SUITES["paper"]
    datasets = Datasets(Site(), tmp_path, paper, needed=False)
    refused = 0
    for recipe in RECIPES.values():
        job = planning.pretraining(recipe, 0, paper, datasets)
        try:
            micro = fits.half_micro_batch(job, 8, None)
        except ValueError as error:
            refused += 1
            assert "GPUs with more memory" in str(error) and "More processes than 8" in str(error)
        else:
            shares(recipe, 8, micro)
    print(f"{refused} of {len(RECIPES)} recipes cannot halve their micro-batch on 8 GPUs")
    assert refused
    moco = planning.pretraining(RECIPES["moco_v2_200ep"], 0, paper, datasets)
    assert fits.half_micro_batch(moco, 1, None) == 128
    assert "--micro-batch 64 takes less" in fits.memory_advice(moco, 1, 128)
    assert "statistics over 32 images" in fits.memory_advice(moco, 8, None)
    semi, *_ = plan.evaluation(
        ScaledCatalog(PACKAGED, paper).protocol("semi_1pct"),
        plan.Upstream("0" * 12, "x", 0),
        paper.name,
        datasets,
    )
    assert fits.half_micro_batch(semi, 1, None) == 128
    dense, *_ = jobs("lewel_m", DET, tmp_path)[1:]
    assert "are needed in one forward pass" in fits.memory_advice(dense, 1, None)
