"""What sets a measured number apart from the paper's, and what is no difference."""

import json
from typing import Any

import pytest
from finished import imagenet
from making import record

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.detection import voc
from lewel_bench.evals.protocol import Protocol
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.harness.plan import plan
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.results.comparable import (
    Expected,
    besides_method,
    cost_differences,
    differences,
    measured_on,
    names_digest,
    published,
    unequal,
)
from lewel_bench.results.record import Contents, Data, Record, key

NOWHERE = Dataset(name="", id="", root="")
RECIPE = plan.of_recipe(RECIPES["moco_v2_200ep"], NOWHERE)["recipe"]
PROTOCOL = plan.of_protocol(PROTOCOLS["linear_lars"], NOWHERE)["protocol"]
WANTED = Expected(RECIPE, "imagenet", PROTOCOL, "imagenet")


def made(kind: str, spec: dict[str, Any], **fields: Any) -> Record:
    spec = {"kind": kind, **spec}
    return record(**{"kind": kind, "spec": spec, "key": key(spec), "data": imagenet(), **fields})


def pretrained(**changes: Any) -> Record:
    return made("pretrain", {"recipe": {**RECIPE, **changes}, "data": "imagenet"}, warnings=())


def evaluated(data: Any = None, **changes: Any) -> Record:
    spec = {"protocol": {**PROTOCOL, **changes}, "data": "imagenet"}
    return made("final", spec, data=data if data is not None else imagenet())


def test_a_run_as_the_papers_is_comparable() -> None:
    assert differences(evaluated(), pretrained(), WANTED) == ()
    assert measured_on(evaluated(), pretrained(), "imagenet") == "ImageNet-1K, ResNet-50"


def test_a_title_names_data_by_what_they_are_and_not_by_their_folder() -> None:
    own = {"report": Data(name="shapes", fingerprint="0" * 12, images=40)}
    metrics = evaluated(own)
    assert measured_on(metrics, pretrained(), "imagenet") == "shapes (40 images), ResNet-50"
    spec = {**metrics.spec, "data": "shapes-r3"}
    generated = metrics.model_copy(update={"spec": spec})
    assert measured_on(generated, pretrained(), "imagenet") == "generated scenes, ResNet-50"
    cost = pretrained()
    assert measured_on(cost, cost, "imagenet") == "ImageNet-1K, ResNet-50"


def test_a_cost_is_comparable_at_any_length_and_not_with_another_recipe_or_data() -> None:
    short = pretrained(epochs=2, schedule={**RECIPE["schedule"], "warmup_epochs": 0})
    assert cost_differences(short, RECIPE, "imagenet") == ()
    (difference,) = cost_differences(pretrained(batch=64), RECIPE, "imagenet")
    assert difference == "the recipe has batch 64 (paper: 256)"
    (difference,) = cost_differences(short.model_copy(update={"data": {}}), RECIPE, "imagenet")
    assert difference.startswith("pre-trained on images")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_a_record_read_from_disk_is_comparable_as_the_one_that_was_written(recipe: Recipe) -> None:
    wanted = plan.of_recipe(recipe, NOWHERE)["recipe"]
    before, result = (
        Record.model_validate_json(value.model_dump_json())
        for value in (made("pretrain", {"recipe": wanted}, warnings=()), evaluated())
    )
    assert differences(result, before, Expected(wanted, "imagenet", PROTOCOL, "imagenet")) == ()


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_a_protocol_read_from_disk_is_the_papers(protocol: Protocol) -> None:
    wanted = plan.of_protocol(protocol, NOWHERE)["protocol"]
    assert list(unequal(json.loads(json.dumps(wanted)), wanted)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1}, "the protocol has epochs 1 (paper: 90)"),
        (
            {"batch": 256, "refit": True},
            "the protocol has batch 256 (paper: 4096), refit True (pap",
        ),
        ({"lrs": [0.5]}, "the protocol has lrs [0.5] (paper: ["),
        (
            {"engine": "other"},
            "the engine other has not been tested for agreement with the paper's",
        ),
    ],
)
def test_another_protocol(changes: dict[str, Any], message: str) -> None:
    (difference,) = differences(evaluated(**changes), pretrained(), WANTED)
    assert difference.startswith(message)


def test_the_engines_that_agree_are_all_comparable() -> None:
    protocol = plan.of_protocol(PROTOCOLS["voc07_det_c4"], NOWHERE)["protocol"]
    assert protocol["engine"] == "native"
    wanted = Expected(RECIPE, "imagenet", protocol, "voc_detection")
    actual = made("final", {"protocol": {**protocol, "engine": "detectron2"}}, data=scenes(16551))
    assert differences(actual, pretrained(), wanted) == ()
    few = made("final", {"protocol": protocol}, data=scenes(11540))
    assert "11,540 images of 20 classes" in differences(few, pretrained(), wanted)[0]


