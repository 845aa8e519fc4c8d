"""What is read of another lab's record must be in it, or its bundle is refused by name."""

import json
from pathlib import Path
from typing import Any

import planning
import pytest
from finished import SHAPES, finish

from lewel_bench.harness import spec_schema as foreign
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import Site
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results.record import Record
from lewel_bench.results.record import key as record_key
from lewel_bench.results.store import Store

PATH = Path("record.json")
IMPORT = {"tensors": "a", "network": "query", "backbone": {"arch": "resnet18"}}


def made(tmp_path: Path, kind: str) -> Record:
    finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 70.0})
    return next(record for record in Store(tmp_path).records.values() if record.kind == kind)


def changed(record: Record, spec: dict[str, Any], **fields: Any) -> Record:
    key = record_key(spec)
    return Record.model_validate({**record.model_dump(), "spec": spec, "key": key, **fields})


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("final", {"kind": "search"}, "kind or seed is not that of its spec"),
        ("final", {"seed": 1}, "kind or seed is not that of its spec"),
        ("final", {"environment": {"processes": "many"}}, "environment: processes"),
        ("final", {"outcome": {"attempts": "abc"}}, "outcome: attempts"),
        ("final", {"outcome": {"attempts": [{"seconds": 1.0}]}}, "attempts.0.processes"),
        ("pretrain", {"checkpoint": None}, "no backbone is named"),
    ],
)
def test_a_field_that_is_not_what_is_read(
    tmp_path: Path, kind: str, fields: dict[str, Any], message: str
) -> None:
    record = made(tmp_path, kind)
    foreign.check(record, PATH)
    with pytest.raises(ValueError, match=message) as error:
        foreign.check(changed(record, record.spec, **fields), PATH)
    assert str(error.value).startswith("record.json: ")


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("pretrain", {}, "spec: recipe: Field required"),
        ("pretrain", {"recipe": {"epochs": "x"}, "data": "d"}, "recipe.epochs"),
        ("import", {}, "tensors: Field required"),
        ("import", IMPORT | {"backbone": {"arch": "vit"}}, "backbone"),
        ("import", IMPORT, "outcome: format: Field required"),
        ("final", {"upstream": "a", "data": "d"}, "protocol: Field required"),
        ("final", {"upstream": "a", "data": "d", "protocol": {"runner": "linear"}}, "refit"),
        ("search", {"upstream": "a", "data": "d", "protocol": {"fraction": 0}}, "fraction"),
        (
            "search",
            {"upstream": "a", "data": "d", "protocol": {"runner": "semi"}},
            "outcome: chosen",
        ),
    ],
)
def test_a_spec_that_lacks_what_its_kind_is_read_for(
    tmp_path: Path, kind: str, spec: dict[str, Any], message: str
) -> None:
    record = made(tmp_path, "pretrain")
    with pytest.raises(ValueError, match=message):
        foreign.check(changed(record, {"kind": kind, "seed": 0, **spec}, kind=kind), PATH)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "not JSON"),
        ("[1]", "valid dictionary"),
        ("{}", "kind: Field required"),
        ('{"kind": "final", "name": "x", "seed": 0, "recipe": "x"}', "recipe"),
        ('{"kind": "final", "name": "x", "seed": 0, "recipe": {"name": "x", "own": "x"}}', "own"),
        ('{"kind": "final", "name": "x", "seed": 1}', "not that of its record"),
        ('{"kind": "search", "name": "x", "seed": 0}', "not that of its record"),
    ],
)
def test_a_spec_json_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    record = made(tmp_path, "final")
    foreign.check_spec(
        (tmp_path / record.key / "spec.json").read_bytes(), record, Path("spec.json")
    )
    with pytest.raises(ValueError, match=message):
        foreign.check_spec(text.encode(), record, Path("spec.json"))


def test_the_spec_of_every_recipe_and_protocol_passes(tmp_path: Path) -> None:
    datasets = Datasets(Site(), tmp_path, SHAPES, needed=False)
    evals = ("linear_lars", "semi_1pct", "coco_c4_1x", "voc12_seg_fcn_d8", "knn")
    record = made(tmp_path, "pretrain")
    for recipe in RECIPES.values():
        for job in planning.chain(recipe, evals, 1, SHAPES, datasets):
            outcome = {"chosen": {"lr": 1}, "extra": {"select": {"top1": None}}}
            fields = {"kind": job.kind, "seed": 1, "outcome": outcome}
            foreign.check(changed(record, json.loads(json.dumps(job.identity())), **fields), PATH)
        evals = ()
