"""What a file may cost, and what the process that reads it may do."""

import json
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lewel_bench
from lewel_bench.evals.checkpoints import importer, limited
from lewel_bench.pretrain.recipe import Backbone
from tests.evals.checkpoints import layouts

LIMITS = {"cpu": 1, "memory": 64 << 20, "size": 1000, "wall": 30}
CONFINED = f"""
import os, socket, subprocess, sys, threading
sys.path.insert(0, {str(Path(lewel_bench.__file__).parents[1])!r})
from lewel_bench.evals.checkpoints import child
output = open(sys.argv[1], "wb", buffering=0)
child.confine({LIMITS})
def tried(what, function, *arguments):
    try:
        function(*arguments)
        print(what, "DONE")
    except (OSError, MemoryError) as error:
        print(what, type(error).__name__)
tried("fork", os.fork)
tried("exec", os.execv, "/bin/true", ["true"])
tried("system", os.system, "true")
tried("popen", subprocess.run, ["true"])
tried("spawn", os.posix_spawn, "/bin/true", ["true"], {{}})
tried("socket", socket.socket)
tried("write", open, sys.argv[1], "w")
tried("append", os.open, sys.argv[1], os.O_WRONLY)
tried("remove", os.remove, sys.argv[1])
tried("memory", bytearray, 100 << 20)
tried("output", output.write, b"x" * 2000)
tried("more", output.write, b"x" * 2000)
tried("read", open, sys.argv[1])
sys.stdout.flush()
while True: pass
"""


def test_a_confined_process(tmp_path: Path) -> None:
    command = [sys.executable, "-IS", "-c", CONFINED, tmp_path / "output"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGXCPU, done.stderr
    result = dict(line.split() for line in done.stdout.splitlines())
    refused = ("fork", "exec", "system", "popen", "spawn", "socket", "write", "append", "remove")
    assert result == {
        **dict.fromkeys(refused, "PermissionError"),
        **{"memory": "MemoryError", "output": "DONE", "more": "OSError", "read": "DONE"},
    }
    assert (tmp_path / "output").stat().st_size == LIMITS["size"]


def _reader(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    return path


def test_the_reader_has_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with limited.opened(layouts.write(tmp_path / "a.pth", layouts.state(1))) as reader:
        reader.content()
        of_reader = Path(f"/proc/{reader.process.pid}")
        assert (of_reader / "environ").read_bytes() == b""
        limits = (of_reader / "limits").read_text()
    assert reader.process.returncode is not None  # it ends with its file
    (cpu,) = [line.split() for line in limits.splitlines() if line.startswith("Max cpu time")]
    assert cpu[3:5] == ["2", "3"]


def test_what_does_not_end_is_ended(tmp_path: Path) -> None:
    """A key whose hash takes for ever, in bytecode that no signal handler could interrupt."""
    endless = b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R(K\x03)" + b"2\x86" * 60 + b"tb."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(ValueError, match=r"a\.pth: takes more than 2 s to read") as caught:
        importer.read(_reader(tmp_path, endless))
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spent.ru_utime - before.ru_utime < 2.2 and "\n" not in str(caught.value)


def test_what_waits_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "PATIENCE", 1)
    path, began = layouts.write(tmp_path / "a.pth", layouts.state(1)), time.monotonic()
    with limited.opened(path) as reader:
        reader.process.wait(20)
        with pytest.raises(ValueError, match="takes too long to read: copy it to a local disk"):
            reader.content()
    assert time.monotonic() - began < 20


def test_memory_is_limited_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "SPARE", 4 << 20)
    many = b"\x80\x02](" + b"(K\x01t" * 100_000 + b"e."  # 400 kB that take 8 MB
    with pytest.raises(ValueError, match=r"a\.pth: .*[Mm]emory") as caught:
        importer.read(_reader(tmp_path, many))
    assert "\n" not in str(caught.value)


OWN = 'source = "us"\nroots = ["model."]\nnetworks = { one = "enc." }\n'


