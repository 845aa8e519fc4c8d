"""What jobs are said to cost: sources, wall time, and what a budget buys."""

import json
import math
import random
from pathlib import Path
from typing import Any

import planning
import pytest
from command_line import write_images
from finished import SHAPES, board, finish

from lewel_bench.evals.dataset import Dataset
from lewel_bench.harness.cli import main
from lewel_bench.harness.cost import budget, probe
from lewel_bench.harness.cost.estimate import Cost, Estimator, duration, total, wall
from lewel_bench.harness.cost.probe import steps_of
from lewel_bench.harness.plan import suites
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.request import parse_gpu_hours
from lewel_bench.pretrain import recipe as recipes
from lewel_bench.results.store import Store

PAPER = suites.SUITES["paper"]


def jobs_of(
    root: Path, methods: str, evals: str = "linear", seeds: int = 1, **settings: object
) -> list[Job]:
    return planning.jobs(
        SHAPES,
        Datasets(Site(), root, SHAPES, needed=False),
        method=tuple(methods.split(",")),
        seeds=tuple(range(seeds)),
        evals=tuple(evals.split(",")),
        settings=tuple((name.replace("__", "."), value) for name, value in settings.items()),
    )


def edit(folder: Path, seconds: float, **environment: str) -> None:
    """Have the record of a folder say that it took `seconds`, and where."""
    path = folder / "record.json"
    record = json.loads(path.read_text())
    record["environment"] |= environment
    path.write_text(json.dumps(record | {"seconds": seconds}))


def paper_job(recipe: str) -> Job:
    data = Dataset(name="imagenet", id="imagenet", root="/data")
    (job,) = planning.jobs(
        PAPER,
        lambda name, task: data.model_copy(update={"id": name}),
        method=(recipe,),
        evals=("none",),
    )
    return job


def test_without_records_the_published_cost_is_the_estimate() -> None:
    estimator = Estimator({})
    hours = {r: estimator.cost(paper_job(f"{r}_200ep")) for r in ("moco_v2", "lewel_m", "byol")}
    assert hours["moco_v2"] == Cost(424, "MoCo's README, 8 V100", 8)
    assert estimator.cost(paper_job("moco_v2_symmetric_200ep")).hours is None  # twice the passes
    assert hours["lewel_m"].hours == pytest.approx(424 * 1222 / 1213)
    assert hours["byol"].hours == pytest.approx(2 * 229 * 1141 / 1191)
    assert estimator.cost(paper_job("lewel_b_100ep")).hours == pytest.approx(229)
    unknown = estimator.cost(paper_job("densecl_200ep"))
    assert unknown.hours is None and "--probe 50" in unknown.basis
    own = paper_job("moco_v2_200ep")
    own = own.model_copy(update={"data": own.data.model_copy(update={"id": "folder-1"})})
    assert estimator.cost(own).hours is None  # not ImageNet: nothing is published
    changes: tuple[tuple[dict[str, Any], bool], ...] = (
        ({"backbone.width": 128}, False),
        ({"image_size": 160}, False),
        ({"args.symmetric": True}, False),
        ({"args.symmetric": False}, True),  # as it is
        ({"augment": "swav"}, False),
        ({"name": "moco_v2_150ep"}, False),  # another version's
    )
    for change, published in changes:
        job = paper_job("moco_v2_200ep")
        assert job.recipe
        other = job.model_copy(update={"recipe": recipes.change(job.recipe, change)})
        assert (estimator.cost(other).hours is not None) == published, change


def test_records_come_before_probes_and_these_before_other_methods(tmp_path: Path) -> None:
    pretrain, final = jobs_of(tmp_path, "moco_v2_200ep")
    longer = jobs_of(tmp_path, "moco_v2_400ep")[0]
    other = jobs_of(tmp_path, "lewel_m_200ep")[0]
    estimator = Estimator({})
    assert estimator.cost(pretrain).hours is None
    finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 1.0})  # 60 s each
    estimator = Estimator(Store(tmp_path).records, tmp_path)
    assert estimator.cost(pretrain) == Cost(1 / 60, "1 of other methods here", 1)
    assert estimator.cost(final) == Cost(1 / 60, "1 like it here", 1)
    estimator.learn(pretrain, 360.0, 50)
    assert estimator.cost(pretrain) == Cost(0.1, "probe of 50 steps here", 1)
    assert estimator.cost(longer).hours == pytest.approx(0.2)  # twice the epochs
    finish(tmp_path, "moco_v2_200ep", "linear_lars", metrics={"top1": 1.0})
    estimator = Estimator(Store(tmp_path).records, tmp_path)
    assert estimator.cost(pretrain) == Cost(1 / 60, "1 like it here", 1)
    folder = tmp_path / other.key
    (folder / "backbone.safetensors").write_bytes(b"0" * 5000)
    kept = sum(path.stat().st_size for path in folder.iterdir())
    assert estimator.disk(other) == kept > 5000


