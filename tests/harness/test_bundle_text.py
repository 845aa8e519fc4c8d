"""What a record of another lab holds stays text in a terminal, Markdown, HTML, LaTeX, CSV, JSON."""

import csv
import json
import sys
from pathlib import Path

import pytest
from finished import board, finish

from lewel_bench import terminal
from lewel_bench.harness import model_card as card
from lewel_bench.harness.cli import main
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.results.formats import _csv, escape, md, md_code, render
from lewel_bench.results.record import Data
from lewel_bench.results.store import Store
from lewel_bench.value import json_text, printable

HOSTILE = "=x\x1b]0;owned\x07\x9b2J\u202e<img src=x onerror=alert(1)>|`[a](http://a)\r\n"
SEEN = r"\x1b]0;owned\x07\x9b2J\u202e<img"


def unseen(text: str) -> list[str]:
    """The characters of an output that could steer what shows it."""
    return sorted({c for c in text if not c.isprintable() and c not in "\n\t"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run root with records whose every text is hostile."""
    texts = {"name": HOSTILE, "commit": HOSTILE, "version": HOSTILE, "command": HOSTILE}
    data = {"train": Data(name=HOSTILE, fingerprint=HOSTILE, images=9)}
    finish(
        tmp_path, "lewel_m_200ep", "linear_lars", metrics={"top1": 40.0, "top5": 80.0},
        warnings=(HOSTILE,), before={**texts, "data": data, "warnings": (HOSTILE,)}, **texts,
    )  # fmt: skip
    for spec in tmp_path.glob("*/spec.json"):
        spec.write_text(json.dumps(json.loads(spec.read_text()) | {"name": HOSTILE}))
    return tmp_path


@pytest.mark.parametrize("shown_on_a_terminal", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ("status",), ("ls", "runs"), ("table", "1", "--suite", "shapes"),
        ("explain", "table1:lewel_m:200:top1", "--suite", "shapes"),
        ("explain", "table1:lewel_m:200:top1", "--suite", "shapes", "--format", "json"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_control_character_reaches_the_terminal(
    words: tuple[str, ...], shown_on_a_terminal: bool, root: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys.stdout, "isatty", lambda: shown_on_a_terminal, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "400")
    assert main([*words, "--root", str(root)]) == 0
    output = capsys.readouterr()
    assert not unseen(output.out) and not unseen(output.err)
    if words[0] != "table":
        assert "owned" in "".join(output.out.split())


def test_an_error_is_escaped_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["status", "--root", f"{tmp_path}/a\x1b[2Jb", "--state", "don\x1be"]) == 2
    assert not unseen(capsys.readouterr().err)


def test_a_watch_may_clear_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.escaped():
        terminal.unescaped(sys.stdout).write("\033[H")
        print("\033[H")
    assert capsys.readouterr().out == "\033[H\\x1b[H\n"


def test_the_model_card(root: Path) -> None:
    store = Store(root)
    (run,) = [record for record in store.records.values() if record.kind == "pretrain"]
    text = card.card(
        store, run, Backbone(), file="a`b.pth", sha256="0" * 64, format="timm", licence="<b>x</b>"
    )
    prose, _, block = text.partition("```json")
    code = next(line for line in prose.splitlines() if line.startswith("- command"))
    assert code.startswith("- command: `` =x") and code.endswith(" ``")
    rest = prose.replace(code, "")
    assert not unseen(text) and "<img" not in rest.replace("\\<img", "") and "](" not in rest
    assert "- licence: \\<b>x\\</b>." in prose and "as `` a`b.pth ``" in prose
    assert json.loads(block.partition("```")[0]) == json.loads(json.dumps(run.spec))


def test_every_format_of_a_table(root: Path) -> None:
    filled = board(root).filled("1")
    for name in ("md", "csv", "latex", "html", "json"):
        assert not unseen(render([filled], name)), name


def test_one_function_for_each_kind_of_output() -> None:
    assert SEEN in printable(HOSTILE) and printable(HOSTILE + "\ud800").isprintable()
    assert printable("a\tb\n\r", keep="\n\t") == "a\tb\n\\x0d"
    assert printable("ä 小猫 –") == "ä 小猫 –"
    shown = md(HOSTILE)
    assert r"\<img" in shown and r"\|" in shown and "](" not in shown and not unseen(shown)
    assert md_code("a|b``c") == "``` a\\|b``c ```" and md_code("plain") == "`plain`"
    assert "&lt;img" in escape(HOSTILE) and not unseen(escape(HOSTILE))
    assert json.loads(json_text({HOSTILE: "±"})) == {HOSTILE: "±"}
    assert json_text("\x9b\u202e\U000e0001") == '"\\u009b\\u202e\\udb40\\udc01"'


@pytest.mark.parametrize(
    ("value", "written"),
    [("=1+1", "'=1+1"), ("@a", "'@a"), ("+a", "'+a"), ("-a", "'-a"), ("a=b", "a=b"),
     (-1.5, -1.5), (None, None), ("a\x1b[2J\n", "a\\x1b[2J\n")],
)  # fmt: skip
def test_a_csv_holds_no_formula(value: object, written: object) -> None:
    assert _csv(value) == written


def test_numbers_of_a_csv_stay_numbers(root: Path) -> None:
    rows = list(csv.DictReader(render([board(root).filled("1")], "csv").splitlines()))
    assert {row["mean"] for row in rows} == {"", "40.0", "80.0"}
