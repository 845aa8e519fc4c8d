"""Problems of a data set, grouped by kind."""

import copy
import pickle

import pytest

from lewel_bench.pretrain.problems import KINDS, Problem, grouped


def test_a_problem_is_its_sentence() -> None:
    problem = Problem("a.json: object 3", "the area is negative", "the area -3.5 is negative")
    assert problem == "a.json: object 3: the area -3.5 is negative"
    assert (problem.location, problem.kind) == ("a.json: object 3", "the area is negative")
    for same in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert (same, same.location, same.kind) == (problem, problem.location, problem.kind)


def test_an_error_carries_its_problem() -> None:
    problem = Problem("a.jpg", "is empty")
    error = ValueError(problem)
    assert str(error) == "a.jpg: is empty"
    assert Problem.of(error) is problem
    assert Problem.of(ValueError("b.jpg: is gone")) == "b.jpg: is gone"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\udce9.jpg", r"caf\udce9.jpg"),
        ("a\nb.jpg", r"a\nb.jpg"),
        ("\x1b[31m小猫", r"\x1b[31m小猫"),
    ],
)
def test_a_problem_is_one_line_whatever_the_file_is_called(name: str, shown: str) -> None:
    assert Problem(name, "is empty") == f"{shown}: is empty"


def test_a_place_that_is_very_long_is_cut_in_the_middle() -> None:
    problem = Problem("/data/" + "d/" * 2000 + "x.jpg", "is empty")
    assert len(problem) < 420 and problem.startswith("/data/d/d")
    assert problem.endswith("d/x.jpg: is empty") and "/…" in problem


def test_problems_of_one_kind_are_one_line() -> None:
    many = [Problem(f"object {n}", "the area is negative", f"the area {-n}") for n in range(9_000)]
    alone = Problem("a.jpg", "is empty", "is empty (0 bytes)")
    assert grouped([many[0], alone, *many[1:], "a plain sentence"]) == [
        "9,000 times: the area is negative; first object 0, object 1, object 2, …",
        "a.jpg: is empty (0 bytes)",
        "a plain sentence",
    ]
    assert grouped(many[:2]) == ["2 times: the area is negative; first object 0, object 1"]
    assert grouped([]) == []


def test_sentences_of_many_kinds_are_cut() -> None:
    lines = grouped(f"sentence {n}" for n in range(5_000))
    assert lines[: KINDS + 1] == [
        *(f"sentence {n}" for n in range(KINDS)),
        "… and 4,980 more kinds",
    ]
    assert len(lines) == KINDS + 1
