"""`lewel-bench export`: which run, which files, and what the card says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from finished import finish, imagenet
from safetensors.torch import load_file

from lewel_bench.harness.cli import main
from lewel_bench.pretrain import backbone, checkpoint
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.results import record

SMALL = Backbone(arch="resnet18", stem="small", width=16)


def pretrained(root: Path, recipe: str, seed: int = 0) -> str:
    """A finished pre-training with a backbone, evaluated linearly; its key."""
    metrics = {"top1": 41.25, "top5": 80.0}
    final = finish(root, recipe, "linear_lars", seed, metrics=metrics, data=imagenet())
    key = record.read(root / final / record.NAME).upstream[0]
    path = root / key / "backbone.safetensors"
    torch.manual_seed(seed)
    checkpoint.write_backbone(path, backbone.build(SMALL).state_dict(), checkpoint.header_of(SMALL))
    content = json.loads((root / key / record.NAME).read_text())
    content["checkpoint"] = {"file": path.name, "sha256": checkpoint.sha256(path)}
    content["data"] = {"train": {"name": "shapes", "fingerprint": "f1f2", "images": 2592}}
    (root / key / record.NAME).write_text(json.dumps(content))
    return key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        pretrained(root, "moco_v2_200ep", seed)
    return root, pretrained(root, "lewel_m_200ep")


def export(root: Path, *arguments: object) -> int:
    return main(["export", *map(str, arguments), "--root", str(root)])


def test_a_card_says_what_the_file_is(made: tuple[Path, str], tmp_path: Path) -> None:
    root, key = made
    out = tmp_path / "lewel.safetensors"
    assert export(root, "lewel_m_200ep", out, "--to", "safetensors", "--licence", "MIT") == 0
    state, _ = checkpoint.read_backbone(root / key / "backbone.safetensors")
    loaded = load_file(out)
    assert state.keys() == loaded.keys() and all(torch.equal(state[k], loaded[k]) for k in state)
    card = (tmp_path / "lewel.safetensors.md").read_text()
    assert card.startswith('---\nlicense: "MIT"\n')
    assert f"sha256 of this file: {checkpoint.sha256(out)}" in card
    assert "| train | shapes | 2,592 | f1f2 |" in card
    assert "| linear_lars of lewel_m_200ep | 0 | top1 | 41.25 | 50,000 images of 1,000 " in card
    assert "cannot be compared with the paper's" in card
    recipe = json.loads(card.split("```json\n")[1].split("```")[0])
    assert record.key(recipe) == key


def test_a_card_says_that_a_network_has_collapsed(tmp_path: Path) -> None:
    key = pretrained(tmp_path / "runs", "lewel_b_200ep")
    file = tmp_path / "runs" / key / record.NAME
    note = "collapsed: effective rank 2.4 of 128, untrained 30.6"
    file.write_text(json.dumps({**json.loads(file.read_text()), "warnings": [note]}))
    out = tmp_path / "a.safetensors"
    assert export(tmp_path / "runs", key, out, "--to", "safetensors") == 0
    assert f"| {note} |" in (tmp_path / "a.safetensors.md").read_text()


def test_nothing_is_replaced_unless_asked(made: tuple[Path, str], tmp_path: Path) -> None:
    root, key = made
    out, card = tmp_path / "a.safetensors", tmp_path / "a.safetensors.md"
    card.write_text("mine")
    assert export(root, key, out, "--to", "safetensors") == 2
    assert card.read_text() == "mine" and not out.exists()
    assert export(root, key, out, "--to", "safetensors", "--force") == 0
    before = out.read_bytes()
    assert export(root, key, out, "--to", "safetensors") == 2
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, card.name]


@pytest.mark.parametrize(
    ("run", "name", "to", "message"),
    [
        ("moco_v2_200ep", "a.safetensors", "safetensors", "2 runs are named moco_v2_200ep: choose"),
        ("lewel_m_20ep", "a.safetensors", "safetensors", "Did you mean 'lewel_m_200ep'?"),
        ("lewel_m_200ep", "a.safetensors", "tim", "unknown format 'tim'. Did you mean 'timm'?"),
        ("lewel_m_200ep", "a.pth", "timm", "timm files must end in .safetensors"),
        ("lewel_m_200ep", "a.safetensors", "timm", "timm has no resnet18 of stem small"),
        ("lewel_m_200ep", "no/a.pth", "torchvision", "there is no folder"),
    ],
)
def test_a_mistake_is_one_line(
    made: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: str,
    name: str,
    to: str,
    message: str,
) -> None:
    assert export(made[0], run, tmp_path / name, "--to", to) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_evaluation_names_its_pretraining(
    made: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, key = made
    (final,) = (p.parent.name for p in root.glob(f"*/{record.NAME}") if _evaluates(p, key))
    assert export(root, final, tmp_path / "a.pth", "--to", "detectron2") == 2
    assert f"has no backbone: use {key}" in capsys.readouterr().err


def _evaluates(path: Path, key: str) -> bool:
    return key in record.read(path).upstream


def test_another_file_than_the_record_names_is_refused(
    made: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, key = tmp_path / "runs", made[1]
    shutil.copytree(made[0], root)
    with open(root / key / "backbone.safetensors", "ab") as file:
        file.write(b"x")
    assert export(root, key, tmp_path / "a.safetensors", "--to", "safetensors") == 2
    assert "hash mismatch" in capsys.readouterr().err
    (root / key / "backbone.safetensors").unlink()
    assert export(root, key, tmp_path / "a.safetensors", "--to", "safetensors") == 2
    assert "is missing, although its record exists" in capsys.readouterr().err