def test_of_an_interrupted_job_what_is_left_is_estimated(tmp_path: Path) -> None:
    finish(tmp_path, "moco_v2_200ep", "linear_lars", 1, metrics={"top1": 1.0})  # a minute
    pretrain, final = jobs_of(tmp_path, "moco_v2_200ep")
    (tmp_path / pretrain.key).mkdir()
    events = [{"event": "step", "time": s, "step": s, "steps": 100} for s in (1, 60)]
    log = tmp_path / pretrain.key / "events.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    estimator = Estimator(Store(tmp_path).records, tmp_path)
    assert estimator.cost(pretrain).basis == "1 like it here"  # it has nothing to go on from
    (log.parent / "checkpoint-00000060-0123456789abcdef.pt").touch()
    cost = estimator.cost(pretrain)
    assert cost.hours == pytest.approx(0.4 / 60)
    assert cost.basis == "1 like it here, 60% of it done"
    assert total([pretrain, final], estimator).hours == pytest.approx(1.4 / 60)
    assert estimator.cost_of(pretrain.model_dump(mode="json")).hours == pytest.approx(1 / 60)
    finish(tmp_path, "moco_v2_200ep", "linear_lars", metrics={"top1": 1.0})
    estimator = Estimator(Store(tmp_path).records, tmp_path)
    assert estimator.cost(pretrain).basis == "2 like it here"  # a job that is done cost all of it


def test_records_of_one_model_of_device_are_gone_by(tmp_path: Path) -> None:
    for seed, model in enumerate(("A100", "A100", "V100")):
        key = finish(tmp_path, "moco_v2_200ep", "linear_lars", seed, metrics={"top1": 1.0})
        edit(tmp_path / key, {"A100": 360.0, "V100": 1800.0}[model], device=model)
    pretrain, final = jobs_of(tmp_path, "moco_v2_200ep")
    estimator = Estimator(Store(tmp_path).records, tmp_path)
    assert estimator.cost(final) == Cost(0.1, "2 like it on A100", 1)
    assert estimator.lacks(final) is None  # whatever this machine is
    estimator.device = "V100"
    assert estimator.lacks(final) is None
    assert estimator.cost(final) == Cost(0.5, "1 like it on V100", 1)
    estimator.device = "T4"
    assert estimator.lacks(final) is not None  # no record is of this machine: worth a probe
    assert estimator.cost(final).basis == "2 like it on A100"
    estimator.learn(final, 7200.0, None)
    assert estimator.cost(final) == Cost(2.0, "probe of a whole job here", 1)
    assert estimator.cost(pretrain).basis == "3 like it on an unknown device"


def test_here_is_this_machine(tmp_path: Path) -> None:
    key = finish(tmp_path, "moco_v2_200ep", "linear_lars", metrics={"top1": 1.0})
    final = jobs_of(tmp_path, "moco_v2_200ep")[1]
    for folder in (tmp_path / key, tmp_path / next(iter(Store(tmp_path).records[key].upstream))):
        edit(folder, 360.0, device="A100")
    estimator = Estimator(Store(tmp_path).records, tmp_path)
    assert estimator.cost(final).basis == "1 like it here"
    estimator.device = "T4"
    assert estimator.cost(final).basis == "1 like it on A100"


def test_a_probe_says_what_its_steps_cannot_know(tmp_path: Path) -> None:
    estimator, bases = Estimator({}), {}
    for methods in ("pcl_200ep", "swav_200ep", "swav_b256_200ep", "moco_v2_200ep"):
        job = jobs_of(tmp_path, methods)[0]
        estimator.learn(job, 60.0, 50)
        bases[methods] = estimator.cost(job).basis
    plain = "probe of 50 steps here"
    assert bases == {
        "pcl_200ep": f"{plain}; slower from epoch 1 on",  # clusters
        "swav_200ep": plain,
        "swav_b256_200ep": f"{plain}; slower from epoch 1 on",  # its queue
        "moco_v2_200ep": plain,
    }


