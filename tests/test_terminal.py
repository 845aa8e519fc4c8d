"""Standard streams that are closed, narrow, of another encoding, or that nobody reads."""

import io
import json
import re
import subprocess
import sys

import pytest
from command_line import command, environment

from lewel_bench import terminal
from lewel_bench.harness import view

PREPARED = "import os, sys; from lewel_bench import terminal; terminal.prepare(); "


def python(code: str, redirection: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a prepared process does under a shell's redirection."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, PREPARED + code],
        capture_output=True, text=True, env=environment(**variables), check=False,
    )  # fmt: skip


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(redirection: str) -> None:
    code = (
        "file = os.open(os.devnull, os.O_RDONLY); assert file > 2, file; "
        "print('out'); print('err', file=sys.stderr); sys.stdin.read(); "
        "sys.exit(os.spawnlp(os.P_WAIT, 'sh', 'sh', '-c', 'echo child; echo child >&2'))"
    )
    done = python(code, redirection)
    assert done.returncode == 0, done
    assert done.stdout == ("" if ">&-" in redirection.replace("2>&-", "") else "out\nchild\n")
    assert done.stderr == ("" if "2>&-" in redirection else "err\nchild\n")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2> >(exec true)"])
def test_a_computation_outlives_those_who_listen_to_it(redirection: str) -> None:
    code = (
        "import time; time.sleep(0.2); "
        "[print('x' * 9999, file=sys.stderr, flush=True) for _ in range(20)]; print('done')"
    )
    done = python(code, redirection)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("latin-1", "72.5 ± 0.1 – missing …", "72.5 ± 0.1 - missing ..."),
        ("latin-1", "SimCLR† β ≤ Σ 10⁻² aᵇ", "SimCLR+ beta <= Sigma 10-² ab"),
        ("ascii", "±²", "+/-2"),
        ("ascii", "Größe 犬 🐕", r"Gr\u00f6\u00dfe \u72ac \ud83d\udc15"),
        ("utf-8", "a name \udcff of bytes", r"a name \udcff of bytes"),
        ("utf-8", "± – 犬", "± – 犬"),
    ],
)
def test_what_an_encoding_lacks_is_written_with_what_it_has(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, written: str
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    terminal.prepare()
    print(text, end="", flush=True)
    assert sys.stdout.buffer.getvalue().decode(encoding) == written  # type: ignore[attr-defined]
    if encoding == "ascii" and "\\u" in written:
        assert json.loads(f'"{written}"') == text


def test_a_table_is_printed_in_latin_1() -> None:
    done = subprocess.run(
        command("table", "1", "--suite", "shapes", "--format", "long"),
        env=environment(PYTHONIOENCODING="latin-1"), capture_output=True, check=True,
    )  # fmt: skip
    text = done.stdout.decode("latin-1")
    assert text.startswith("Table 1. ")
    assert re.search(r"SimCLR\+ +\| published", text) and "\\u" not in text


def narrow(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


@pytest.mark.parametrize("width", [20, 40, 60, 73, 100])
def test_no_word_of_a_list_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    narrow(monkeypatch, width)
    columns = ("state", "key", "kind", "name", "seed", "suite", "why")
    rows = [
        ("running", "3eb8744c3673", "pretrain", "lewel_m_100ep", "0", "shapes",
         "step 97 of 240, 4 min left"),
        ("done", "4d8d774a1e57", "final", "byol_100ep", "10", "[shapes]", ""),
    ]  # fmt: skip
    view.show_list(columns, rows)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    words = printed.split()
    for row in (columns, *rows):
        for cell in row:
            assert all(word in words for word in cell.split()), cell
    assert max(map(len, printed.splitlines())) <= max(width, 21)  # a name, and a long word
