"""A checkpoint that was trained elsewhere becomes a backbone under the run root: it is read and
checked before any job is queued, and its evaluations are jobs like all others."""

import json
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench.files import read_json, replacing, write_atomically
from lewel_bench.harness.board import extra_rows as extras
from lewel_bench.harness.jobs.launch import (
    Launch,
    check_writable,
    launch,
    machine_settings,
    note_unused_data,
)
from lewel_bench.harness.plan import cells, plan
from lewel_bench.harness.plan import plugins as own
from lewel_bench.harness.plan.workspace import Workspace
from lewel_bench.harness.request import Budget, Command, Compute, Evals, Import
from lewel_bench.harness.rundir import SPEC
from lewel_bench.results import checkpoints, record
from lewel_bench.results.record import Checkpoint, Record
from lewel_bench.results.store import Store
from lewel_bench.value import unknown

if TYPE_CHECKING:
    from lewel_bench.evals.checkpoints.importer import Reading

FILE = "backbone.safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


def evaluate(
    workspace: Workspace, source: Import, evals: Evals, compute: Compute, again: Command
) -> int:
    """Read and check a checkpoint, then evaluate it where a record is missing; the exit code.
    Raises ValueError, before anything is written, for a file that cannot be read, and without
    --force for one that fails the sanity check."""
    store = Store(workspace.root)
    label = _label(workspace, source, store)
    workspace = replace(workspace, catalog=own.with_protocols(evals.evals, workspace.catalog))
    catalog = workspace.catalog
    recipe = catalog.recipes.get(label["as"])
    names = cells.evaluations(recipe, evals.evals, catalog, workspace.suite)
    scaled = workspace.scaled(names)
    scaled.check_settings(names, recipes=False)
    key, reading = _identity(workspace, source, store)
    protocols = [*map(scaled.protocol, names)]
    jobs = plan.of_checkpoint(
        key, source.name, protocols, evals.seeds, workspace.suite.name, workspace.datasets
    )
    note_unused_data(workspace)
    if reading and label["as"]:
        _same_architecture(workspace, reading, label["as"])
    folder = workspace.root / key
    if key not in store.records and reading:
        _bring(workspace, source, compute, key, reading, label)
    elif not compute.dry_run:
        if reading and not (folder / FILE).exists():
            _restored(folder, reading, store.records[key])
        _labelled(folder, label)
    return launch(Launch(workspace, jobs, again, compute, Budget(), source.name))


def _label(workspace: Workspace, source: Import, store: Store) -> dict[str, Any]:
    """What the checkpoint is called and stands for: no part of its identity."""
    name, recipe, epochs = source.name, source.as_, source.epochs
    recipes = workspace.catalog.recipes
    if not NAME.fullmatch(name) or name in recipes or name in workspace.catalog.families:
        raise ValueError(
            f"--name {name}: use letters, digits, dots and dashes, and not the name of a recipe "
            "or method: moco-official"
        )
    if recipe and recipe not in recipes:
        raise ValueError(unknown("recipe", recipe, recipes))
    known = extras.imported(store, workspace.catalog).get(name)
    public = next((known for known in checkpoints.load() if known.name == name), None)
    if not recipe and known:
        recipe, epochs = known.recipe, epochs or known.epochs
    elif not recipe and public and public.recipe:
        recipe = public.recipe
        print(f"{name} is listed as {public.label} ({public.project}): --as {recipe}")
    if not epochs and not recipe and public:
        epochs = public.epochs
    if recipe and epochs and epochs != recipes[recipe].epochs:
        raise ValueError(f"--epochs {epochs}: {recipe} has {recipes[recipe].epochs}")
    if known:  # by whose key it may be asked for where another has its name
        name = str(extras.labels(store, known.key).get("name") or name)
    return {"name": name, "as": recipe or "", "epochs": epochs}


def _identity(workspace: Workspace, source: Import, store: Store) -> "tuple[str, Reading | None]":
    """The key of a checkpoint, and what was read; nothing is read where it was imported before and
    its file is not given or gone."""
    name, known = source.name, extras.imported(store, workspace.catalog)
    path = source.checkpoint.expanduser() if source.checkpoint else None
    if path is None or (not path.exists() and name in known):
        if name not in known:
            raise ValueError(
                f"{unknown('imported checkpoint', name, known)}. To import one: --checkpoint FILE"
            )
        if path is not None:
            print(f"{path} is missing: using the checkpoint imported as {name}", file=sys.stderr)
        return known[name].key, None
    from lewel_bench.evals.checkpoints import importer

    imported = importer.read(path, source.format, source.network)
    _say(imported, name)
    key = record.key(_spec(imported))
    for other in known.values():
        if other.name == name and other.key != key:
            raise ValueError(
                f"--name {name} is already used for another checkpoint (record {other.key}): "
                "choose another name"
            )
        if other.name != name and other.key == key:
            raise ValueError(
                f"these weights were imported as {other.name}: use --name {other.name}"
            )
    return key, imported


def _spec(imported: "Reading") -> dict[str, Any]:
    """All that determines a number of these weights."""
    return {
        "kind": "import",
        "tensors": imported.tensors,
        "network": imported.network,
        "backbone": imported.spec.model_dump(),
    }


