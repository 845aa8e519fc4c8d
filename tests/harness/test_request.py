"""A command line parsed into options, and printed back."""

import shlex
from pathlib import Path

import pytest

from lewel_bench.harness import cli
from lewel_bench.harness.request import (
    Budget,
    Command,
    Compute,
    Evals,
    Import,
    Selection,
    Where,
    parse_seeds,
)

WHERE = Where(
    suite="shapes",
    root=Path("my runs"),
    data=(("voc", Path("devkit")), ("", Path("a/b=c"))),
    set=(("optimizer.lr", 0.1), ("semi_1pct.lrs", [0.1, 0.2]), ("name", "true"), ("x", True)),
    refit=True,
    lrs=(0.01, -1.0),
    engine=("native", "mmseg"),
)
COMPUTE = Compute(device="cpu", jobs=2, compile=True, save_every=0.5, replace_corrupt=True)


@pytest.mark.parametrize("seeds", [(0,), (4,), (0, 1, 2), (2, 0)])
def test_a_run_reads_back_as_it_was_asked(seeds: tuple[int, ...]) -> None:
    selection = Selection(method=("a", "./m.py:r"), epochs=(100, 200), table=("1", "all"))
    evals, budget = Evals(evals=("linear", "voc"), seeds=seeds), Budget(budget=2.5, probe=50)
    command = Command("run", (selection, evals, budget, WHERE, COMPUTE))
    _, bound, _ = cli.app().parse_args(shlex.split(str(command))[1:], exit_on_error=False)
    given = {"selection": selection, "evals": evals, "budget": budget}
    assert bound.kwargs == {**given, "where": WHERE, "compute": COMPUTE}


def test_an_evaluation_reads_back_as_it_was_asked() -> None:
    source = Import(name="mine", checkpoint=Path("-a.pth"), as_="moco_v2_200ep", force=True)
    command = Command("eval", (source, WHERE, COMPUTE))
    _, bound, _ = cli.app().parse_args(command.argv(), exit_on_error=False)
    assert bound.kwargs == {"source": source, "where": WHERE, "compute": COMPUTE}


def test_seeds_are_a_number_or_a_list() -> None:
    assert parse_seeds("3") == (0, 1, 2) and parse_seeds("4,") == (4,)
    assert parse_seeds("2,0,2") == (2, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--meth", "x"], "unknown option: --meth. Did you mean --method?"),
        (["run", "--method"], "--method needs a value"),
        (["run", "--no-refit"], "unknown option: --no-refit"),
        (["table"], "TABLE is missing"),
        (["table", "1", "2"], "unexpected argument: 2"),
        (["tabel", "1"], "unknown command 'tabel'. Did you mean 'table'?"),
        (["ls", "runs", "--format", "yaml"], '"yaml"'),
        (["figure", "9"], "3a, 3b, 5, lr, curves"),
        (["run", "--probe", "x"], "--probe x: must be a whole number"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("lewel-bench: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("verb", [*cli.VERBS, ""])
def test_help_fits_80_columns(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*filter(None, [verb]), "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"Usage: lewel-bench {verb}".rstrip())
    examples = [line for line in output.splitlines() if line.startswith("  lewel-bench ")]
    assert examples or verb in ("data", "figure")  # whose subcommands have them
    assert max(map(len, output.splitlines())) <= 80


def test_without_a_word_the_next_steps_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert capsys.readouterr().out.count("\n  lewel-bench ") == 3