def _own(tmp_path: Path, more: str, spec: Backbone = layouts.SMALL) -> tuple[Path, str]:
    (tmp_path / "own.toml").write_text(OWN + more)
    content = {"model": layouts.within("enc.", layouts.state(1, spec))}
    return layouts.write(tmp_path / "a.pth", content), str(tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('rename = [["(([a-z0-9.]+)+)+!$", ""]]', r"a\.pth: takes more than 2 s to read"),
        ('rename = [["(?:(?:(?:a|b|){900}){900}){900}$", ""]]', "takes more than 2 s|own.toml: "),
        (f"deep = {'[' * 20_000}{']' * 20_000}", r"own\.toml: is nested too deeply"),
        ("x." * 20_000 + "x = 1", r"own\.toml: "),
        (f'x = "{"a" * (2 << 20)}"', r"own\.toml: has 2,097,\d+ bytes"),
        ("x = ", r"own\.toml: Invalid value"),
        ("rename = 1", r"own\.toml: rename: "),
        ('rename = [["(", ""]]', r"own\.toml: rename: .*is no regular expression"),
    ],
)
def test_a_layout_of_a_stranger(more: str, message: str, tmp_path: Path) -> None:
    path, own = _own(tmp_path, more)
    with pytest.raises(ValueError, match=message) as caught:
        importer.read(path, own)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_stem_of_an_own_layout(tmp_path: Path) -> None:
    """A 3x3 convolution has two strides here: it is asked for, and never assumed."""
    small = Backbone(arch="resnet18", stem="small", width=8)
    with pytest.raises(ValueError, match=r'add stem = "cifar" .* or stem = "small" .*own\.toml'):
        importer.read(*_own(tmp_path, "", small))
    for stem in ("small", "cifar"):
        imported = importer.read(*_own(tmp_path, f'stem = "{stem}"\n', small))
        assert (imported.spec.stem, imported.guessed) == (stem, "")
    with pytest.raises(ValueError, match="which no stem imagenet has"):
        importer.read(*_own(tmp_path, 'stem = "imagenet"\n', small))
    with pytest.raises(ValueError, match="which no stem small has"):
        importer.read(*_own(tmp_path, 'stem = "small"\n'))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (json.dumps({"arch": "resnet18", "width": 10**9}), "width: Input should be less than"),
        ('{"arch": "resnet18", "width": ' + "9" * 5000 + "}", "is broken JSON"),
        ("[" * 5000, "is broken JSON"),
        ('{"arch": "resnet99"}', "arch: Input should be"),
    ],
)
def test_headers_that_are_none(header: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(layouts.state(1), path, metadata={"backbone": header})
    with pytest.raises(ValueError, match=f'a.safetensors: its header "backbone" .*{message}'):
        importer.read(path)


def test_a_width_of_a_thousand_million(tmp_path: Path) -> None:
    storage = torch.zeros(1).expand(10**9, 3, 7, 7)
    path = tmp_path / "a.pth"
    torch.save({**layouts.state(1), "conv1.weight": storage}, path)
    with pytest.raises(ValueError, match="is larger than its storage"):
        importer.read(path)
    whole = {**layouts.state(1), "conv1.weight": torch.zeros(5000, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"its first convolution is \(5000, 3, 3, 3\)"):
        importer.read(layouts.write(path, whole))


def _sharded(folder: Path, more: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    whole = layouts.state(1)
    names = list(whole)
    files = {n: f"model-0000{1 + (i >= 60)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        save_file({n: whole[n] for n in names if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**files, **(more or {})}}))
    return index


def test_shards(tmp_path: Path) -> None:
    index = _sharded(tmp_path / "a")
    imported = importer.read(index)
    assert imported.tensors == importer.digest(layouts.state(1))
    assert importer.read(index.parent).tensors == imported.tensors
    before = imported.file_sha256
    (tmp_path / "a" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"its part model-00002-of-00002\.safetensors is not"):
        importer.read(index)
    other = _sharded(tmp_path / "b", {"x": "../a/model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match=r"it names the file '\.\./a/model.*cannot lie beside it"):
        importer.read(other)
    absent = _sharded(tmp_path / "c", {"x": "model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match="the tensor x is not in model-00001"):
        importer.read(absent)
    assert importer.read(_sharded(tmp_path / "d")).file_sha256 == before
    with pytest.raises(ValueError, match="is a folder: give the file in it"):
        importer.read(tmp_path)


def test_shards_of_torch_have_equal_names_of_storages(tmp_path: Path) -> None:
    whole = layouts.state(1)
    parts = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
    files = {name: list(parts)[i % 2] for i, name in enumerate(whole)}
    for name, file in files.items():
        parts[file][name] = whole[name]
    for file, content in parts.items():
        torch.save(content, tmp_path / file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert importer.read(index).tensors == importer.digest(whole)


def test_views_of_one_storage_and_other_orders(tmp_path: Path) -> None:
    """As FSDP's flat parameters and channels_last have them."""
    whole = layouts.state(1)
    flat = torch.cat([value.flatten() for value in whole.values() if value.is_floating_point()])
    views, at = {}, 0
    for name, entry in whole.items():
        if entry.is_floating_point():
            views[name] = flat[at : at + entry.numel()].view(entry.shape)
            at += entry.numel()
    views["layer1.0.conv1.weight"] = whole["layer1.0.conv1.weight"].to(
        memory_format=torch.channels_last
    )
    for new in (True, False):
        torch.save(views, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        imported = importer.read(tmp_path / "a.pth")
        assert imported.tensors == importer.digest(whole)
        assert all(value.is_contiguous() for value in imported.state.values())


@pytest.mark.parametrize("new", [True, False])
def test_views_do_not_multiply_a_storage(tmp_path: Path, new: bool) -> None:
    actual = torch.zeros(1000)
    torch.save(
        {f"w{i}": actual for i in range(20)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new
    )
    with limited.opened(tmp_path / "a.pth") as reader:
        content = reader.content()
        assert content.tensors(["w0"])["w0"].equal(actual)
        with pytest.raises(ValueError, match="its tensors need 80,000 bytes, the file has "):
            content.tensors(list(content.shapes))


def test_a_header_longer_than_any(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 5 << 20) + b" " * (5 << 20))
    with pytest.raises(ValueError, match="its header says that it has 5,242,880 bytes"):
        importer.read(path)
