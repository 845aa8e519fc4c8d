"""A user's own method: the worked example, what is kept of it, and what is said of mistakes."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import planning
import pytest
import torch
from command_line import write_images
from finished import finish

from lewel_bench.harness import rundir, status
from lewel_bench.harness.board import extra_rows as extras
from lewel_bench.harness.cli import main
from lewel_bench.harness.cost import classes as alike
from lewel_bench.harness.job_names import named_keys
from lewel_bench.harness.jobs import job as jobs
from lewel_bench.harness.plan import plugins as own
from lewel_bench.harness.plan import suites
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog, ScaledCatalog
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import MachineSettings, Site
from lewel_bench.pretrain import methods, own_method
from lewel_bench.pretrain.method import Views
from lewel_bench.pretrain.recipe import Recipe, change
from lewel_bench.pretrain.report import Stopped, silent
from lewel_bench.results import table
from lewel_bench.results.store import Store

EXAMPLE = Path(__file__).parents[2] / "docs" / "own_method.py"
SHAPES = suites.SUITES["shapes"]
WRITE = "write VICReg.__init__(self, settings: VICRegSettings, backbone, norm, *, ...)"
SMALL = (
    ("args.dim", 16), ("batch", 8), ("epochs", 3), ("image_size", 32), ("optimizer.lr", 0.5),
    ("schedule.warmup_epochs", 0),
)  # fmt: skip


def catalog(tmp_path: Path) -> Catalog:
    """What a command under the run root of a test knows."""
    return own.load(tmp_path / "runs")


def recipe_of(tmp_path: Path, text: str) -> Recipe:
    """The recipe that a command line names, which later commands know."""
    root = tmp_path / "runs"
    (name,), known = own.with_methods([text], root, own.load(root))
    return known.recipes[name]


def added(tmp_path: Path, old: str = "", new: str = "") -> Recipe:
    """The recipe of the example, as a file of its own."""
    file = tmp_path / "mine" / "my_method.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(EXAMPLE.read_text().replace(old, new) if old else EXAMPLE.read_text())
    return recipe_of(tmp_path, f"{file}:recipe")


def pretraining(tmp_path: Path, recipe: Recipe) -> Job:
    data = tmp_path / "data"
    if not data.exists():
        write_images(data)
    datasets = Datasets(Site(), tmp_path / "runs", SHAPES, {"": data}, needed=True)
    known = PACKAGED.with_recipe(recipe)
    query = {"method": (recipe.name,), "evals": ("none",)}
    (job,) = planning.jobs(SHAPES, datasets, settings=SMALL, catalog=known, **query)
    return job


def test_the_example_is_short_and_its_loss_falls(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 80
    recipe = change(added(tmp_path), {"args.dim": 16, "backbone.width": 8})
    recipe = change(recipe, {"backbone.arch": "resnet18", "backbone.stem": "small"})
    method = methods.build(recipe, 0)
    torch.manual_seed(0)
    x = torch.randn(16, 3, 32, 32)
    nothing = torch.zeros(2, 16)
    views = Views(
        (x, x + torch.randn_like(x) / 4), torch.arange(16), torch.zeros(16, dtype=torch.int64),
        nothing[..., None].expand(-1, -1, 4), nothing > 0,
    )  # fmt: skip
    optimizer = torch.optim.SGD(method.parameters(), 0.02)
    losses = []
    for step in range(20):
        loss, shown = method(views, method.keys(views, step), slice(0, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(None, step, 20)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0] and 0 < shown["feature_std"] < 2
    assert all(p.grad is not None for p in method.backbone.parameters())


def test_the_terms_of_the_example_are_those_of_its_paper(tmp_path: Path) -> None:
    recipe = added(tmp_path)
    assert recipe.own is not None
    module = own_method.load_module(recipe.own)
    z = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    # variances 8 and 0: hinges 0 and 1 - sqrt(1e-4); no covariance
    assert module.spread(z).item() == pytest.approx((0 + 0.99) / 2 / 2)
    assert module.repeated(z).item() == 0
    same = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # every entry of C is 2
    assert module.repeated(same).item() == pytest.approx(2 * 2**2 / 2)


def test_it_trains_resumes_and_is_remembered(tmp_path: Path, capsys: Any) -> None:
    recipe = added(tmp_path)
    job, settings = pretraining(tmp_path, recipe), MachineSettings(device="cpu", workers=0)
    whole = jobs.run(job, tmp_path / "runs", settings, silent, lambda: False)
    assert whole.spec["recipe"]["own"] == {"code": recipe.own.code}  # type: ignore[union-attr]
    asked = iter([False, False, False, True])
    with pytest.raises(Stopped):
        jobs.run(job, tmp_path / "again", settings, silent, lambda: next(asked))
    resumed = jobs.run(job, tmp_path / "again", settings, silent, lambda: False)
    assert resumed.metrics == whole.metrics and resumed.checkpoint == whole.checkpoint
    assert whole.metrics.keys() >= {"effective_rank", "untrained_effective_rank"}
    assert main(["ls", "methods", "--root", str(tmp_path / "runs")]) == 0
    assert "your own, /" in capsys.readouterr().out and recipe.method == "VICReg"
    assert catalog(tmp_path).families["vicreg"] == ["vicreg_100ep"]
    assert pretraining(tmp_path, catalog(tmp_path).recipes[recipe.name]).key == job.key
    assert set(Store(tmp_path / "runs").records) == {job.key}


def test_a_failure_names_the_line_of_the_file(tmp_path: Path) -> None:
    job = pretraining(tmp_path, added(tmp_path, "for x in views)", "for x in views.none)"))
    settings = MachineSettings(device="cpu", workers=0)
    with pytest.raises(AttributeError):
        jobs.run(job, tmp_path / "runs", settings, silent, lambda: False)
    failure = json.loads((tmp_path / "runs" / job.key / rundir.FAILURE).read_text())
    line = next(n for n, s in enumerate(EXAMPLE.read_text().splitlines(), 1) if "in views)" in s)
    assert failure["message"].endswith(f"my_method.py, line {line})") and not failure["mistake"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("loss", "a Tensor"),
        ("loss, None", "(Tensor, NoneType)"),
        ("loss.expand(3), {}", "a loss of shape (3,)"),
        ("loss.detach(), {}", "a detached loss"),
    ],
)
def test_what_forward_must_return_is_said(tmp_path: Path, given: str, message: str) -> None:
    returned = 'return loss, {"feature_std": feature_std(y1)}'
    job = pretraining(tmp_path, added(tmp_path, returned, f"return {given}"))
    settings = MachineSettings(device="cpu", workers=0)
    with pytest.raises(ValueError, match=re.escape(f"VICReg.forward returned {message}: it must")):
        jobs.run(job, tmp_path / "runs", settings, silent, lambda: False)


def test_an_edited_file_is_another_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pretraining(tmp_path, added(tmp_path))
    same = pretraining(tmp_path, added(tmp_path))
    assert not capsys.readouterr().err
    label = pretraining(tmp_path, added(tmp_path, 'label="VICReg"', 'label="Mine"'))
    assert "note: vicreg_100ep was your own" in capsys.readouterr().err
    other = pretraining(
        tmp_path, added(tmp_path, "    variance: Rate = 25.0", "    variance: Rate = 20.0")
    )
    assert same.key == first.key and len({first.key, label.key, other.key}) == 3
    assert first.recipe and first.recipe.own and Path(first.recipe.own.file).exists()
    assert len(list((tmp_path / "runs" / own.FOLDER).glob("*-my_method.py"))) == 3
    # what was planned with is what runs: the copy must not have changed
    Path(first.recipe.own.file).write_text("raise SystemExit('never run')")
    with pytest.raises(ValueError, match="is not the file that was planned with"):
        methods.build(first.recipe, 0)


def test_settings_may_have_names_of_built_in_methods(tmp_path: Path) -> None:
    """The rules of queue, h and semantic are those of the built-in classes alone."""
    more = '    h: Positive = 3\n    queue: str = "none"\n    semantic: bool = False\n'
    old = "    covariance: Rate = 1.0\n"
    recipe = pretraining(tmp_path, added(tmp_path, old, old + more)).recipe
    assert recipe
    methods.settings_of(recipe)
    assert methods.arguments(recipe)["h"] == 3 and not methods.full_loss_epoch(recipe)


def test_jobs_of_it_are_like_one_another(tmp_path: Path) -> None:
    job = pretraining(tmp_path, added(tmp_path))
    assert job.recipe and job.recipe.own
    record = {"kind": "pretrain", **job.identity()}  # as a record has it: each argument, no file
    assert record["recipe"]["args"] != job.recipe.args and "file" not in record["recipe"]["own"]
    planned = job.model_dump(mode="json")

    def exact(of: dict[str, Any]) -> Any:
        return alike.shape("pretrain", of, job.data.id, None).exact

    Path(job.recipe.own.file).unlink()  # no file is read for it
    assert exact(record) == exact(planned)


def test_only_run_runs_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables and states go by what was stored when the method was registered."""
    root, recipe = tmp_path / "runs", added(tmp_path)
    name = recipe.name
    finish(root, recipe, "linear_lars", metrics={"top1": 1.0})
    for copy in (root / own.FOLDER).glob("*.py"):
        copy.write_text("raise SystemExit('it ran')")
    (tmp_path / "mine" / "my_method.py").unlink()
    more = ["--suite", "shapes", "--root", str(root)]
    for words in (
        ["status"],
        ["table", "1", *more[:2], "--with", name],
        ["table", "1", *more[:2], "--with", name, "--set", "args.dim=256"],
        ["explain", f"table1:{name}:100:top1", *more[:2], "--with", name],
        ["ls", "methods"],
    ):
        assert main([*words, *more[2:]]) == 0
    words = ["table", "1", *more, "--with", name, "--set", "args.dmi=256"]
    assert main(words) == 2  # the paper's rows have no such argument either
    assert "unknown argument of VICReg 'dmi'. Did you mean 'dim'?" in capsys.readouterr().err


