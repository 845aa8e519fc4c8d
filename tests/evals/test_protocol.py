"""Protocols: the paper's values, their grids, identity and mistakes."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from lewel_bench.evals.classification import Linear, Semi
from lewel_bench.evals.grid import edge_warning
from lewel_bench.evals.loop import lr_factor
from lewel_bench.evals.protocols import PROTOCOLS, AnyProtocol
from lewel_bench.pretrain.recipe import change
from lewel_bench.slurm.profile import KINDS


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_loads_from_plain_data_and_has_a_source(protocol):
    assert TypeAdapter(AnyProtocol).validate_json(protocol.model_dump_json()) == protocol
    assert protocol.source and protocol.label


def test_published_learning_rates_are_in_their_grids():
    count = 0
    for protocol in PROTOCOLS.values():
        if isinstance(protocol, Linear):
            assert protocol.published_lr in protocol.lrs
            assert protocol.name.endswith("_text") or {
                "sgd": {0.05, 0.1, 0.2, 0.3, 0.4, 5.0, 30.0},  # BYOL, SwAV, EMAN, PCL, MoCo
                "lars": {0.32, 1.6, 3.2},  # SimSiam's text and code, LEWEL
            }[protocol.optimizer] <= set(protocol.lrs)
            count += 1
        elif isinstance(protocol, Semi):
            assert protocol.published_lr in protocol.grid()
            count += 1
    assert count == 8


def test_the_papers_settings():
    """LEWEL Sections 4.1 and 4.2, and methods.md B1 and B3."""
    lars, sgd = PROTOCOLS["linear_lars"], PROTOCOLS["linear_sgd"]
    assert (lars.batch, lars.epochs, lars.milestones, lars.published_lr) == (4096, 90, (), 3.2)
    assert (sgd.batch, sgd.epochs, sgd.milestones, sgd.published_lr) == (256, 50, (30, 40), 0.4)
    for protocol in (lars, sgd):
        assert protocol.weight_decays == (0.0,) and protocol.momentum == 0.9
        assert (protocol.image_size, protocol.resize) == (224, 256)
    for name, lr, fraction in (("semi_1pct", (1e-4, 1.0), 0.01), ("semi_10pct", (0.01, 0.1), 0.1)):
        semi = PROTOCOLS[name]
        assert (semi.published_lr, semi.fraction) == (lr, fraction)
        assert (semi.batch, semi.bn_group, semi.epochs, semi.milestones) == (256, 64, 50, (30, 40))
        assert (semi.weight_decay, semi.momentum) == (1e-4, 0.9)


def test_schedules():
    lars, sgd = PROTOCOLS["linear_lars"], PROTOCOLS["linear_sgd"]
    assert [lr_factor(sgd, e) for e in (0, 29, 30, 39, 40, 49)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert lr_factor(lars, 0) == 1
    assert lr_factor(lars, 45) == pytest.approx(0.5)
    assert lr_factor(lars, 89) == pytest.approx(3.0459e-4, rel=1e-3)  # (1 + cos(89 pi / 90)) / 2


def test_identity_is_what_determines_the_number():
    sgd = PROTOCOLS["linear_sgd"]
    for field in ("name", "label", "source"):
        assert change(sgd, {field: "other"}).identity() == sgd.identity()
    assert change(sgd, {"published_lr": 0.3}).identity() == sgd.identity()
    for field, value in {"epochs": 51, "refit": True, "lrs": (0.4,), "revision": 2}.items():
        assert change(sgd, {field: value}).identity() != sgd.identity()


def test_a_candidates_identity_is_independent_of_the_grid():
    semi = PROTOCOLS["semi_10pct"]
    wider = change(semi, {"head_lrs": (0.01, 0.1, 1.0, 10.0)})
    assert semi.identity() != wider.identity()
    assert semi.identity((0.01, 0.1)) == wider.identity((0.01, 0.1))
    assert semi.identity((0.01, 0.1)) != semi.identity((0.01, 1.0))


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("linear_sgd", {"epochs": 0}, "epochs"),
        ("linear_sgd", {"lrs": (0.1, -1.0)}, "greater than 0"),
        ("linear_sgd", {"lrs": ()}, "at least 1"),
        ("linear_sgd", {"lrs": (0.1, 0.1)}, "lrs lists a value twice: 0.1, 0.1"),
        ("linear_sgd", {"epochs": 20}, "scale them together with epochs"),
        ("linear_sgd", {"epoch": 20}, "Did you mean 'epochs'"),
        ("coco_fpn_1x", {"steps": 500, "milestones": (400,)}, "warmup 1000 must be at most 399"),
        ("coco_fpn_1x", {"steps": 500, "milestones": ()}, "warmup 1000 must be at most 500"),
        ("semi_1pct", {"batch": 100}, "not divisible by bn_group 64"),
        ("semi_1pct", {"fraction": 1.5}, "less than or equal to 1"),
    ],
)
def test_mistakes_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        change(PROTOCOLS[name], settings)


ONE_CANDIDATE = {"lrs": (0.02,)}
NO_REFIT = {"refit": False, "trials": 1}


@pytest.mark.parametrize(
    "name, settings, candidates, trainings",
    [
        ("linear_sgd", {}, 0, 1),  # one job trains all heads
        ("linear_sgd", {"refit": True}, 0, 1),
        ("knn", {}, 0, 1),
        ("semi_1pct", {}, 3 * 2, 0),  # the number is that of the best candidate
        ("voc07_det_c4", {}, 5, 5),
        ("voc07_det_c4", NO_REFIT, 5, 0),
        ("voc07_det_c4", ONE_CANDIDATE, 0, 5),  # nothing to search
        ("voc07_det_c4", ONE_CANDIDATE | NO_REFIT, 1, 0),
        ("coco_c4_1x", {}, 3 * 2, 1),
    ],
)
def test_jobs(name, settings, candidates, trainings):
    protocol = change(PROTOCOLS[name], settings)
    assert len(protocol.candidates()) == candidates
    assert protocol.final_trainings() == trainings
    identities = [str(protocol.identity(candidate)) for candidate in protocol.candidates()]
    assert len({*identities, str(protocol.identity())}) == candidates + 1


@pytest.mark.parametrize(
    "name, expected",
    [
        ("linear_lars", {"refit": True}),
        ("knn", {}),
        ("semi_1pct", {}),
        ("voc07_det_c4", {"refit": True, "lrs": [0.1], "engine": "detectron2"}),
        ("voc12_seg_fcn_d8", {"refit": True, "lrs": [0.1]}),
    ],
)
def test_what_refit_lrs_and_engine_set(name, expected):
    protocol = PROTOCOLS[name]
    chosen = protocol.choices(refit=True, lrs=[0.1], engine="detectron2")
    assert chosen == expected
    assert protocol.choices() == {}
    assert change(protocol, chosen).model_dump(include=set(chosen), mode="json") == chosen


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_describes_itself_and_its_jobs(protocol):
    assert protocol.job_class in KINDS
    words = protocol.describe()
    assert all(words) and words.measured.startswith(protocol.name)
    assert (protocol.engine_name() in protocol.engines) == bool(protocol.engines)
    dense = protocol.job_class == "dense"
    assert protocol.needs_one_process(on_cpu=True) == dense
    assert not protocol.needs_one_process(on_cpu=False)
    together = protocol.forward_pass()
    assert (together.undivided, together.limit is None) == (dense, dense or bool(together.bn_group))


def test_unknown_runner():
    with pytest.raises(ValidationError, match="runner"):
        TypeAdapter(AnyProtocol).validate_python({"runner": "lineal", "name": "x"})


def test_edges():
    assert edge_warning("lr", 0.1, [0.1, 0.2]) is None  # two values have no middle
    assert edge_warning("lr", 0.2, [0.1, 0.2, 0.4]) is None
    warning = edge_warning("lr", 0.4, [0.1, 0.4, 0.2])
    assert warning and "best lr 0.4 is the largest of the grid (0.1, 0.2, 0.4)" in warning
    assert "smallest" in (edge_warning("lr", 0.1, [0.1, 0.2, 0.4]) or "")


def test_protocols_do_not_import_torch():
    code = "import sys, lewel_bench.evals.protocols; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
