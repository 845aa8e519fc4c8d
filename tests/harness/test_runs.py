"""`lewel-bench run` before anything starts."""

from pathlib import Path

import pytest
from command_line import write_images
from finished import finish

from lewel_bench.harness.cli import main

RUN = ("run", "--suite", "shapes", "--method", "lewel_m", "--epochs", "200", "--evals", "linear")


def test_a_dry_run_leaves_a_corrupt_record_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = finish(tmp_path, "lewel_m_200ep", "linear_lars")
    path = tmp_path / key / "record.json"
    path.write_text("{")
    words = [*RUN, "--root", str(tmp_path), "--dry-run"]
    assert main(words) == 2 and "add --replace-corrupt" in capsys.readouterr().err
    assert main([*words, "--replace-corrupt"]) == 0
    shown = capsys.readouterr()
    assert (
        f"would be set aside: {path}" in shown.err
        and "to run: 1" in shown.out
        and "already done: 1" in shown.out
    )
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "5days"), "--budget '5days': write device-hours"),
        (("--probe", "1"), "--probe must be at least 2, got 1"),
        (("--cluster", "nosuch"), "nosuch"),
        (("--cluster", "any", "--jobs", "2"), "--jobs is for this machine only"),
        (("--cluster", "any", "--processes", "2"), "--processes is for this machine only"),
    ],
)
def test_what_is_refused_leaves_a_corrupt_record_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    path = tmp_path / finish(tmp_path, "lewel_m_200ep", "linear_lars") / "record.json"
    path.write_text("{")
    assert main([*RUN, "--root", str(tmp_path), "--replace-corrupt", *words]) == 2
    assert message in capsys.readouterr().err and path.read_text() == "{"


@pytest.mark.parametrize(
    "words",
    [
        ("--budget", ""),
        ("--budget=",),
        ("--evals", " ,"),
        ("--method", "", "--table", "1"),
        ("--epochs", ""),
        ("--seeds", ""),
    ],
)
def test_an_empty_restriction_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """An unset variable of a shell; whatever stands before and after it."""
    assert main([*RUN, *words, "--dry-run", "--root", str(tmp_path)]) == 2
    assert f"{words[0].rstrip('=')} is empty" in capsys.readouterr().err
    assert main([*RUN, "--dry-run", "--root", str(tmp_path), *words]) == 2
    assert not list(tmp_path.iterdir())


def test_networks_that_a_bundle_left_out_are_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = finish(tmp_path, "lewel_m_200ep", "linear_lars")
    (tmp_path / key / "record.json").unlink()
    assert main([*RUN, "--root", str(tmp_path), "--dry-run"]) == 0
    output = capsys.readouterr().err
    assert "note: 1 job cannot run: " in output and "ask for one with --weights" in output
    searched = [*RUN[:-1], "semi_1pct", "--root", str(tmp_path), "--dry-run"]
    assert main(searched) == 0
    assert "note: 4 jobs cannot run: " in capsys.readouterr().err  # their choice reads records


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "linear="), "--data linear= is empty"),
        (("--device", "cuda:9"), "device cuda:9: "),
        (("--processes", "3"), "batch 64 is not divisible by 3 processes"),
        (("--micro-batch", "7", "--processes", "1"), "choose a multiple of 64 that divides 64"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    data = write_images(tmp_path / "images")
    command = [*RUN[:-1], "none", "--data", f"pretrain={data}", "--set", "bn_group=64"]
    assert main([*command, "--root", str(tmp_path / "runs"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/*"))


def test_a_run_root_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for words in (RUN, ("status",), ("table", "1")):
        assert main([*words, "--root", str(tmp_path / "file")]) == 2
        assert f"{tmp_path}/file is a file: name a folder" in capsys.readouterr().err


def test_data_that_nothing_is_on_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*RUN, "--dry-run", "--root", str(tmp_path / "runs")]
    write_images(tmp_path / "a=b")
    for setting in ("batch=8", "bn_group=8", "args.queue=16", "linear_lars.held_out=6"):
        words += ["--set", setting]
    assert main([*words, "--data", f"{tmp_path}/a=b", "--data", f"coco={tmp_path}"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"note: --data coco={tmp_path} is not used: no selected job reads it",
        f"checking a=b at {tmp_path}/a=b",
    ]
    assert main([*words, "--data", "voc=/does/not/exist"]) == 2
    assert "there is no folder /does/not/exist" in capsys.readouterr().err
