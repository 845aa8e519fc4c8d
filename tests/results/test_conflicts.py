import re
from pathlib import Path

import pytest

from lewel_bench.pretrain.recipes import RECIPES
from lewel_bench.pretrain.schedule import cosine_momentum, lr_at
from lewel_bench.results import conflicts
from lewel_bench.results.conflicts import load

# What the fact sheet lists as different or open, by the part that lists it.
LISTED = {
    "paper text, code and scripts of LEWEL_B": (
        "lewel_b.optimizer lewel_b.lr_batch_wd lewel_b.warmup lewel_b.400_epochs lewel_b.min_crop "
        "lewel_b.loss_directions lewel.beta lewel_m.infonce lewel.softmax_positions lewel_b.groups "
        "lewel_b.head_bias lewel.token_concat lewel_b.head_norm_decay lewel_b.schedule "
        "lewel.in100_lr"
    ),
    "LEWEL_B's code in detail": (
        "lewel.group_layout lewel_b.head_init lewel_b.embedding_dim lewel_b.target_statistics "
        "lewel_b.momentum_start lewel_b.precision lewel_b.seed lewel_b.knn_monitor data.drop_last "
        "bn.running_statistics lewel_b.evaluated_network"
    ),
    "gaps of LEWEL_M": (
        "lewel_m.groups lewel_m.aligned_negatives lewel_m.key_gather lewel_m.symmetry "
        "lewel_m.queue lewel_m.shuffle lewel_m.momentum_and_warmup lewel_m.head_bias "
        "lewel_m.head_init"
    ),
    "baselines": (
        "moco_v2.lr_and_head moco_v2.symmetry byol.setting byol_original.presets "
        "byol_original.target byol_original.zero_init in100.classes"
    ),
    "cited methods": (
        "instdisc.source instdisc.proximal instdisc.normaliser augment.order pcl.version "
        "pcl.temperature pcl.negatives pcl.kmeans densecl.head_init densecl.backbone_init "
        "densecl.warmup resim.c3_negatives resim.mean resim.pooling resim.transfer "
        "pixpro.instance_branch pixpro.loss pixpro.distance pixpro.momentum pixpro.optimizer"
    ),
    "methods without a momentum encoder": (
        "simclr.projector simclr.loss simclr.weight_decay simclr.init cited.lars cited.warmup "
        "simsiam.batch barlow_twins.gradient swav.batch_norm swav.queue swav.views "
        "supervised.weights"
    ),
    "ablations": "ablation.uncoupled ablation.extra_p ablation.random_maps ablation.grids",
    "evaluation": (
        "linear.lars_lr linear.probe linear.selection linear.in100 semi.weight_decay semi.lr "
        "semi.selection semi.classifier_init semi.batch_norm semi.subsets"
    ),
    "dense transfer": (
        "voc.test_set dense.lr dense.norm voc.segmentation voc.padding coco.fpn coco.configs"
    ),
}


def test_the_register_covers_everything_that_is_listed() -> None:
    listed = {id for ids in LISTED.values() for id in ids.split()}
    assert {entry.id for entry in load()} == listed


def test_what_the_code_does_names_its_source() -> None:
    """A file or paper; code read in a repository is pinned to a commit."""
    for entry in load():
        assert re.search(r"@ [0-9a-f]{7}|^paper, ", entry.where), entry.id
        for repository in re.findall(r"[\w.-]+/[\w.-]+ (?:\S+ )*?@ (\S+)", entry.where):
            assert re.match(r"[0-9a-f]{7}", repository), entry.id


def test_each_side_that_exists_by_name_is_listed_default_first() -> None:
    def sides(id: str) -> list[str]:
        (entry,) = (conflict for conflict in load() if conflict.id == id)
        return [*entry.recipes, *entry.protocols]

    assert sides("lewel_b.optimizer") == ["lewel_b", "lewel_b_paper_text"]
    assert sides("lewel_b.head_norm_decay") == ["lewel_b", "lewel_b_log"]
    assert "lewel_b_b512" in sides("lewel_b.lr_batch_wd")
    assert sides("lewel_m.groups") == ["lewel_m", "lewel_m_h1"]
    assert sides("moco_v2.lr_and_head") == ["moco_v2", "moco_v2_bn_head"]
    assert sides("byol.setting") == ["byol", "byol_eman", "byol_original"]
    assert sides("linear.probe")[:2] == ["linear_lars", "linear_sgd"]


def test_what_the_register_says_of_steps_is_what_the_schedules_do() -> None:
    """One step ahead of s / n in the warm-up, by 1/n at most; the momentum one place behind."""
    n = 3120
    for recipe in ("barlow_twins_1000ep", "simclr_200ep", "swav_200ep", "pixpro_400ep"):
        schedule = RECIPES[recipe].schedule
        steps = n // round(schedule.warmup_epochs)
        actual = [lr_at(1.0, schedule, step, steps, 100) for step in range(n)]
        theirs = [schedule.start + (1 - schedule.start) * step / n for step in range(n)]
        ahead = [a - b for a, b in zip(actual, theirs, strict=True)]
        assert min(ahead) > 0 and max(ahead) <= 1 / n + 1e-12, recipe
    steps = 100 * 1251
    late = max(
        cosine_momentum(0.99, k + 1, steps) - cosine_momentum(0.99, k, steps)
        for k in range(0, steps, 50)
    )
    assert late == pytest.approx(1.3e-7, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('topic = "Warm-up', 'topik = "Warm-up'), "Did you mean 'topic'"),
        (('id = "lewel_b.warmup"', 'id = "lewel_b.optimizer"'), "same id: lewel_b.optimizer"),
        (('topic = "', "topic = "), "conflicts.toml"),
        (('topic = "Warm-up of LEWEL_B"', 'topic = ""'), "topic"),
    ],
)
def test_a_wrong_register_names_the_file_and_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], message: str
) -> None:
    text = conflicts.FILE.read_text(encoding="utf-8")
    assert change[0] in text
    file = tmp_path / "conflicts.toml"
    file.write_text(text.replace(*change, 1), encoding="utf-8")
    monkeypatch.setattr(conflicts, "FILE", file)
    load.cache_clear()
    try:
        with pytest.raises(ValueError) as caught:
            load()
    finally:
        load.cache_clear()
    assert str(file) in str(caught.value) and message in str(caught.value)
