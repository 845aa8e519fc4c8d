"""Checkpoints as the authors' code writes them, read as our methods."""

import re
from datetime import datetime
from pathlib import Path

import official
import pytest
import torch

from lewel_bench.evals.checkpoints import limited, match
from lewel_bench.pretrain import methods, published
from lewel_bench.pretrain.method import Method
from lewel_bench.pretrain.recipe import Backbone, Recipe
from lewel_bench.pretrain.recipes import RECIPES

SMALL = Backbone(arch="resnet18", stem="small", width=8)
ARGS = {"lewel_b_200ep": {"d": 16}, "byol_200ep": {"dim": 16}, "moco_v2_200ep": {"dim": 16}}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    """The recipes of the layouts, with networks of a test's size."""
    queue = {"moco_v2_200ep": {"queue": 256}}
    mapping = {
        name: RECIPES[name].model_copy(
            update={"backbone": SMALL, "args": {**args, **queue.get(name, {}), "hidden": 8}}
        )
        for name, args in ARGS.items()
    }
    monkeypatch.setattr(published, "RECIPES", mapping)
    return mapping


def read(file: Path) -> tuple[str, Recipe, Method]:
    """As `figure 5` reads a file."""
    with limited.opened(file) as reader:
        content = reader.content()
        return published.read(file, match.unwrapped(content.shapes), content.tensors)


def written(project: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The online network by the project's names, behind DistributedDataParallel's prefix."""
    layout, method = published.LAYOUTS[project], methods.build(recipe, 3)
    assert method.projector is not None
    state = {f"{layout.f}{k}": v for k, v in method.backbone.state_dict().items()}
    for name, value in method.projector.state_dict().items():
        conv = project == "LEWEL" and value.ndim == 2
        state[layout.g + name] = value[..., None] if conv else value
    return {f"module.{k}": v for k, v in state.items()} | {"module.queue": torch.zeros(2, 3)}


@pytest.mark.parametrize("project", published.LAYOUTS)
def test_f_and_g_are_found(project: str, small: dict[str, Recipe], tmp_path: Path) -> None:
    recipe = small[published.LAYOUTS[project].recipe]
    file = tmp_path / "published.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": written(project, recipe)}, file)
    named, read_as, method = read(file)
    expected = methods.build(recipe, 3)
    assert (named, read_as) == (project, recipe)
    for part in ("backbone", "projector"):
        wanted = getattr(expected, part).state_dict()
        actual = getattr(method, part).state_dict()
        assert actual.keys() == wanted.keys()
        assert all(torch.equal(actual[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("case", official.CASES)
def test_the_names_are_those_of_the_official_classes(case: str) -> None:
    """What the official classes call f and g is what the parity tests translate to our names."""
    setting = official.CASES[case]
    project = {"lewel": "LEWEL", "eman": "EMAN", "moco": "MoCo v2"}[setting.repository]
    layout = published.LAYOUTS[project]
    assert official.name(setting.repository, f"{layout.g}0.weight") == "online.g.0.weight"
    theirs = official.name(setting.repository, f"{layout.f}conv1.weight")
    assert theirs == "online.backbone.conv1.weight"
    if official.folder(setting.repository) is None:
        pytest.skip(f"no official code: ${official.VARIABLE}/{setting.repository} is absent")
    names = official.build(setting).state_dict()
    assert any(n.startswith(layout.g) for n in names)
    assert f"{layout.f}layer4.1.bn2.running_var" in names


def test_other_files_are_refused_with_a_reason(small: dict[str, Recipe], tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    good = written("LEWEL", small["lewel_b_200ep"])
    short = {k: v for k, v in good.items() if "layer2.0.conv1" not in k}
    no_g = {k: v for k, v in good.items() if "proj" not in k}
    for content, message in (
        ({"state_dict": short}, "the weights do not match lewel_b_200ep .*layer2.0.conv1"),
        ({"state_dict": no_g}, "no projector in a known layout .known: LEWEL .*conv1.weight"),
        ({"epoch": 3}, "no projector in a known layout"),
        ({"state_dict": [1, 2]}, "no projector in a known layout"),
        ({"state_dict": good, "at": datetime.now()}, "needs datetime.datetime, which is no plain"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=message) as caught:
            read(file)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    for data in (b"", b"text", file.read_bytes()[:500]):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(f"{file}: ")) as caught:
            read(file)
        assert "cut off" in str(caught.value)
