"""What `lewel-bench doctor` says of a place where something is missing."""

import importlib.metadata
import shutil
import sys
from pathlib import Path

import pytest

from lewel_bench.harness import installation
from lewel_bench.harness.cli import main


@pytest.fixture
def run_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What it says of `what`, and its exit code; without the engines, which take seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installation, "_engines", lambda context: [])

    def ask(what: str) -> tuple[str, int]:
        code = main(["doctor"])
        lines = capsys.readouterr().out.splitlines()
        (line,) = (line for line in lines if line[9:].split("  ")[0] == what)
        return line, code

    return ask


def test_a_package_that_is_missing(run_doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "simplejpeg":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    line, code = run_doctor("simplejpeg")
    assert (
        code == 2
        and line.startswith("problem")
        and f"pip install {Path(installation.__file__).parents[2]}" in line
    )


def test_a_torch_that_does_not_import(run_doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    line, code = run_doctor("torch + torchvision")
    assert code == 2 and line.startswith("problem") and "pip install --upgrade" in line


def test_the_site_file_and_the_disk(
    run_doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 2**30))
    (tmp_path / "lewel-bench.toml").write_text('[machine]\ndevice = "cuda"\n')
    line, code = run_doctor("site file: device")
    assert code == 2 and line.startswith("problem") and "use --device cpu" in line
    assert run_doctor("run root")[0].endswith("--root takes another place")
    assert run_doctor("data cifar10")[0].endswith("not configured")