def test_what_costs_otherwise_is_told_apart(tmp_path: Path) -> None:
    finish(tmp_path, "moco_v2_200ep", "linear_lars", metrics={"top1": 1.0})
    estimator = Estimator(Store(tmp_path).records, tmp_path)

    def bases(methods: str, **settings: object) -> list[str]:
        return [estimator.cost(job).basis for job in jobs_of(tmp_path, methods, **settings)]

    assert bases("moco_v2_200ep") == bases("moco_v2_100ep") == ["1 like it here"] * 2
    assert bases("moco_v2_symmetric_200ep") == ["1 of its method here", "1 like it here"]
    assert bases("moco_v2_200ep", args__tau=0.3) == ["1 of its method here", "1 like it here"]
    assert bases("swav_200ep") == ["1 of other methods here", "1 like it here"]
    unknown = "unknown: add --probe 50, or finish a comparable run"
    assert bases("moco_v2_200ep", backbone__width=32) == [unknown] * 2
    assert bases("moco_v2_200ep", linear_lars__refit=True) == ["1 like it here", unknown]
    assert bases("moco_v2_200ep", linear_lars__batch=32) == [
        "1 like it here",
        "1 similar here",
    ]


def test_records_of_as_many_threads_are_gone_by(tmp_path: Path) -> None:
    for seed, threads in enumerate(("1", "1", "2")):
        key = finish(tmp_path, "moco_v2_200ep", "linear_lars", seed, metrics={"top1": 1.0})
        edit(tmp_path / key, 360.0 if threads == "1" else 180.0, threads=threads)
    records, final = Store(tmp_path).records, jobs_of(tmp_path, "moco_v2_200ep")[1]
    costs = [Estimator(records, tmp_path, threads).cost(final) for threads in (1, 2, 8)]
    assert [cost.hours for cost in costs] == pytest.approx([0.1, 0.05, 0.1])
    assert [cost.basis for cost in costs] == [f"{n} like it here" for n in (2, 1, 3)]


def test_half_of_a_sweep_predicts_the_other(tmp_path: Path) -> None:
    """Bar: within a factor 1.5 for at least 90 % of jobs, here with a spread of 15 %."""
    draw = random.Random(0)
    specs = {}
    for recipe in ("moco_v2_200ep", "lewel_m_200ep", "moco_v2_100ep", "lewel_m_100ep"):
        for seed in range(5):
            seconds = 200 * (2 if "200" in recipe else 1) * (1.3 if "lewel" in recipe else 1)
            key = finish(
                tmp_path, recipe, "linear_lars", seed, metrics={"top1": 1.0},
                seconds=50 * math.exp(draw.gauss(0, 0.15)),
            )  # fmt: skip
            first = next(iter(Store(tmp_path).records[key].upstream))
            edit(tmp_path / first, seconds * math.exp(draw.gauss(0, 0.15)))
            specs |= {k: json.loads((tmp_path / k / "spec.json").read_text()) for k in (key, first)}
    records = Store(tmp_path).records
    keys = sorted(records)
    draw.shuffle(keys)
    half = len(keys) // 2
    estimator = Estimator({key: records[key] for key in keys[:half]})
    good = 0
    for key in keys[half:]:
        hours = estimator.cost_of(specs[key]).hours
        assert hours is not None
        good += 1 / 1.5 <= hours * 3600 / records[key].seconds <= 1.5
    assert good >= 0.9 * half


def named(key: str, *needs: str) -> Job:
    return jobs_of(Path("/nowhere"), "moco_v2_200ep")[0].model_copy(
        update={"key": key, "needs": needs}
    )


def test_wall_time_is_that_of_a_schedule() -> None:
    jobs = [named("a"), named("b"), named("c", "a"), named("d", "a", "b")]
    costs = {k: Cost(h, "") for k, h in zip("abcd", (2.0, 1.0, 4.0, 1.0), strict=True)}
    assert wall(jobs, costs, 1) == 8
    assert wall(jobs, costs, 2) == 6  # a, then c; b beside a, then d
    assert wall(jobs, costs, 9) == 6
    assert wall(jobs, {**costs, "c": Cost(32.0, "", 8)}, 2) == 6  # eight devices at once
    assert wall([], {}, 3) == 0
    chains = [named(f"{c}{n}", *([f"{c}0"] if n else [])) for c in "abcd" for n in (0, 1)]
    hours = {job.key: Cost(2.0 if job.needs else 10.0, "") for job in chains}
    assert wall(chains, hours, 2) == 24 and wall(chains, hours, 4) == 12  # no place waits


