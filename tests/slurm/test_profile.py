"""Cluster profiles: the examples, the errors in others, and doctor's checks."""

import json
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from lewel_bench.files import create_json
from lewel_bench.slurm import check, queue
from lewel_bench.slurm.ledger import Ledger, Submission
from lewel_bench.slurm.profile import EXAMPLES, KINDS, Resources, load_profile, parse_profile
from lewel_bench.slurm.queue import NodeGroup, SlurmUnreachable, _minutes


@pytest.mark.parametrize("name", ["a100", "cpu", "preemptible"])
def test_the_examples_load(name: str) -> None:
    profile = load_profile(name, {})
    assert set(profile.kinds) == set(KINDS)
    pretrain = {"a100": 8, "cpu": 1, "preemptible": 8}  # processes
    assert profile.kinds["pretrain"].world == pretrain[name]
    assert profile.kinds["light"].world == 1


def test_all_examples_are_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == {"a100", "cpu", "preemptible"}


def test_a_kind_overrides_only_the_defaults() -> None:
    a100 = load_profile("a100", {})
    assert a100.kinds["pretrain"].tasks == 8 and a100.kinds["linear"].tasks == 1
    assert a100.kinds["pretrain"].parameters()["time"] == 2880
    assert a100.kinds["light"].parameters()["exclude"] == "node007"
    assert a100.kinds["light"].parameters()["account"] == "my-project"


def passed(options: object) -> dict[str, Any]:
    return {"defaults": {"submitit": {"additional_parameters": options}}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"defaults": {"partitoin": "gpu"}}, "Did you mean 'partition'?"),
        ({"max_queud": 3, "defaults": {}}, "Did you mean 'max_queued'?"),
        ({"defaults": {"nodes": 1}, "kinds": {"pretrian": {}}}, "Did you mean 'pretrain'?"),
        ({"kinds": {"pretrain": {}}}, "no settings for kinds linear, semi, dense, light"),
        ({"defaults": {"submitit": {"exclud": "n1"}}}, "Did you mean 'exclude'?"),
        ({"defaults": {"submitit": {"partition": "x"}}}, "conflicts with the field partition"),
        ({"defaults": {"submitit": {"teardown": ["x"]}}}, "its exit code would hide"),
        ({"defaults": {"gpus_per_node": 2, "tasks_per_node": 4}}, "more than gpus_per_node 2"),
        ({"defaults": {"gpus_per_node": 2, "submitit": {"gres": "gpu:2"}}}, "conflicts with gpus"),
        (passed({"job-name": "mine"}), "additional_parameters.job-name cannot be set: the ledger"),
        (passed({"partition": "x"}), "additional_parameters.partition conflicts with the field"),
        (passed({"hold": True}), "additional_parameters.hold cannot be set: a job that is held"),
        (passed({"wait": True}), "additional_parameters.wait cannot be set"),
        (passed({"parsable": True}), "additional_parameters.parsable cannot be set"),
        (passed({"test-only": True}), "additional_parameters.test-only cannot be set"),
        (passed({"ntasks": 4}), "additional_parameters.ntasks cannot be set: use the fields"),
        (passed(3), "additional_parameters must be a table"),
        ({"defaults": {"nodes": 2, "pack": 3}}, "only jobs of one process can be packed"),
        ({"defaults": {"timeout_min": 2}}, "more than half of timeout_min 2"),
        ({"defaults": {"nodes": 0}}, "greater than 0"),
        (
            {"defaults": {"nodes": 1}, "container": "apptainer exec x"},
            "set python to the interpreter",
        ),
        ({"defaults": 3}, "must be tables"),
        (
            {"defaults": {"nodes": 0}, "kinds": {"semi": {"nodes": 1}}},
            "kinds.pretrain, linear, dense",
        ),
    ],
)
def test_a_wrong_profile(content: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=r"cluster mine \(the site file\)") as error:
        load_profile("mine", {"mine": content})
    assert expected in str(error.value)


def test_an_error_in_the_defaults_is_reported_once() -> None:
    with pytest.raises(ValueError, match="defaults: ") as error:
        load_profile("mine", {"mine": {"defaults": {"partitoin": "gpu"}}})
    assert str(error.value).count("Did you mean") == 1


def test_empty_defaults_apply_to_every_kind() -> None:
    mine = load_profile("mine", {"mine": {"defaults": {}}})
    assert set(mine.kinds) == set(KINDS)


@pytest.mark.parametrize("name", ["%j", "a\\b", "a:b", "a\nb"])
def test_a_run_root_that_slurm_would_misread(tmp_path: Path, name: str) -> None:
    """sbatch replaced %j by the job id, and jobs and logs used another folder."""
    with pytest.raises(ValueError, match="choose another --root"):
        check.require_writable(tmp_path / name)
    assert not (tmp_path / name).exists()
    check.require_writable(tmp_path / "it's a $plain (name) #1")


def test_an_unknown_profile() -> None:
    with pytest.raises(ValueError, match=r"unknown cluster 'a10'\. Did you mean 'a100'"):
        load_profile("a10", {"mine": {}})


