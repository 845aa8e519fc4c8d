"""`lewel-bench eval`: what is read, checked, recorded, refused; and the rows of `table --with`."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import command, environment, write_images
from finished import SHAPES, START, imagenet

from lewel_bench.evals.sanity_check import SanityCheck
from lewel_bench.harness.board import extra_rows as extras
from lewel_bench.harness.board.board import Board
from lewel_bench.harness.board.cell_details import explained
from lewel_bench.harness.bundles import bundle, merge
from lewel_bench.harness.cli import main
from lewel_bench.harness.plan import plan, plugins, suites
from lewel_bench.harness.plan.catalog import PACKAGED, ScaledCatalog
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results import record
from lewel_bench.results.record import Contents, Data, Record
from lewel_bench.results.store import Store
from tests.evals.checkpoints import layouts

PAPER = suites.SUITES["paper"]
FOUND = {
    "batch_norm": {"largest_mean": 1.0, "smallest_variance": 0.5, "largest_variance": 2.0},
    "features": {"images": 16.0, "norm": 3.0, "spread": 0.5},
    "knn": {"top1": 60.0, "random_top1": 20.0},
}


@pytest.fixture(autouse=True)
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sanity check has tests of its own."""
    monkeypatch.setattr(
        "lewel_bench.evals.sanity_check.check_backbone", lambda *_: SanityCheck(FOUND)
    )


def moco(path: Path, seed: int = 1) -> Path:
    layout = layouts.LAYOUTS["moco v2"]
    return layouts.write(path, layout.content(layouts.state(seed), layouts.state(seed + 1)))


def evaluate(root: Path, *arguments: object) -> int:
    given = ["eval", "--suite", "shapes", "--evals", "none", "--root", root, *arguments]
    return main(list(map(str, given)))


def imported_keys(root: Path) -> list[str]:
    return [record.key for record in Store(root).records.values() if record.kind == "import"]


def imported(root: Path) -> Record:
    (record,) = (record for record in Store(root).records.values() if record.kind == "import")
    return record


def test_a_checkpoint_becomes_a_backbone(tmp_path: Path) -> None:
    path, root = moco(tmp_path / "moco.pth.tar"), tmp_path / "runs"
    assert evaluate(root, "--checkpoint", path, "--name", "mine", "--as", "moco_v2_200ep") == 0
    made = imported(root)
    assert made.spec["network"] == "query" and made.outcome["sanity_check"] == FOUND
    assert made.outcome["file_sha256"] == checkpoint.sha256(path)
    assert made.checkpoint is not None
    file = root / made.key / made.checkpoint.file
    assert made.checkpoint.sha256 == checkpoint.sha256(file)
    state, header = checkpoint.read_backbone(file)
    assert header == {"arch": "resnet18", "stem": "imagenet", "width": "8", "stride": "3x3"}
    own = layouts.state(1)
    assert all(torch.equal(state[key], value) for key, value in own.items())
    (extra,) = extras.find(Store(root), ["mine"], PACKAGED)
    assert (extra.recipe, extra.epochs, extra.key) == ("moco_v2_200ep", 200, made.key)


def test_weights_that_a_bundle_left_out_are_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = moco(tmp_path / "moco.pth.tar"), tmp_path / "runs"
    assert evaluate(root, "--checkpoint", path, "--name", "mine") == 0
    made = imported(root)
    assert made.checkpoint is not None
    file = root / made.key / made.checkpoint.file
    before = file.read_bytes()
    file.unlink()
    assert evaluate(root, "--checkpoint", path, "--name", "mine") == 0
    assert file.read_bytes() == before
    file.unlink()
    (root / made.key / "spec.json").unlink()
    given = ["--checkpoint", path, "--name", "mine", "--as", "moco_v2_200ep"]
    assert evaluate(root, *given) == 0
    assert (
        file.exists() and extras.imported(Store(root), PACKAGED)["mine"].recipe == "moco_v2_200ep"
    )
    file.unlink()
    state = layouts.state(1) | {"bn1.num_batches_tracked": torch.tensor(5)}  # the same weights
    other = layouts.LAYOUTS["moco v2"].content(state, layouts.state(2))
    layouts.write(tmp_path / "other.pth.tar", other)
    capsys.readouterr()
    again = evaluate(root, "--checkpoint", tmp_path / "other.pth.tar", "--name", "mine")
    assert again == 2 and "to import it again" in capsys.readouterr().err
    assert not file.exists()