def test_a_total_in_words(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "moco_v2_200ep", "linear_lars,semi_1pct")
    estimator = Estimator({})
    estimator.learn(jobs[0], 3600.0, 50)
    summary = total(jobs, estimator, 2)
    assert summary.jobs == len(jobs) and summary.hours == 1 and summary.unknown == 5
    assert str(summary).startswith(
        "7 jobs (5 with unknown cost): at least 1 device-hours, 60 min with 2"
    )
    assert str(total(jobs, Estimator({}), 2)).startswith("7 jobs (6 with unknown cost); ")
    texts = [duration(hours) for hours in (0.05, 1.0, 1.5, 47, 72)]
    assert texts == ["3 min", "60 min", "1.5 h", "47.0 h", "3.0 days"]


@pytest.mark.parametrize(("text", "hours"), [("500gpuh", 500), ("2.5h", 2.5), ("7", 7), ("1 H", 1)])
def test_a_budget_in_device_hours(text: str, hours: float) -> None:
    assert parse_gpu_hours(text) == hours


@pytest.mark.parametrize("text", ["", "0", "0h", "-3h", "5days", "gpuh", "1e3", "nan"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match="device-hours above 0, as 500gpuh"):
        parse_gpu_hours(text)


def known(jobs: list[Job], **hours: float) -> Estimator:
    """An estimator that knows jobs by their kind: pretrain by recipe, and evaluations."""
    estimator = Estimator({})
    for job in jobs:
        name = job.recipe_name if job.recipe else job.protocol.name if job.protocol else ""
        if not job.is_selection:
            estimator.learn(job, 3600 * hours[name], 50)
    return estimator


def test_a_budget_takes_short_schedules_and_shared_pre_trainings_first(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "moco_v2_400ep,moco_v2_100ep", "linear,knn")
    estimator = known(jobs, moco_v2_400ep=8, moco_v2_100ep=2, linear_lars=1, knn=0.5)

    def taken(hours: float) -> list[tuple[str, str]]:
        selected = budget.affordable(jobs, estimator, hours)
        return [
            (j.recipe_name[8:], j.protocol.name if j.protocol else "pretrain") for j in selected
        ]

    short = [("100ep", "pretrain"), ("100ep", "linear_lars"), ("100ep", "knn")]
    assert taken(2.5) == [short[0], short[2]]  # the cheaper cell
    assert sorted(taken(3.5)) == sorted(short) == sorted(taken(8))
    assert ("400ep", "knn") in taken(12) and ("400ep", "linear_lars") not in taken(12)
    assert len(taken(13)) == 6
    with pytest.raises(ValueError, match=r"the cheapest cell needs about 2\.5"):
        taken(2.4)
    assert budget.affordable([], estimator, 1) == []  # all is done
    with pytest.raises(ValueError, match="such as moco_v2_400ep: add --probe"):
        budget.affordable(jobs, Estimator({}), 100)


def test_a_budget_takes_a_first_seed_and_what_more_cells_share_before_the_rest(
    tmp_path: Path,
) -> None:
    jobs = jobs_of(tmp_path, "moco_v2_100ep,lewel_m_100ep", "linear,knn", seeds=2)
    estimator = known(jobs, moco_v2_100ep=2, lewel_m_100ep=2, linear_lars=1, knn=1)
    names = "moco_v2_100ep", "lewel_m_100ep"
    for first, second in (names, names[::-1]):
        finished = next(j for j in jobs if (j.recipe_name, j.seed) == (second, 0) and j.protocol)
        todo = [
            job for job in jobs if job is not finished
        ]  # two cells of the one, one of the other

        def taken(hours: float, todo: list[Job] = todo) -> list[tuple[str, int]]:
            selected = budget.affordable(todo, estimator, hours)
            return [(job.recipe_name, job.seed) for job in selected if job.recipe]

        assert taken(3) == taken(5) == [(first, 0)]
        assert sorted(taken(7)) == sorted([(first, 0), (second, 0)])
        assert sorted(seed for _, seed in taken(11)) == [0, 0, 1]


def test_a_finished_pre_training_is_free(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "moco_v2_100ep,moco_v2_400ep", "linear,knn")
    estimator = known(jobs, moco_v2_400ep=8, moco_v2_100ep=2, linear_lars=1, knn=0.5)
    todo = [job for job in jobs if job.recipe_name != "moco_v2_400ep" or job.protocol]
    selected = budget.affordable(todo, estimator, 1.5)
    assert {(job.recipe_name, job.kind) for job in selected} == {("moco_v2_400ep", "final")}


def test_the_same_command_goes_on_with_the_same_cells(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "moco_v2_100ep,moco_v2_400ep", "linear,knn")
    estimator = known(jobs, moco_v2_400ep=8, moco_v2_100ep=2, linear_lars=1, knn=0.5)

    def chosen(todo: list[Job], hours: float, keep: bool = True) -> list[str]:
        return [j.key for j in budget.chosen(tmp_path, jobs, todo, estimator, hours, keep=keep)]

    first = chosen(jobs, 3.5, keep=False)
    assert not (tmp_path / budget.CHOSEN).exists() and len(first) == 3
    assert chosen(jobs, 3.5) == first
    rest = [job for job in jobs if job.key != first[0]]  # one is done: nothing comes in its place
    assert chosen(rest, 3.5) == first[1:]
    assert len(chosen(rest, 13.0)) == 5
    assert len(chosen(jobs, 13.0)) == 6  # the record of the one that was done turned out corrupt


def test_missing_cells_say_what_they_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 1.0, "top5": 2.0})
    words = ["table", "1", "--suite", "shapes", "--root", str(tmp_path), "--missing"]
    assert main(words) == 0
    out = capsys.readouterr().out
    cell = out[out.index("table1:lewel_m:100:top1") :].split("table1:")[1]
    assert "costs 0.025 device-hours (1 like it here)" in cell  # half a minute and a minute
    assert "all of these cells: " in out.splitlines()[-1]
    assert main([*words, "--format", "json"]) == 0
    cells = {row["cell"]: row for row in json.loads(capsys.readouterr().out)}
    top1 = cells["table1:lewel_m:100:top1"]
    assert top1["jobs"] == 2 and top1["device_hours"] == pytest.approx(0.025)
    assert top1["estimated_from"] == ["1 like it here"] and not top1["unknown_jobs"]
    assert board(tmp_path).filled("1").entries["lewel_m", "200:top1"].state == "done"