def test_a_recipe_of_a_known_method_needs_no_class(tmp_path: Path) -> None:
    file = tmp_path / "longer.py"
    file.write_text(
        "from lewel_bench.pretrain.recipe import change\n"
        "from lewel_bench.pretrain.recipes import RECIPES\n"
        "mine = change(RECIPES['moco_v2_100ep'], {'name': 'moco_v2_mine_50ep', 'epochs': 50})\n"
    )
    recipe = recipe_of(tmp_path, f"{file}:mine")
    assert recipe.name == "moco_v2_mine_50ep" and recipe.own is None
    scaled = ScaledCatalog(catalog(tmp_path), SHAPES)
    assert scaled.recipe(recipe.name).args["queue"] == 1024  # as moco_v2's


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class VICReg(Method):", "class VICReg(Method:", "line 32: invalid syntax"),
        (
            "import torch\n",
            "import torhc\n",
            "line 8: ModuleNotFoundError: No module named 'torhc'",
        ),
        (
            'method="VICReg"',
            'method="VicReg"',
            "no class VicReg that subclasses lewel_bench's Method",
        ),
        ("(Method):", ":", "VICReg is not a subclass of"),
        ("    def forward", "    def forwards", "VICReg does not define forward"),
        ("vicreg_100ep", "vicreg", "name it by its family and its epochs, as my_method_100ep"),
        ("vicreg_100ep", "vicreg_200ep", "name it by its family and its epochs"),
        ("vicreg_100ep", "moco_v2_100ep", "moco_v2 is a built-in family"),
        ("dim: Positive", "dim: 'Tensor'", "PydanticSchemaGenerationError: Unable to generate"),
        ("dim: Positive", "dim: 'a b'", "SyntaxError: Forward reference must be an expression"),
        ("dim: Positive", "dim: Tensor", "PydanticSchemaGenerationError: Unable to generate"),
        ('augment="byol_eman"', 'augment="byol_emam"', "Did you mean 'byol_eman'?"),
        ("epochs=100", "epochs=0", "ValidationError: epochs: Input should be greater"),
        ("recipe = Recipe(", "other = Recipe(", "unknown recipe 'recipe'. Known: other"),
        ("recipe = Recipe(", "recipe = dict(", "recipe is not a Recipe"),
        ("import torch\n", "raise SystemExit(3)\n", "line 8: SystemExit: 3"),
        ("VICReg", "byol", "the class byol has the name of a built-in method"),
        ("dim: Positive = 8192", "dim: Positive", "VICRegSettings.dim has no default: write dim:"),
        ("dim: Positive = 8192", "dim = 8192", "A non-annotated attribute was detected"),
        ("dim: Positive", "dim: list", "VICRegSettings.dim: Input should be a valid list"),
        ("dim: Positive = 8192", "dim: list[int] = [1]", "its default [1] is not a number, text,"),
        ("dim: Positive = 8192", "dim: Positive = -1", "VICRegSettings.dim: Input should be great"),
        ("norm: Norm\n", "norm: Norm, **more: int\n", WRITE),
        ("norm: Norm\n", "norm: Norm, *, width: int\n", WRITE),
        ("settings: VICRegSettings", "settings", WRITE),
        (
            "settings: VICRegSettings",
            "settings: 'Absent'",
            "__init__: name 'Absent' is not defined",
        ),
        ("settings: VICRegSettings, ", "", WRITE),
        ("norm: Norm\n", "norm: Norm, *, ema: object\n", "has a momentum network: set ema.start"),
        ('method="VICReg"', 'method="VicReg"', "Classes that do: VICReg"),
        ("recipe = Recipe(", "dict(", "it contains no Recipe: see docs/own_method.md"),
        ("import torch\n", "import torch\0\n", "SyntaxError: source code string cannot contain"),
    ],
)
def test_mistakes_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    file = tmp_path / "my_method.py"
    file.write_text(EXAMPLE.read_text().replace(old, new))
    words = ["run", "--suite", "shapes", "--method", f"{file}:recipe", "--root"]
    assert main([*words, str(tmp_path / "runs"), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list((tmp_path / "runs").glob("*/record.json"))


def test_mistakes_in_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([f"{EXAMPLE}"], "name a recipe in it"),
        ([f"{tmp_path}/none.py:recipe"], "there is no file"),
        ([f"{EXAMPLE}:recipe", "--set", "args.dmi=3"], "Did you mean 'dim'?"),
        ([f"{EXAMPLE}:recipe", "--set", "args.dim=-3"], "greater than 0"),
        ([f"{EXAMPLE}:recipe", "--epochs", "200"], "has no recipe of 200 epochs"),
    ):
        command = ["run", "--suite", "shapes", "--root", str(tmp_path), "--dry-run", "--method"]
        assert main([*command, *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / own.FOLDER).exists()  # a dry run leaves nothing
    (tmp_path / own.FOLDER).mkdir()
    (tmp_path / own.FOLDER / "vicreg_100ep.json").write_text("{")
    assert main(["status", "--root", str(tmp_path)]) == 2
    assert "is damaged: remove it" in capsys.readouterr().err


def test_its_row_stands_below_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, recipe = tmp_path / "runs", added(tmp_path)
    name = recipe.name
    for seed, value in enumerate((50.0, 52.0)):
        finish(root, recipe, "linear_lars", seed, metrics={"top1": value, "top5": 90.0})
    more = ["--suite", "shapes", "--root", str(root)]
    words = ["table", "1", *more]
    assert main([*words, "--with", name, "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][-1]
    assert row["label"] == "VICReg (own)" and set(row["cells"]) == {"100:top1", "100:top5"}
    cell = row["cells"]["100:top1"]
    assert cell["mean"] == 51 and cell["n"] == 2 and cell["published"] is None
    assert cell["verdict"] == "nothing published"
    assert main([*words, "--with", "vicreg", "--missing"]) == 0  # by its family
    assert "vicreg" not in capsys.readouterr().out  # nothing of it is missing
    assert main(["table", "2", *more, "--with", name, "--missing"]) == 0
    assert f"table2:{name}:100:1pct:top1: missing" in capsys.readouterr().out
    assert main(["table", "9", *more, "--with", name, "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][-1]
    assert set(row["cells"]) == {"seconds", "hours", "memory", "top1"}  # no baseline to be over
    assert row["cells"]["seconds"]["n"] == 2
    cell = f"table1:{name}:100:top1"
    assert main(["explain", cell, *more, "--with", name]) == 0
    capsys.readouterr()
    for command, message in (
        (["explain", cell], f"Add --with {name}"),
        ([*words, "--with", "vicrge_100ep"], "Did you mean 'vicreg_100ep'"),
    ):
        assert main([*command, *([] if "--with" in command else more)]) == 2
        assert message in capsys.readouterr().err


def test_a_length_that_no_column_has_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = change(added(tmp_path), {"name": "vicreg_300ep", "epochs": 300})
    known = catalog(tmp_path).with_recipe(longer)
    rows = extras.find(Store(tmp_path), ["vicreg_300ep"], known)
    table_1 = extras.extended(table.load("1"), rows, lambda extra, protocol: False)
    assert table_1.rows == table.load("1").rows
    assert (
        "vicreg_300ep is pre-trained for 300 epochs: this table has no column"
        in table_1.remarks[-1]
    )


def test_a_cell_of_its_row_names_its_jobs(tmp_path: Path) -> None:
    recipe = added(tmp_path)
    name = recipe.name
    key = finish(tmp_path / "runs", recipe, "linear_lars", metrics={"top1": 1.0})
    store = Store(tmp_path / "runs")
    states = status.survey(store.root, store)
    cell = f"table1:{name}:100:top1"
    keys = named_keys(states, cell, extras.all_extras(store, catalog(tmp_path)))
    assert sorted(keys) == sorted([key, *store.records[key].upstream])
    with pytest.raises(ValueError, match="no job of this run root fills table1:lewel_m:200:top1"):
        named_keys(states, "table1:lewel_m:200:top1", extras.all_extras(store, catalog(tmp_path)))
    assert main(["logs", cell, "--root", str(store.root)]) == 2


def test_what_runs_later_is_what_was_planned(tmp_path: Path) -> None:
    first = added(tmp_path)
    word = f"--method={tmp_path / 'mine' / 'my_method.py'}:recipe,lewel_m"
    later = own.with_copies(word)
    assert later == f"--method={first.own and first.own.file}:recipe,lewel_m"
    assert own.with_copies("lewel_m") == "lewel_m"
    text = word.removeprefix("--method=").split(",")[0]
    assert own.with_copies(f"lewel_m, {text}") == f"lewel_m,{later.removeprefix('--method=')[:-8]}"
    assert own.with_copies(f"dir/{text},{text}0") == f"dir/{text},{text}0"  # of other files
    edited = added(tmp_path, 'label="VICReg"', 'label="Mine"')
    # a planner that wakes after the edit goes on with the first, and what is known stays the second
    assert recipe_of(tmp_path, later.removeprefix("--method=").split(",")[0]) == first
    assert catalog(tmp_path).recipes["vicreg_100ep"] == edited != first


def test_edits_of_the_same_second_and_size_are_told_apart(tmp_path: Path) -> None:
    for weight in ("24.0", "23.0"):
        recipe = added(tmp_path, "invariance: Rate = 25.0", f"invariance: Rate = {weight}")
        os.utime(tmp_path / "mine" / "my_method.py", (1, 1))
        built = methods.build(change(recipe, {"args.dim": 8}), 0)
        assert built.weights[0] == float(weight)


def test_a_job_has_its_file_and_a_run_root_may_move(tmp_path: Path) -> None:
    job = pretraining(tmp_path, added(tmp_path))
    kept = tmp_path / "runs" / job.key / rundir.METHOD
    rundir.RunDir(tmp_path / "runs").job(job.key).write_spec(job)
    kept.write_text("# edited")
    rundir.RunDir(tmp_path / "runs").job(job.key).write_spec(
        job
    )  # planned again: as it was planned
    (tmp_path / "mine" / "my_method.py").unlink()
    (tmp_path / "runs").rename(tmp_path / "moved")
    folder = tmp_path / "moved" / job.key
    assert (folder / rundir.METHOD).read_text() == EXAMPLE.read_text()
    read = rundir.JobDir(folder).read_spec()
    assert read.recipe and type(methods.build(read.recipe, 0)).__name__ == "VICReg"
    assert read.identity() == job.identity()
    known = own.load(tmp_path / "moved").recipes["vicreg_100ep"]
    assert methods.arguments(known)["dim"] == 8192


def test_a_projector_may_be_assigned(tmp_path: Path) -> None:
    old = "        self.weights ="
    recipe = added(tmp_path, old, f"        self.projector = torch.nn.Identity()\n{old}")
    method = methods.build(change(recipe, {"args.dim": 8}), 0)
    assert isinstance(method.projector, torch.nn.Identity)


@pytest.mark.parametrize("bases", ["BYOL", "Mixin, BYOL"])
def test_a_class_may_be_made_from_one_of_ours(tmp_path: Path, bases: str) -> None:
    file = tmp_path / "sub.py"
    file.write_text(
        "from lewel_bench.pretrain.methods.byol import BYOL\n"
        "from lewel_bench.pretrain.recipe import change\n"
        "from lewel_bench.pretrain.recipes import RECIPES\n"
        "class Mixin:\n"
        "    pass\n"
        f"class Mine({bases}):\n"
        "    def forward(self, views, keys, rows):\n"
        "        loss, shown = super().forward(views, keys, rows)\n"
        "        return 2 * loss, shown\n"
        "fields = {'name': 'byol_twice_100ep', 'method': 'Mine', 'args.dim': 8}\n"
        "recipe = change(RECIPES['byol_100ep'], fields)\n"
    )
    recipe = recipe_of(tmp_path, f"{file}:recipe")
    assert set(methods.arguments(recipe)) == {"dim", "hidden", "bias"}
    assert type(methods.build(recipe, 0)).__name__ == "Mine"


@pytest.mark.parametrize(
    ("method", "family", "args", "message"),
    [
        ("LewelB", "lewel_b", {"args.h": 3}, "Mine: args.h 3 must divide args.d 256"),
        ("MoCoV2", "moco_v2", {"args.queue": 8}, "Mine: args.queue 8 is smaller"),
        ("PCL", "pcl", {"args.warmup": 200}, "Mine: args.warmup 200 must be less than epochs"),
        ("SwAV", "swav", {"bn_group": 64}, "Mine: bn_group 64: the views pass through"),
    ],
)
def test_a_class_with_arguments_of_ours_has_their_rules(
    tmp_path: Path, method: str, family: str, args: dict[str, Any], message: str
) -> None:
    file = tmp_path / "sub.py"
    file.write_text(
        f"from lewel_bench.pretrain.methods.{family} import {method}\n"
        "from lewel_bench.pretrain.recipe import change\n"
        "from lewel_bench.pretrain.recipes import RECIPES\n"
        f"class Mine({method}):\n    pass\n"
        "fields = {'name': 'mine_200ep', 'method': 'Mine'}\n"
        f"recipe = change(RECIPES['{family}_200ep'], fields)\n"
    )
    recipe = recipe_of(tmp_path, f"{file}:recipe")
    methods.settings_of(recipe)
    with pytest.raises(ValueError, match=message):
        methods.settings_of(change(recipe, args))


def test_an_installed_distribution_offers_methods_and_protocols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "site" / "lewel_own_example"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "vicreg.py").write_text(EXAMPLE.read_text() + "recipes = [recipe]\n")
    (package / "protocols.py").write_text(
        "from lewel_bench.evals.protocols import PROTOCOLS\n"
        "known = PROTOCOLS['linear_sgd']\n"
        "linear_long = known.model_copy(update={'name': 'linear_long', 'held_out': 99})\n"
        "wrong = 3\n"
    )
    info = tmp_path / "site" / "lewel_own_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lewel-own-example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{own.METHODS_GROUP}]\nvicreg = lewel_own_example.vicreg:recipes\n"
        "broken = lewel_own_example.absent:recipes\n"
        f"[{own.PROTOCOLS_GROUP}]\nlinear_long = lewel_own_example.protocols:linear_long\n"
        "linear_wrong = lewel_own_example.protocols:wrong\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    words = ["run", "--suite", "shapes", "--root", str(tmp_path / "runs"), "--dry-run"]
    assert main(["ls", "methods", "--root", str(tmp_path / "runs")]) == 0
    assert "offered by lewel-own-example" in capsys.readouterr().out
    assert "lewel_own_example.vicreg" not in sys.modules  # nothing is loaded to list it
    assert main([*words, "--method", "vicreg", "--epochs", "100", "--evals", "linear_long"]) == 0
    assert "linear_long of vicreg_100ep" in capsys.readouterr().out
    recipe_of(tmp_path, "vicreg_100ep")
    recipe = json.loads((tmp_path / "runs" / own.FOLDER / "vicreg_100ep.json").read_text())
    assert recipe["own"]["module"] == "lewel_own_example.vicreg"
    method = methods.build(change(catalog(tmp_path).recipes["vicreg_100ep"], {"args.dim": 8}), 0)
    assert type(method).__module__ == "lewel_own_example.vicreg"
    assert main([*words, "--method", "vicreg_100ep", "--evals", "linear_long"]) == 0
    assert main(["ls", "protocols", "--root", str(tmp_path / "runs")]) == 0
    assert "offered by lewel-own-example" in capsys.readouterr().out
    # an edit is another number, not what was run here before, and a new release is one too
    (package / "vicreg.py").write_text(EXAMPLE.read_text() + "\nrecipes = [recipe]\n")
    del sys.modules["lewel_own_example.vicreg"]
    root = tmp_path / "runs"

    def offered() -> dict[str, Any]:
        assert main([*words, "--method", "vicreg", "--evals", "none"]) == 0
        known = own.with_methods(["vicreg"], root, own.load(root), keep=False)[1]
        return known.recipes["vicreg_100ep"].identity()

    identities = [catalog(tmp_path).recipes["vicreg_100ep"].identity(), offered()]
    metadata = info / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    assert offered() not in identities and identities[0] != identities[1]
    for more, message in (
        (["--method", "broken"], "lewel-own-example (lewel_own_example.absent:recipes) cannot be"),
        (
            ["--method", "vicreg", "--evals", "linear_wrong"],
            "is not a protocol called linear_wrong",
        ),
        (["--method", "vicreg", "--evals", "linear_lang"], "unknown evaluation 'linear_lang'"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