FARM = [
    NodeGroup("gpu", 1440, 4, 64, 500_000, 8, frozenset({"a100"})),
    NodeGroup("gpu", 1440, 2, 128, 900_000, 8, frozenset({"h100"})),
    NodeGroup("cpu", float("inf"), 9, 32, 100_000, 0, frozenset()),
    NodeGroup("", float("inf"), 9, 32, 100_000, 0, frozenset()),
]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"partition": "gpu", "gpus_per_node": 8, "cpus_per_task": 8}, ""),
        ({"partition": "gpus"}, "Did you mean 'gpu'?"),
        ({"partition": "gpu", "gpus_per_node": 9}, "no node of partition gpu has more than 8"),
        ({"cpus_per_task": 33}, "need 33 per node, but no node of the default partition has"),
        ({"partition": "gpu", "nodes": 3, "cpus_per_task": 100}, "partition gpu has 2 such nodes"),
        ({"partition": "gpu", "timeout_min": 1441}, "exceeds the limit of partition gpu, 1440 min"),
        ({"partition": "cpu", "mem_gb": 200}, "no node of partition cpu has more than 97"),
        ({"partition": "gpu,cpu", "timeout_min": 3000}, ""),
    ],
)
def test_requests_that_a_cluster_can_never_satisfy(asked: dict[str, Any], expected: str) -> None:
    message = check.misfit_message(Resources(**asked), FARM)
    assert expected in message and bool(expected) == bool(message)


def test_doctor_reports_which_command_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ask(command: list[str], timeout_s: float = 0) -> str:
        if command[0] == "scontrol":
            return "ClusterName = c\n"
        raise SlurmUnreachable(f"{command[0]} did not answer")

    monkeypatch.setattr(check, "require_commands", lambda: None)
    monkeypatch.setattr(queue, "ask", ask)
    checks = list(check.doctor(load_profile("cpu", {}), tmp_path, []))
    assert checks == [("cluster", "problem", "sinfo did not answer")]
    waits = queue.QueuedTask("7", "x", "PENDING", "PartitionConfig")
    monkeypatch.setattr(queue, "tasks", lambda: [waits])
    answer, why = check._answer(tmp_path / "none", "7", 5)
    assert answer is None and "(scancel did not answer: run scancel 7)" in why


@pytest.mark.parametrize("wake", [True, False])
def test_doctor_checks_the_commands_that_jobs_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wake: bool
) -> None:
    """Planning needs no sinfo; without planning jobs only scontrol is needed."""
    asked: list[str] = []

    def probe(on: object, books: Ledger, submission: Submission) -> str:
        folder = books.folder / "doctor"
        asked.extend(json.loads((folder / f"{submission.uid}.asked.json").read_text())["commands"])
        lacks = [name for name in asked if name != "scontrol"]
        answer = {"node": "n", "python": "3", "missing": [], "lacks": lacks}
        create_json(folder / f"{submission.uid}.answer.json", answer)
        return "7"

    monkeypatch.setattr(check.executor, "probe", probe)
    on = load_profile("cpu", {}).model_copy(update={"wake": wake})
    checks = list(check._check_node(on, tmp_path, [], 1))
    assert set(asked) == {"scontrol", *(("sbatch", "squeue", "scancel", "srun") if wake else ())}
    assert [state for _, state, _ in checks] == (["ok", "warning"] if wake else ["ok"])


def test_sbatch_checks_the_options_of_the_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some parameters of submitit are not options of sbatch, which rejected them."""
    (tmp_path / "srun").write_text("")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))  # submitit looks for srun
    asked: list[list[str]] = []
    monkeypatch.setattr(queue, "ask", asked.append)
    content = {"constraint": "a|b", "submitit": {"stderr_to_stdout": True, "nodelist": "n[1-2]"}}
    check._rejection_message(parse_profile("x", {"defaults": content}, ""), "light")
    assert {"--constraint=a|b", "--nodelist=n[1-2]", "--signal=USR2@120"} <= set(asked[0])
    assert "stderr" not in " ".join(asked[0])


def test_a_python_without_the_packages(tmp_path: Path) -> None:
    assert not check.missing_packages_message(
        parse_profile("x", {"defaults": {"nodes": 1}, "python": sys.executable}, ""), KINDS
    )
    venv.create(tmp_path, with_pip=False)
    python = str(tmp_path / "bin" / "python3")
    bare = parse_profile("x", {"defaults": {"nodes": 1}, "python": python}, "")
    assert f"{python} lacks submitit" in check.missing_packages_message(bare, KINDS)
    loaded = {"defaults": {"setup": ["module load torch"]}, "python": python}
    assert not check.missing_packages_message(parse_profile("x", loaded, ""), KINDS)


def test_time_limits() -> None:
    assert _minutes("infinite") == float("inf")
    assert _minutes("2-12:00:00") == 3600
    assert _minutes("30:00") == 30
    assert _minutes("1:00:30") == 60.5