def test_the_pace_leaves_out_the_start() -> None:
    assert steps_of([]) is None and steps_of([(5.0, 1, 100)]) is None
    assert steps_of([(50.0, 1, 100), (52.0, 3, 100), (59.0, 10, 100)]) == (100, 9)


def test_a_probe_times_jobs_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    data, root = write_images(tmp_path / "data"), tmp_path / "runs"
    words: list[Any] = [
        "run", "--suite", "shapes", "--data", data, "--method", "moco_v2", "--epochs", "200",
        "--evals", "linear,semi_10pct", "--set", "batch=8", "--set", "bn_group=8",
        "--set", "epochs=2", "--set", "image_size=32", "--set", "linear_lars.held_out=12",
        "--set", "linear_lars.batch=12", "--set", "semi_10pct.held_out=12",
        "--set", "semi_10pct.batch=4", "--root", root,
    ]  # fmt: skip
    assert main([*map(str, words), "--dry-run", "--probe", "2"]) == 0
    output = capsys.readouterr()
    assert "probe 1 of 3: moco_v2_200ep" in output.err and "probe of a whole job here" in output.out
    assert "unknown" not in output.out
    assert not [path for path in root.iterdir() if path.name != "data"]
    assert not Store(root).records
    assert main([*map(str, words), "--dry-run", "--probe", "1"]) == 2
    assert "--probe must be at least 2, got" in capsys.readouterr().err
    with monkeypatch.context() as other:  # a cluster's wake job, or a companion
        other.setenv("LEWEL_BENCH_COMMAND", "lewel-bench run")
        assert main([*map(str, words), "--dry-run", "--probe", "2"]) == 0
        assert "probe 1 of" not in capsys.readouterr().err

    def broken(*_: object) -> None:
        raise TypeError("a mistake")

    with monkeypatch.context() as other:
        other.setattr(probe, "_seconds", broken)
        assert main([*map(str, words), "--dry-run", "--probe", "2"]) == 0
    output = capsys.readouterr()
    assert "no probe of moco_v2_200ep: TypeError: a mistake" in output.err
    assert "7 jobs (6 with unknown cost); " in output.out
    assert main([*map(str, words), "--dry-run", "--budget", "5h"]) == 2
    assert "add --probe 50" in capsys.readouterr().err