def test_a_card_says_where_the_weights_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a row, that they were evaluated although the sanity check failed."""
    doubt = SanityCheck(FOUND, ("kNN says no",))
    monkeypatch.setattr("lewel_bench.evals.sanity_check.check_backbone", lambda *_: doubt)
    path, root = moco(tmp_path / "moco.pth.tar"), tmp_path / "runs"
    given = ["--checkpoint", path, "--name", "moco-v2-200-800", "--force"]
    assert evaluate(root, *given) == 0
    made, out = imported(root), tmp_path / "out.safetensors"
    words = ["export", made.key, "--to", "safetensors", str(out), "--root", str(root)]
    assert main(words) == 0
    card = (tmp_path / "out.safetensors.md").read_text()
    assert f"| file | `moco.pth.tar`, sha256 {checkpoint.sha256(path)} |" in card
    assert (
        "| format and network | moco, query |" in card and "| sanity check | kNN says no |" in card
    )
    assert "## Data" not in card
    assert extras.imported(Store(root), PACKAGED)[made.name].label.endswith(
        "; sanity check failed)"
    )


def test_a_recipe_that_is_not_known_here(tmp_path: Path) -> None:
    """As after a merge from a lab with recipes of its own."""
    root = tmp_path / "runs"
    assert evaluate(root, "--checkpoint", moco(tmp_path / "a.pth"), "--name", "mine") == 0
    spec = root / imported(root).key / "spec.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"as": "theirs_200ep"}))
    for suite in ("shapes", "paper"):
        assert main(["table", "1", "--with", "mine", "--suite", suite, "--root", str(root)]) == 0
    assert evaluate(root, "--name", "mine") == 0


def test_pixels_of_another_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = tmp_path / "half.toml"
    layout.write_text(
        'source = "us"\nroots = [""]\nnetworks = { one = "" }\n'
        "pixels = { mean = [0.5, 0.5, 0.5] }\n"
    )
    path, root = layouts.write(tmp_path / "a.pth", layouts.state(1)), tmp_path / "runs"
    assert evaluate(root, "--checkpoint", path, "--name", "mine", "--format", layout) == 0
    assert "the mean is subtracted by the network" in capsys.readouterr().out
    out = tmp_path / "out.safetensors"
    words = ["export", imported(root).key, "--to", "safetensors", str(out), "--root", str(root)]
    assert main(words) == 0
    card = (tmp_path / "out.safetensors.md").read_text()
    assert "minus the mean (0.5, 0.5, 0.5)" in card and "0.485" not in card.split("##")[1]


def test_another_architecture_stands_for_no_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", moco(tmp_path / "a.pth"), "--name", "mine", "--as", "moco_v2_200ep"]
    assert evaluate(tmp_path / "runs", *given, "--suite", "paper") == 2
    output = capsys.readouterr().err
    assert "--as moco_v2_200ep: the checkpoint is a resnet18" in output and "a resnet50" in output
    assert not imported_keys(tmp_path / "runs")


def test_identity_is_that_of_the_network(tmp_path: Path) -> None:
    """Another file of the same weights is the same; another network of the same file is not."""
    path, root = moco(tmp_path / "moco.pth.tar"), tmp_path / "runs"
    assert evaluate(root, "--checkpoint", path, "--name", "query") == 0
    alone = {f"encoder_q.{key}": value for key, value in reversed(layouts.state(1).items())}
    other = layouts.write(tmp_path / "other.pth", {"state_dict": alone}, "old")
    assert evaluate(root, "--checkpoint", other, "--name", "query") == 0
    assert evaluate(root, "--checkpoint", path, "--name", "key", "--network", "key") == 0
    known = extras.imported(Store(root), PACKAGED)
    assert set(known) == {"query", "key"} and known["query"].key != known["key"].key


def test_evaluated_in_full_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real command line: kNN on class folders, again without the file, exported, collected."""
    images, root = write_images(tmp_path / "images"), tmp_path / "runs"
    path = moco(tmp_path / "moco.pth.tar")

    def bench(verb: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        line = command(verb, *map(str, arguments), "--root", root)
        return subprocess.run(line, env=environment(), capture_output=True, text=True, cwd=tmp_path)

    asked = ("--name", "mine", "--suite", "shapes", "--evals", "knn", "--data", images)
    done = bench("eval", "--checkpoint", path, *asked, "--set", "knn.ks=[3]", "--force")
    assert done.returncode == 0, done.stderr
    assert "moco, network query" in done.stdout and "done: 1 jobs" in done.stdout
    made = imported(root)
    assert made.warnings and made.outcome["sanity_check"]["knn"]["queries"] == 240
    path.unlink()
    again = bench("eval", "--checkpoint", path, *asked, "--set", "knn.ks=[3]")
    assert again.returncode == 0 and "nothing to do: all 1 jobs have records" in again.stdout
    assert "is missing: using" in again.stderr
    out = tmp_path / "out.pth"
    assert main(["export", "mine", str(out), "--to", "mmseg", "--root", str(root)]) == 0
    assert "# mine" in (tmp_path / "out.pth.md").read_text()
    assert main(["status", "--root", str(root)]) == 0
    assert "2 done" in capsys.readouterr().out


def test_the_sanity_check_comes_before_any_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root = moco(tmp_path / "moco.pth.tar"), tmp_path / "runs"
    doubt = SanityCheck(FOUND, ("kNN on 240 generated scenes: top-1 9.0",))
    monkeypatch.setattr("lewel_bench.evals.sanity_check.check_backbone", lambda *_: doubt)
    assert evaluate(root, "--checkpoint", path, "--name", "mine", "--evals", "knn") == 2
    output = capsys.readouterr().err
    assert "top-1 9.0\nNothing was queued; --force" in output and not list(root.glob("*/*.json"))
    assert evaluate(root, "--checkpoint", path, "--name", "mine", "--force") == 0
    assert imported(root).warnings == doubt.warnings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "moco_v2"], "not the name of a recipe"),
        (["--name", "../x"], "letters, digits"),
        (["--name", "n", "--as", "moco_v2_20ep"], "Did you mean 'moco_v2_200ep'"),
        (["--name", "n", "--as", "moco_v2_200ep", "--epochs", "100"], "moco_v2_200ep has 200"),
        (["--name", "n", "--epochs", "0"], "at least 1"),
        (["--name", "n", "--evals", "liner"], "Did you mean 'linear'"),
        (["--name", "n", "--seeds", "none"], "whole number"),
        (["--name", "n", "--format", "moko"], "Did you mean 'moco'"),
        (["--name", "n", "--format", "simsiam"], "it is a file of the format moco"),
        (["--name", "n", "--network", "target"], "unknown network of moco"),
        (["--name", "n", "--set", "optimizer.lr=1"], "an imported checkpoint has no recipe"),
        (["--name", "n", "--checkpoint", "gone.pth"], "No such file"),
        (["--name", "n", "--suite", "paper", "--evals", "linear"], "needs the data set imagenet"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = moco(tmp_path / "moco.pth.tar"), tmp_path / "runs"
    assert evaluate(root, "--checkpoint", path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(root.glob("*/*"))


def test_names_are_unique(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    first, two = moco(tmp_path / "one.pth"), moco(tmp_path / "two.pth", 5)
    assert evaluate(root, "--name", "one") == 2
    assert "To import one: --checkpoint FILE" in capsys.readouterr().err
    assert evaluate(root, "--checkpoint", first, "--name", "one") == 0
    assert evaluate(root, "--checkpoint", two, "--name", "one") == 2
    assert "is already used for another checkpoint" in capsys.readouterr().err
    assert evaluate(root, "--checkpoint", first, "--name", "two") == 2
    assert "these weights were imported as one" in capsys.readouterr().err
    assert evaluate(root, "--name", "onw") == 2
    assert "Did you mean 'one'" in capsys.readouterr().err


def test_a_name_that_two_share_after_a_merge_is_neithers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local, theirs = tmp_path / "ours", tmp_path / "theirs"
    for seed, root in enumerate((local, theirs)):
        assert evaluate(root, "--checkpoint", moco(tmp_path / "a.pth", seed), "--name", "mine") == 0
        evaluated(root, SHAPES, "mine", "linear_lars", [50.0 + seed])
    own = imported(local).key
    merge.merge(bundle.write(theirs, tmp_path / "a.zip"), local)
    assert len(imported_keys(local)) == 2
    words = ["table", "1", "--suite", "shapes", "--root", str(local), "--with"]
    assert main([*words, "mine"]) == 2
    assert "Did you mean 'mine-" in capsys.readouterr().err
    filled = board(local, SHAPES, f"mine-{own[:6]}").filled("1")
    row = next(row for row in filled.table.rows if "imported" in row.label)
    means = {e.mean for (id, _), e in filled.entries.items() if id == row.id and e.mean is not None}
    assert means == {50.0, 65.0}
    # going on with one leaves both their names
    names = set(extras.imported(Store(local), PACKAGED))
    assert evaluate(local, "--name", f"mine-{own[:6]}") == 0
    assert set(extras.imported(Store(local), PACKAGED)) == names and len(names) == 2
    # the file alone does not say which name it goes by
    assert evaluate(local, "--checkpoint", tmp_path / "a.pth", "--name", "mine") == 2
    assert "these weights were imported as mine-" in capsys.readouterr().err


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, root = moco(tmp_path / "moco.pth.tar"), tmp_path / "runs"
    given = ("--checkpoint", path, "--name", "mine", "--evals", "linear,knn", "--dry-run")
    assert evaluate(root, *given) == 0
    assert "linear_lars of mine" in capsys.readouterr().out
    assert not [path for path in root.rglob("*") if path.is_file()]


def evaluated(
    root: Path,
    suite: Suite,
    name: str,
    protocol: str,
    values: list[float],
    settings: Sequence[tuple[str, Any]] = (),
    **fields: Any,
) -> None:
    """Records of an imported checkpoint's evaluations, one a seed."""
    datasets = Datasets(Site(), root, suite, needed=False)
    key = extras.imported(Store(root), PACKAGED)[name].key
    seeds = range(len(values))
    protocols = [ScaledCatalog(PACKAGED, suite, settings).protocol(protocol)]
    jobs = plan.of_checkpoint(key, name, protocols, seeds, suite.name, datasets)
    for job, value in zip((j for j in jobs if j.kind == "final"), values, strict=True):
        made: dict[str, Any] = {
            "key": job.key, "kind": job.kind, "name": job.name, "spec": job.identity(),
            "seed": job.seed, "commit": "c", "dirty": False, "version": "0",
            "command": "lewel-bench eval", "started": START, "finished": START, "seconds": 60.0,
        }  # fmt: skip
        top = {"top1": value, "top5": value + 15}
        record.commit(root / job.key, Record(**made, metrics=top, upstream=(key,), **fields))
        (root / job.key / "spec.json").write_text(job.model_dump_json())


def board(root: Path, suite: Suite, *names: str, settings: Sequence[tuple[str, Any]] = ()) -> Board:
    datasets = Datasets(Site(), root, suite, needed=False)
    return Board(root, suite, datasets, settings, names, plugins.load(root))


def test_row_beside_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the paper's scale: difference and verdict where the paper has the method and epochs."""
    root = tmp_path / "runs"
    path = moco(tmp_path / "a.pth")
    usual = RECIPES["moco_v2_200ep"]
    small = usual.model_copy(update={"backbone": layouts.SMALL})  # as that of the checkpoint
    monkeypatch.setattr(plugins, "PACKAGED", PACKAGED.with_recipe(small))
    assert evaluate(root, "--checkpoint", path, "--name", "mine", "--as", "moco_v2_200ep") == 0
    evaluated(root, PAPER, "mine", "linear_lars", [67.45, 67.5, 67.52], data=imagenet())
    filled = board(root, PAPER, "mine").filled("1")
    rows = [row.id for row in filled.table.rows]
    assert rows.index("mine") == rows.index("moco_v2") + 1
    entry = filled.entries["mine", "200:top1"]
    assert (entry.n, entry.published, entry.verdict) == (3, 67.5, "reproduced")
    assert entry.delta == pytest.approx(-0.01) and not entry.incomparable
    assert entry.where == ("ImageNet-1K, ResNet-18 of width 8",)
    assert filled.table.row("mine").label.startswith("mine (imported, weights ")
    assert ("mine", "100:top1") not in filled.entries
    # the paper's own row stays empty
    assert filled.entries["moco_v2", "200:top1"].n == 0
    details = explained(board(root, PAPER, "mine"), "table1:mine:200:top1")
    assert json.dumps(details).count('"random_top1": 20.0')
    assert main(["table", "1", "--with", "mine", "--format", "json", "--root", str(root)]) == 0
    assert "imported, weights" in capsys.readouterr().out
    # another network than the recipe's has nothing published beside it
    monkeypatch.setattr(plugins, "PACKAGED", PACKAGED)
    filled = board(root, PAPER, "mine").filled("1")
    assert filled.table.rows[-1].id == "mine"
    assert filled.entries["mine", "200:top1"].published is None


def test_a_row_that_was_measured_on_something_else_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands for a recipe of the paper, but on forty images and with one epoch."""
    root = tmp_path / "runs"
    small = RECIPES["moco_v2_200ep"].model_copy(update={"backbone": layouts.SMALL})
    monkeypatch.setattr(plugins, "PACKAGED", PACKAGED.with_recipe(small))
    path = moco(tmp_path / "a.pth")
    assert evaluate(root, "--checkpoint", path, "--name", "mine", "--as", "moco_v2_200ep") == 0
    few = Contents(images=40, classes=10, names="0" * 12, per_class=(4, 4))
    tiny = Data(name="tiny", fingerprint="f" * 12, images=40, whole=few)
    changed = [("linear_lars.epochs", 1)]
    data = {"train": tiny, "report": tiny}
    evaluated(root, PAPER, "mine", "linear_lars", [10.0, 10.1, 10.2], changed, data=data)
    filled = board(root, PAPER, "mine", settings=changed).filled("1")
    entry = filled.entries["mine", "200:top1"]
    assert (entry.mean, entry.verdict, entry.delta) == (10.1, "not comparable", None)
    some = "40 images of 10 classes (tiny, fingerprint ffffffffffff), not ImageNet-1K's"
    assert entry.incomparable == (
        f"trained on {some} 1,281,167 of 1,000",
        f"tested on {some} 50,000 of 1,000",
        "the protocol has epochs 1 (paper: 90)",
    )
    words = ["table", "1", "--with", "mine", "--set", "linear_lars.epochs=1", "--root", str(root)]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "Table 1. Measured: tiny (40 images), ResNet-18 of width 8. Published: ImageNet-1K" in out
    )
    assert f"Not comparable: trained on {some}" in out
    assert "differs" not in out.partition("[1]")[0]
    assert main([*words[:2], "--format", "json", *words[2:]]) == 0
    rows = {row["id"]: row["cells"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["mine"]["200:top1"]["incomparable"] == list(entry.incomparable)
    assert main(["explain", "table1:mine:200:top1", *words[2:]]) == 0
    assert "the protocol has epochs 1 (paper: 90)" in capsys.readouterr().out


def test_row_of_no_method_of_the_paper(tmp_path: Path) -> None:
    """It stands at the end, in the columns of its length, with nothing published."""
    root = tmp_path / "runs"
    path = moco(tmp_path / "a.pth")
    assert evaluate(root, "--checkpoint", path, "--name", "mine", "--epochs", "400") == 0
    evaluated(root, SHAPES, "mine", "linear_lars", [50.0])
    filled = board(root, SHAPES, "mine").filled("1")
    assert filled.table.rows[-1].id == "mine"
    entry = filled.entries["mine", "400:top1"]
    assert (entry.mean, entry.published, entry.verdict) == (50.0, None, "nothing published")
    assert ("mine", "200:top1") not in filled.entries
    for number in ("2", "3", "4", "8", "9"):
        board(root, SHAPES, "mine").filled(number)


def test_unknown_name_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "1", "--with", "mine", "--root", str(tmp_path)]) == 2
    assert "there is no imported checkpoint" in capsys.readouterr().err
