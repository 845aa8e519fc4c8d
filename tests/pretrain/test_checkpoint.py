import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.pretrain.report import silent


def _state(step: int) -> dict[str, object]:
    return {"step": step, "weights": torch.full((3,), float(step)), "list": [1, {"a": 2.5}]}


def test_newest_intact_of_two_is_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, _state(step))
    assert len(list(tmp_path.glob("*.pt"))) == checkpoint.KEPT == 2
    state = checkpoint.load(tmp_path, silent)
    assert state is not None and state["step"] == 15
    assert torch.equal(state["weights"], torch.full((3,), 15.0))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_corrupt_file_falls_back_and_says_so(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, 1, _state(1))
    last = checkpoint.save(tmp_path, 2, _state(2))
    data = bytearray(last.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray()
    last.write_bytes(data)
    messages: list[str] = []
    state = checkpoint.load(tmp_path, lambda event, message: messages.append(message))
    assert state is not None and state["step"] == 1
    assert len(messages) == 1 and str(last) in messages[0] and "corrupt" in messages[0]


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, silent) is None


def test_full_disk_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = checkpoint.save(tmp_path, 1, _state(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(tmp_path, 2, _state(2))
    assert good.name in str(caught.value) and "step 2" in str(caught.value)
    assert list(tmp_path.iterdir()) == [good]
    state = checkpoint.load(tmp_path, silent)
    assert state is not None and state["step"] == 1


@pytest.mark.parametrize("header", ["[" * 5000, "[1]", "{", "3"])
def test_a_header_that_is_none(header: str, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"backbone": header})
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        checkpoint.read_network(path)
    assert "\n" not in str(caught.value)


def test_a_header_as_large_as_no_backbone_has(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    path.write_bytes((2 << 20).to_bytes(8, "little") + b" " * (2 << 20))
    with pytest.raises(ValueError, match=r"its header is too large \(2,097,152 bytes\)"):
        checkpoint.read_backbone(path)


def test_backbone_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    tensors = {"conv1.weight": torch.randn(2, 3), "bn1.num_batches_tracked": torch.tensor(7)}
    header = {"arch": "resnet18", "stem": "small", "width": "24"}
    checkpoint.write_backbone(path, tensors, header)
    digest = checkpoint.sha256(path)
    checkpoint.write_backbone(path, tensors, header)
    assert checkpoint.sha256(path) == digest
    read, actual = checkpoint.read_backbone(path)
    assert actual == header
    assert checkpoint.read_network(path)[1] == Backbone(arch="resnet18", stem="small", width=24)
    assert all(torch.equal(read[k], tensors[k]) for k in tensors)
    checkpoint.write_backbone(path, tensors, {**header, "arch": "vgg", "width": "wide"})
    with pytest.raises(ValueError, match=r"safetensors has no valid backbone .*: arch: .*width"):
        checkpoint.read_network(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"backbone\.safetensors"):
        checkpoint.read_backbone(path)
