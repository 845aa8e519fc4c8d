from pathlib import Path

import planning
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.harness.board.board import Board
from lewel_bench.harness.plan import cells, plan, suites
from lewel_bench.harness.plan.catalog import PACKAGED, chosen_settings
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import OwnSuite, Site
from lewel_bench.harness.request import Evals, Selection
from lewel_bench.pretrain import methods
from lewel_bench.pretrain.recipe import change
from lewel_bench.pretrain.recipes import FAMILIES, RECIPES
from lewel_bench.pretrain.views import AUGMENTS
from lewel_bench.results import conflicts, table

SHAPES = suites.SUITES["shapes"]


def _dataset(name: str, role: str) -> Dataset:
    return Dataset(name=name, id=name, root="/data/" + name)


def _plan(**fields: object) -> list[Job]:
    return planning.jobs(SHAPES, _dataset, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("suite", suites.SUITES)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_possible_in_every_suite(suite: str, name: str) -> None:
    recipe = suites.SUITES[suite].recipe(RECIPES[name])
    methods.settings_of(recipe)
    assert recipe.augment in AUGMENTS
    assert recipe.source and recipe.label
    if suite == "paper":
        assert recipe == RECIPES[name]


@pytest.mark.parametrize("suite", suites.SUITES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_possible_in_every_suite(suite: str, name: str) -> None:
    protocol = suites.SUITES[suite].protocol(name, PROTOCOLS[name])
    assert protocol.source
    if suite == "paper":
        assert protocol == PROTOCOLS[name]


@pytest.mark.parametrize("name", table.TABLES)
def test_every_table_names_recipes_and_protocols_that_exist(name: str) -> None:
    for row, column in table.load(name).cells():
        assert row.family(column) in FAMILIES
        recipe = cells.recipe_name(row, column)
        assert recipe is not None, f"table {name}: no recipe for {row.id}, {column.id}"
        if column.eval == table.PRETRAIN:
            continue
        protocol = row.protocols[column.eval]
        assert protocol in PROTOCOLS
        if column.eval == "linear":  # `run --method` and `run --table` must mean the same
            assert protocol == cells.probe(RECIPES[recipe])
        assert protocol in cells.of_paper(RECIPES[recipe])


def test_what_is_not_part_of_a_key() -> None:
    recipe = RECIPES["lewel_m_200ep"]
    renamed = recipe.model_copy(update={"name": "x", "label": "y", "source": "z"})
    keys = [planning.chain(r, [], 0, SHAPES, _dataset)[0].key for r in (recipe, renamed)]
    assert keys[0] == keys[1]

    def elsewhere(name: str, role: str) -> Dataset:
        return Dataset(name="other", id=name, root="/elsewhere")

    assert planning.chain(recipe, [], 0, SHAPES, elsewhere)[0].key == keys[0]


@pytest.mark.parametrize(
    "setting",
    [("optimizer.lr", 0.5), ("epochs", 3), ("args.h", 1), ("revision", 3), ("bn_group", 16)],
)
def test_what_is_part_of_a_key(setting: tuple[str, object]) -> None:
    recipe = RECIPES["lewel_m_200ep"]
    before, after = (
        planning.chain(recipe, [], 0, SHAPES, _dataset, settings)[0].key
        for settings in ([], [setting])
    )
    assert before != after


@given(seed=st.integers(0, 2**31))
def test_seed_and_data_are_part_of_a_key(seed: int) -> None:
    recipe = RECIPES["byol_100ep"]
    key = planning.chain(recipe, [], seed, SHAPES, _dataset)[0].key
    assert key != planning.chain(recipe, [], seed + 1, SHAPES, _dataset)[0].key
    other = planning.chain(recipe, [], seed, SHAPES, lambda n, r: Dataset(name=n, id="b", root=""))
    assert key != other[0].key


@pytest.mark.parametrize(
    "protocol", ["linear_lars", "semi_1pct", "knn", "voc12_seg_fcn_d8", "coco_fpn_1x"]
)
def test_a_table_looks_for_the_key_that_a_run_writes(protocol: str, tmp_path: Path) -> None:
    datasets = Datasets(Site(), tmp_path, SHAPES, needed=False)
    settings = [("optimizer.lr", 0.5), (f"{protocol}.revision", 3)]
    board = Board(tmp_path, SHAPES, datasets, settings)
    recipe = RECIPES["lewel_m_200ep"]
    chain = planning.chain(recipe, [protocol], 0, SHAPES, datasets, settings)
    assert board.final_key(recipe.name, protocol, 0) == chain[-1].key


def test_a_run_without_evals_does_those_of_the_papers_tables() -> None:
    names = {j.protocol.name for j in _plan(method=("lewel_m",), epochs=(200,)) if j.protocol}
    assert names == {
        *("linear_lars", "semi_1pct", "semi_10pct", "voc07_det_c4", "voc12_seg_fcn_d8"),
        *("coco_c4_1x", "coco_fpn_1x"),
    }


def _judged(suite: str, *tables: str) -> dict[str, tuple[str, ...]]:
    named = plan.select(Selection(table=tables), Evals(), PACKAGED, suites.SUITES[suite])
    return {recipe: tuple(names) for recipe, names in named.items()}


def test_a_table_is_run_as_far_as_the_suite_has_a_scale() -> None:
    here = set(suites.SUITES["cifar10"].protocols)
    for number in ("1", "2", "5", "6", "7"):
        paper, scaled = _judged("paper", number), _judged("cifar10", number)
        for recipe, names in scaled.items():
            assert names == tuple(name for name in paper[recipe] if name in here)
        assert set(scaled) == {recipe for recipe, names in paper.items() if set(names) & here}
    assert set(_judged("cifar10", "9")) == set(_judged("paper", "9"))  # its costs have no scale
    assert _judged("shapes", *table.TABLES) == _judged("paper", *table.TABLES)
    assert _judged("paper", "all") == _judged("paper", *table.TABLES)


def _dense(**settings: object) -> list[Job]:
    return planning.jobs(
        suites.PAPER,
        _dataset,
        method=("lewel_m",),
        epochs=(200,),
        evals=("voc07_det_c4",),
        settings=tuple((f"voc07_det_c4.{name}", value) for name, value in settings.items()),
    )


def test_a_dense_search_ends_in_one_training_a_trial() -> None:
    jobs = _dense(trials=3)
    searches = [j for j in jobs if j.kind == "search"]
    finals = [j for j in jobs if j.kind == "final"]
    assert [j.lr for j in searches] == PROTOCOLS["voc07_det_c4"].grid()  # type: ignore[union-attr]
    assert [j.trial for j in finals] == [0, 1, 2] and len({j.key for j in finals}) == 3
    assert not any(j.is_selection for j in finals)
    assert {j.key for j in _dense(trials=2) if j.kind == "final"} < {j.key for j in finals}
    (final,) = [j for j in _dense(refit=False, trials=1) if j.kind == "final"]
    assert final.is_selection


def test_one_candidate_is_not_searched() -> None:
    jobs = _dense(lrs=[0.02], trials=1)
    assert [j.kind for j in jobs] == ["pretrain", "final"]
    assert jobs[1].needs == (jobs[0].key,)


def test_what_lrs_and_engine_stand_for() -> None:
    both = [PROTOCOLS[name] for name in ("voc07_det_c4", "voc12_seg_fcn_d8", "linear_lars")]
    assert chosen_settings(both, lrs=[0.1]) == [
        ("voc07_det_c4.lrs", [0.1]),
        ("voc12_seg_fcn_d8.lrs", [0.1]),
    ]
    assert chosen_settings(both, engines=["mmseg"]) == [("voc12_seg_fcn_d8.engine", "mmseg")]
    with pytest.raises(ValueError, match="Did you mean 'detectron2'"):
        chosen_settings(both, engines=["detectron"])
    with pytest.raises(ValueError, match="no selected evaluation runs on it"):
        chosen_settings([PROTOCOLS["linear_lars"]], engines=["mmseg"])
    with pytest.raises(ValueError, match="no detection or segmentation"):
        chosen_settings([PROTOCOLS["linear_lars"]], lrs=[0.1])
    with pytest.raises(
        ValueError, match="--refit: select a linear probe, detection or segmentation"
    ):
        chosen_settings([PROTOCOLS["semi_1pct"], PROTOCOLS["knn"]], refit=True)
    keys = [_dense(engine=engine)[-1].key for engine in ("native", "detectron2")]
    assert keys[0] != keys[1]


def test_order_needs_and_kinds() -> None:
    jobs = _plan(method=("lewel_m",), epochs=(200,), evals=("linear", "semi"))
    kinds = [job.kind for job in jobs]
    assert kinds == sorted(kinds, key=["pretrain", "search", "final"].index)
    searches = [j for j in jobs if j.kind == "search"]
    assert len(searches) == sum(len(_scaled(p).grid()) for p in ("semi_1pct", "semi_10pct"))
    seen: set[str] = set()
    for job in jobs:
        assert set(job.needs) <= seen, "a job comes before what it needs"
        seen.add(job.key)
    finals = {j.name: j for j in jobs if j.kind == "final"}
    assert set(finals) == {
        f"{p} of lewel_m_200ep" for p in ("linear_lars", "semi_1pct", "semi_10pct")
    }


def _scaled(name: str):  # type: ignore[no-untyped-def]
    return SHAPES.protocol(name, PROTOCOLS[name])


def test_a_candidate_does_not_depend_on_the_rest_of_the_grid() -> None:
    """Widening a grid must not run the candidates that are there again."""
    select = {"method": ("byol",), "epochs": (200,), "evals": ("semi_1pct",)}
    before = _plan(**select)
    wider = [*_scaled("semi_1pct").backbone_lrs, 0.5]
    after = _plan(**select, settings=(("semi_1pct.backbone_lrs", wider),))
    keys = [{j.key for j in jobs if j.kind == "search"} for jobs in (before, after)]
    assert keys[0] < keys[1]
    finals = [{j.key for j in jobs if j.kind == "final"} for jobs in (before, after)]
    assert not finals[0] & finals[1]


def test_one_run_serves_two_tables() -> None:
    keys = {j.key for j in _plan(table=("1",)) if j.kind == "pretrain"}
    both = [j.key for j in _plan(table=("1", "2")) if j.kind == "pretrain"]
    assert len(both) == len(set(both)) and keys <= set(both)


def test_a_job_survives_its_spec_file() -> None:
    for job in _plan(method=("lewel_b",), epochs=(200,), evals=("linear", "semi", "knn")):
        again = Job.model_validate_json(job.model_dump_json())
        assert again == job
        assert plan._keyed(**{k: getattr(again, k) for k in Job.model_fields}).key == job.key


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": ("lewelb",)}, "Did you mean 'lewel_b'"),
        ({"method": ("lewel_b_20ep",)}, "Did you mean 'lewel_b_200ep'"),
        ({"method": ("lewel_b",)}, "choose with --epochs"),
        ({"method": ("lewel_b",), "epochs": (7,)}, "Known: 100, 200, 400"),
        ({"table": ("12",)}, "unknown table '12'"),
        ({"method": ("lewel_b",), "epochs": (200,), "evals": ("liner",)}, "Did you mean 'linear'"),
        ({}, "nothing is selected: name a method"),
        (
            {"table": ("1",), "method": ("moco_v2_amp",)},
            "table 1: no cell of moco_v2_amp for which",
        ),
        (
            {"method": ("lewel_b",), "epochs": (200,), "settings": (("epohs", 3),)},
            "Did you mean 'epochs'",
        ),
        (
            {"method": ("lewel_b",), "epochs": (200,), "settings": (("linear_lars.epochs", 3),)},
            "linear_lars is not among the selected protocols",
        ),
        (
            {"method": ("lewel_b",), "epochs": (200,), "settings": (("optimizer.lr", -1),)},
            "greater than 0",
        ),
        (
            {"method": ("lewel_m",), "epochs": (200,), "settings": (("batch", 50),)},
            "not divisible by bn_group",
        ),
        (
            {"method": ("simclr",), "epochs": (200,), "settings": (("bn_group", 8),)},
            "leave bn_group out",
        ),
        (
            {"method": ("pcl",), "epochs": (200,), "settings": (("args.warmup", 12),)},
            "args.warmup 12 must be less than epochs 12",
        ),
        (
            {"method": ("swav_b256",), "epochs": (200,), "settings": (("epochs", 1),)},
            "args.queue_from 1 must be less than epochs 1",
        ),
        (
            {"method": ("simsiam",), "epochs": (200,), "settings": (("ema.start", 0.9),)},
            "there is no ema here",
        ),
    ],
)
def test_mistakes_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        _plan(**fields)
    assert message in str(caught.value)


def test_suite_of_the_user(tmp_path: Path) -> None:
    site = Site(suites={"mine": OwnSuite(like="shapes", data=str(tmp_path))})
    mine = suites.get("mine", site)
    assert mine.recipe(RECIPES["byol_200ep"]).data == f"folder:{tmp_path}"
    assert not mine.comparable
    full = suites.get("full", Site(suites={"full": OwnSuite(like="paper", data=str(tmp_path))}))
    for name, recipe in RECIPES.items():  # nothing but the data differs from the paper's
        assert full.recipe(recipe) == recipe.model_copy(update={"data": f"folder:{tmp_path}"}), name
    with pytest.raises(ValueError, match="Did you mean 'mine'"):
        suites.get("mne", site)


def test_change_names_the_nearest_field() -> None:
    with pytest.raises(ValueError, match="Did you mean 'lr'"):
        change(RECIPES["byol_200ep"], {"optimizer.l": 1})


def test_conflicts_name_recipes_and_protocols_that_exist() -> None:
    for conflict in conflicts.load():
        assert set(conflict.recipes) <= set(FAMILIES), conflict.id
        assert set(conflict.protocols) <= set(PROTOCOLS), conflict.id