def _say(imported: "Reading", name: str) -> None:
    others = [network for network in imported.networks if network != imported.network]
    more = f" (other networks in the file: {', '.join(others)}: --network)" if others else ""
    print(
        f"{name}: {imported.format}, network {imported.network}{more}: {imported.spec.arch}, stem "
        f"{imported.spec.stem}, width {imported.spec.width}; "
        f"{imported.same + imported.renamed} names matched, {imported.renamed} of them renamed, "
        f"{imported.aside} of heads skipped; weights sha256 {imported.tensors[:12]}"
    )
    if not imported.pixels.usual:
        mean = ", and the mean is subtracted by the network" if imported.pixels.other_mean else ""
        print(f"  trained on {imported.pixels}: folded into the first convolution{mean}")
    if imported.guessed:
        print(f"  {imported.guessed}")


def _bring(
    workspace: Workspace,
    source: Import,
    compute: Compute,
    key: str,
    imported: "Reading",
    label: dict[str, Any],
) -> None:
    """Check a checkpoint and copy it into the run root, its record last."""
    from lewel_bench.evals.sanity_check import check_backbone
    from lewel_bench.harness.jobs.provenance import environment, provenance
    from lewel_bench.pretrain import checkpoint

    settings, folder = machine_settings(compute, workspace.site), workspace.root / key
    assert source.checkpoint
    if compute.dry_run:
        print("  --dry-run: sanity check skipped, nothing written")
        return
    check_writable(workspace.root)
    started = datetime.now(UTC)
    try:
        checked = check_backbone(imported.state, imported.spec)
    except ValueError as error:
        raise ValueError(f"{source.checkpoint}: {error}") from None
    _shown(checked.measurements)
    if checked.warnings and not source.force:
        listed = "\n".join(f"  {warning}" for warning in checked.warnings)
        raise ValueError(
            f"{source.checkpoint}: this does not look like a trained network, or was read "
            f"wrongly:\n{listed}\nNothing was queued; --force evaluates it anyway"
        )
    for warning in checked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_backbone(folder / FILE, imported.state, checkpoint.header_of(imported.spec))
    _labelled(folder, label)
    finished = datetime.now(UTC)
    made = Record(
        key=key,
        kind="import",
        name=label["name"],
        spec=_spec(imported),
        seed=0,
        metrics={},
        outcome={
            "format": imported.format,
            "networks": list(imported.networks),
            "file": source.checkpoint.name,
            "file_sha256": imported.file_sha256,
            "pixels": imported.pixels.model_dump(),
            "names": {"same": imported.same, "renamed": imported.renamed, "aside": imported.aside},
            "guessed": imported.guessed,
            "sanity_check": checked.measurements,
        },
        warnings=checked.warnings,
        **provenance(),
        environment=environment(settings),
        started=started,
        finished=finished,
        seconds=round((finished - started).total_seconds(), 3),
        checkpoint=Checkpoint(file=FILE, sha256=checkpoint.sha256(folder / FILE)),
    )
    record.commit(folder, made)


def _same_architecture(workspace: Workspace, imported: "Reading", name: str) -> None:
    """Raise ValueError where a checkpoint cannot stand for a recipe: published values beside
    another network's would mean nothing."""
    recipe = workspace.catalog.recipes[name]
    if not extras.alike(imported.spec, recipe, workspace.suite):
        first, other = (
            f"{spec.arch}, stem {spec.stem}, width {spec.width}"
            for spec in (imported.spec, recipe.backbone)
        )
        raise ValueError(
            f"--as {name}: the checkpoint is a {first}, the recipe's backbone a {other}"
        )


def _restored(folder: Path, imported: "Reading", made: Record) -> None:
    """Write a backbone again that came without its weights, as in a bundle."""
    from lewel_bench.pretrain import checkpoint

    assert made.checkpoint is not None
    with replacing(folder / FILE) as temporary:
        checkpoint.write_backbone(temporary, imported.state, checkpoint.header_of(imported.spec))
        if checkpoint.sha256(temporary) != made.checkpoint.sha256:
            raise ValueError(
                f"{folder / FILE} is missing, and this checkpoint produces a different file of the "
                f"same weights: remove {folder} to import it again"
            )


def _shown(facts: dict[str, Any]) -> None:
    norms, features, knn = facts["batch_norm"], facts["features"], facts["knn"]
    print(
        f"  batch norm: means up to {norms['largest_mean']:.3g}, variances "
        f"{norms['smallest_variance']:.3g} to {norms['largest_variance']:.3g}; features of "
        f"{features['images']:.0f} images: length {features['norm']:.3g}, spread "
        f"{features['spread']:.2f} of it; kNN on generated scenes {knn['top1']:.1f}, random "
        f"weights {knn['random_top1']:.1f}"
    )


def _labelled(folder: Path, label: dict[str, Any]) -> None:
    """Write what a checkpoint is called, where that is new."""
    content = {"kind": "import", "seed": 0, **label}
    if read_json(folder / SPEC) != content:
        write_atomically(folder / SPEC, json.dumps(content, indent=1))