def scenes(count: int) -> dict[str, Data]:
    names = names_digest(voc.CLASSES)
    return {
        role: Data(
            name="voc",
            fingerprint="0" * 12,
            images=images,
            whole=Contents(images=images, classes=20, names=names),
        )
        for role, images in (("train", count), ("report", 4952))
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": 40, "classes": 10},
            "tested on 40 images of 10 classes (imagenet, fingerprint ",
        ),
        ({"names": "0" * 12}, "with class names that differ from ImageNet-1K's"),
        ({"per_class": (1, 99)}, "not 50 to 50 images a class as in ImageNet-1K"),
    ],
)
def test_other_images(changes: dict[str, Any], message: str) -> None:
    data = imagenet()
    whole = data["report"].whole
    assert whole is not None
    data["report"] = data["report"].model_copy(update={"whole": whole.model_copy(update=changes)})
    (difference,) = differences(evaluated(data), pretrained(), WANTED)
    assert message in difference


def test_images_that_a_record_does_not_describe_are_no_evidence() -> None:
    bare = {role: value.model_copy(update={"whole": None}) for role, value in imagenet().items()}
    difference = differences(evaluated(bare), pretrained(), WANTED)
    assert (
        difference[1] == "tested on images that its record does not describe"
        and len(difference) == 2
    )


def test_a_labelled_subset_of_ones_own_is_not_the_published_one() -> None:
    semi = plan.of_protocol(PROTOCOLS["semi_1pct"], NOWHERE)["protocol"]
    wanted = Expected(RECIPE, "imagenet", semi, "imagenet")
    listed, drawn = (
        made("final", {"protocol": semi, "data": id}) for id in ("imagenet", "folder-0123456789ab")
    )
    assert differences(listed, pretrained(), wanted) == ()
    (difference,) = differences(drawn, pretrained(), wanted)
    assert difference.startswith("its labelled images were sampled locally")


def test_another_recipe_backbone_or_pre_training_data() -> None:
    difference = differences(evaluated(), pretrained(epochs=6, batch=64), WANTED)
    assert difference == ("the recipe has epochs 6 (paper: 200), batch 64 (paper: 256)",)
    narrow = {**RECIPE["backbone"], "width": 32}
    difference = differences(evaluated(), pretrained(backbone=narrow), WANTED)
    assert difference == ("the recipe has backbone.width 32 (paper: 64)",)
    other = pretrained().model_copy(update={"data": {}})
    (second_difference,) = differences(evaluated(), other, WANTED)
    assert second_difference == "pre-trained on images that its record does not describe"
    assert "no record" in differences(evaluated(), None, WANTED)[0]


def test_an_imported_checkpoint_is_known_by_its_backbone_and_its_check() -> None:
    spec = {"tensors": "0" * 64, "network": "", "backbone": {**RECIPE["backbone"], "stride": "1x1"}}
    fine = made("import", spec, data={}, warnings=())
    assert differences(evaluated(), fine, WANTED) == ()
    doubtful = fine.model_copy(update={"warnings": ("kNN is no better than random",)})
    (difference,) = differences(evaluated(), doubtful, WANTED)
    assert difference == "the checkpoint failed its sanity check: kNN is no better than random"
    small = made(
        "import",
        {**spec, "backbone": {**RECIPE["backbone"], "arch": "resnet18"}},
        data={},
        warnings=(),
    )
    (difference,) = differences(evaluated(), small, WANTED)
    assert difference == "the backbone has arch resnet18 (paper: resnet50)"


def test_published_counts_add_up() -> None:
    known = published()
    assert set(known) == {"imagenet", "imagenet100", "voc_detection", "voc_segmentation", "coco"}
    for name in ("imagenet", "imagenet100"):
        for split in (known[name].train, known[name].val):
            assert split.per_class is not None
            low, high = (known[name].classes * count for count in split.per_class)
            assert low <= split.images <= high
    assert known["voc_detection"].names == names_digest(reversed(voc.CLASSES))


def test_what_two_recipes_differ_in_besides_the_method() -> None:
    def between(of: str, over: str, **changes: Any) -> str:
        recipes = [plan.of_recipe(RECIPES[name], NOWHERE)["recipe"] for name in (of, over)]
        args = {**recipes[0]["args"], **changes}
        return besides_method({**recipes[0], "args": args}, recipes[1], tuple(recipes))

    message = between("lewel_m_200ep", "moco_v2_200ep")
    assert message == (
        "besides the method, they differ in optimizer.lr (0.06, 0.03), precision (fp16, fp32)"
    )
    assert "args.tau (0.1, 0.2)" in between("lewel_m_200ep", "moco_v2_200ep", tau=0.1)
    assert between("lewel_b_200ep", "byol_200ep") == ""
    # an ablation's own argument is what it is about
    assert between("lewel_m_h1_200ep", "lewel_m_200ep") == ""
