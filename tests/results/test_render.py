"""Golden files: `make golden` writes them again; then read the difference."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from making import quoted_only

from lewel_bench.harness import view
from lewel_bench.results.conflicts import load as conflicts
from lewel_bench.results.fill import FilledTable, Slot, State, fill
from lewel_bench.results.formats import FORMATS, _tex, as_dict, md, render
from lewel_bench.results.layout import compact, sheet
from lewel_bench.results.table import PRETRAIN, TABLES, load
from lewel_bench.results.verdict import Verdict

GOLDEN = Path(__file__).parent / "golden"


COSTS = {"device_hours": 270.0, "peak_memory": 5.5, "overhead": 1.75}
# of two rows in three, and of the third
WAYS = ("linear_lars, chosen on 9 held-out images", "linear_sgd, one rate")
AS_PUBLISHED = {"where": "the paper's data, ResNet-50"}
ODD = {
    "where": "tiny, ResNet-18 of width 16",
    "incomparable": ("tested on 40 images of 10 classes", "the protocol has epochs 1 (paper: 90)"),
    "caveats": ("collapsed: effective rank 2.4 of 128, untrained 30.6",),
}
MACHINES = ("8 x Tesla V100, 4 threads, fp16", "1 x x86_64, 2 threads, fp32")


def example(id: str, suite: str) -> FilledTable:
    """Cells in every state, with every verdict; what is measured lies about the published value."""
    quoted = load(id)
    records: dict[str, SimpleNamespace] = {}
    slots: dict[tuple[str, str], list[Slot]] = {}
    for i, (row, column) in enumerate(quoted.cells()):
        base = row.values.get(column.id) or COSTS[column.metric]
        scale = base / 100 if column.eval == PRETRAIN else 1
        third = quoted.rows.index(row) % 3 == 2
        way = (MACHINES if column.eval == PRETRAIN else WAYS)[third]
        odd = ODD if suite != "paper" or (id == "3" and third) else AS_PUBLISHED
        cell = []
        for seed, offset in enumerate(OFFSETS[i % len(OFFSETS)]):
            key = f"{id}-{i:02}-{seed}"
            if isinstance(offset, Slot):
                cell.append(replace(offset, key=key, seed=seed))
                continue
            records[key] = SimpleNamespace(metrics={column.metric: base + offset * scale})
            cell.append(Slot(key, seed, "done", setting=way, **odd))
        slots[row.id, column.id] = cell
    evals = {c.eval for c in quoted.columns}
    engines = {"voc07_det_c4": "detectron2"} if "detection" in evals else {}
    return fill(quoted, slots, records, suite, suite == "paper", engines)


def _not_done(state: State, reason: str = "") -> Slot:
    return Slot("", 0, state, reason, command="lewel-bench run --table 1")


NAN = "loss is nan at step 31, lr 0.06 & 100 % of <heads>_diverged"
OFFSETS: tuple[tuple[float | Slot, ...], ...] = (
    (0.25, 0.5, 0.0),  # inconclusive
    (-0.125,),  # one seed
    (1.0, -2.0, 2.5),  # inconclusive
    (3.0, _not_done("failed", NAN)),
    (_not_done("running"),),
    (-0.03125, 0.0, 0.03125),  # reproduced
    (_not_done("queued"),),
    (5.0, 5.125, 5.0625),  # differs
    (_not_done("stale", "recipe lewel_m_200ep is at revision 2, this is 1"),),
    (_not_done("missing"),),
    (_not_done("failed", NAN),),
)
CASES = [*((id, "paper") for id in TABLES), ("2", "shapes")]
ENDINGS = {"latex": "tex", "text": "txt", "long": "long.txt"}
DRAWN = {"text": compact, "long": sheet}  # for the terminal


@pytest.mark.parametrize("format", [*FORMATS, *DRAWN])
@pytest.mark.parametrize(("id", "suite"), CASES)
def test_golden(id: str, suite: str, format: str, capsys: pytest.CaptureFixture[str]) -> None:
    if format in DRAWN:
        view.show_table(DRAWN[format](example(id, suite)))
        text = capsys.readouterr().out
    else:
        text = render([example(id, suite)], format)
    file = GOLDEN / f"table{id}_{suite}.{ENDINGS.get(format, format)}"
    if os.environ.get("LEWEL_BENCH_REGOLD"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("width", "terminal"), [(60, "xterm"), (80, "xterm"), (80, "dumb"), (130, "xterm")]
)
@pytest.mark.parametrize("id", ["1", "8"])
@pytest.mark.parametrize("format", DRAWN)
def test_nothing_is_cut_on_a_narrow_terminal(
    format: str,
    id: str,
    width: int,
    terminal: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    drawn = DRAWN[format](example(id, "paper"))
    view.show_table(drawn)
    lines = re.sub("\x1b.*?m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    cells = [cell for block in drawn.blocks for cell in sum(block.rows(), ())]
    assert all(any(str(cell) in line for line in lines) for cell in cells)


@pytest.mark.parametrize("width", [24, 40, 50])
@pytest.mark.parametrize("format", DRAWN)
def test_no_word_is_cut_on_a_very_narrow_terminal(
    format: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    drawn = DRAWN[format](example("1", "shapes"))
    view.show_table(drawn)
    printed = re.sub("\x1b.*?m|[┃│]", " ", capsys.readouterr().out).split()
    cells = [cell for block in drawn.blocks for cell in sum(block.rows(), ())]
    words = " ".join([*drawn.header, *map(str, cells)]).split()
    assert set(words) <= set(printed)


def test_what_is_not_measured_is_folded(capsys: pytest.CaptureFixture[str]) -> None:
    """Table 1 has 11 rows and 5 columns; what failed outside of the rest is counted."""
    view.show_table(compact(table_1()))
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("Table 1. ImageNet-1K linear") and header.count("ep top-") == 4
    rows = {line.split()[0]: line for line in lines[:3]}
    assert (
        lines[3].startswith("- ")
        and set(rows) == {"BYOL*", "MoCov2*", "LEWEL_M"}
        and max(map(len, rows.values())) > 80
    )
    assert "66.2 ± 0.2 (3)ᵇ ? 66.1 [" in rows["LEWEL_M"] and "68.5 (1 of 2) ?" in rows["LEWEL_M"]
    assert "- 8 rows and 1 column without a measurement: --all" in lines
    numbers = {mark for row in rows.values() for mark in re.findall(r"\[\d+\]", row)}
    assert {line.split()[0] for line in lines if line.startswith("[")} == numbers
    view.show_table(compact(table_1(), everything=True))
    shown = capsys.readouterr().out
    assert "InstDisc" in shown and "[13]" in shown and "--all" not in shown
    failed = Slot("e", 0, "failed", "out of memory")
    slots = {("pcl", "200:top1"): [failed], ("byol", "100:top1"): [Slot("k", 0, "done")]}
    records = {"k": SimpleNamespace(metrics={"top1": 70.0})}
    drawn = compact(fill(load("1"), slots, records, "paper", True))
    assert drawn.remarks[0] == "10 rows and 4 columns without a measurement (1 failed): --all"
    assert drawn.problems == () and len(drawn.notes) == 1
    nothing = fill(load("1"), {("pcl", "200:top1"): [failed]}, {}, "paper", True)
    assert len(compact(nothing).blocks) == 11 and not compact(nothing).remarks[0].endswith("--all")


def test_four_methods_fit_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    seeds = [Slot(f"k{seed}", seed, "done") for seed in range(3)]
    records = {f"k{i}": SimpleNamespace(metrics={"top1": 60.0 + i, "top5": 90.0}) for i in range(3)}
    methods = ("moco_v2", "byol", "lewel_m", "lewel_b")
    slots = {(row, f"200:{metric}"): seeds for row in methods for metric in ("top1", "top5")}
    view.show_table(compact(fill(load("1"), slots, records, "paper", True)))
    table = re.sub("\x1b.*?m", "", capsys.readouterr().out).split("- 7 rows")[0].splitlines()
    assert [line.split()[0] for line in table[3:]] == ["MoCov2*", "BYOL*", "LEWEL_M", "LEWEL_B"]
    assert max(map(len, table)) <= 80


def test_the_sign_and_colour_of_a_verdict() -> None:
    cells = {
        cell.look: str(cell)
        for block in compact(example("1", "paper")).blocks
        for line in block.lines
        for cell in line.cells
    }
    assert cells["reproduced"] == "88.6 ± 0.0 (3)ᵇ = 88.6"
    assert cells["differs"] == "95.6 ± 0.1 (3) ≠ 90.5"
    assert cells["inconclusive"] == "90.2 (1 of 2) ? 87.2" or "?" in cells["inconclusive"]
    assert cells["failed"] == "failed / 73.8 [13]"
    colours = {view.STYLES[look] for look in ("reproduced", "differs", "inconclusive")}
    assert len(colours) == 3


def test_the_examples_show_every_state_and_verdict() -> None:
    """Otherwise a golden file could not tell when one of them is drawn otherwise."""
    entries = [value for id, suite in CASES for value in example(id, suite).entries.values()]
    assert {entry.state for entry in entries} == set(get_args(State))
    cannot = {"published only"}  # every row of the paper has a recipe
    assert {entry.verdict for entry in entries} == set(get_args(Verdict)) - cannot
    assert any(value.best for value in entries) and any(value.std for value in entries)


def table_1() -> FilledTable:
    """Table 1 with three seeds of LEWEL_M at 100 epochs, and few other cells."""
    values = {
        "a0": (66.0, 87.1), "a1": (66.2, 87.3), "a2": (66.4, 87.2),
        "b0": (60.0, 80.0), "b1": (60.2, 80.5), "c0": (68.5, 88.0),
    }  # fmt: skip
    records = {
        key: SimpleNamespace(metrics={"top1": a, "top5": b}) for key, (a, b) in values.items()
    }
    done = {key: Slot(key, int(key[1]), "done", setting="one way") for key in values}
    slots = {
        ("lewel_m", "100:top1"): [done["a0"], done["a1"], done["a2"]],
        ("lewel_m", "100:top5"): [done["a0"], done["a1"], done["a2"]],
        ("lewel_m", "200:top1"): [done["c0"], Slot("e1", 1, "failed", NAN)],
        ("moco_v2", "100:top1"): [replace(done[k], setting="another way") for k in ("b0", "b1")],
        ("byol", "400:top1"): [done["c0"]],
    }
    return fill(quoted_only(load("1"), "pcl"), slots, records, "paper", True)


def test_json_has_the_shape_that_scripts_rely_on() -> None:
    loaded = json.loads(render([table_1()], "json"))
    assert (loaded["table"], loaded["suite"], loaded["comparable"]) == ("1", "paper", True)
    rows = {row["id"]: row for row in loaded["rows"]}
    assert (rows["lewel_m"]["label"], rows["lewel_m"]["recipe"]) == ("LEWEL_M", "lewel_m")
    cell = rows["lewel_m"]["cells"]["100:top1"]
    assert cell["published"] == 66.1 and cell["origin"] == "own"
    assert cell["mean"] == pytest.approx(66.2) and cell["delta"] == pytest.approx(0.1)
    assert cell["std"] == pytest.approx(0.2)
    assert (cell["n"], cell["state"], cell["verdict"]) == (3, "done", "inconclusive")
    assert cell["keys"] == ["a0", "a1", "a2"]
    assert [row["id"] for row in loaded["rows"]] == [row.id for row in load("1").rows]
    assert rows["pcl"]["cells"].keys() == {"200:top1"}
    assert rows["pcl"]["recipe"] is None


def test_csv_holds_the_same_numbers_as_json() -> None:
    filled = table_1()
    lines = list(csv.DictReader(io.StringIO(render([filled], "csv"))))
    cells = {
        (row["id"], column): cell
        for row in as_dict(filled)["rows"]
        for column, cell in row["cells"].items()
    }
    assert len(lines) == len(cells) == 34  # the paper's 33, and one measured that it left blank
    for line in lines:
        cell = cells[line["row"], line["column"]]
        for field in ("published", "mean", "std", "delta"):
            assert line[field] == ("" if cell[field] is None else repr(cell[field]))
        assert line["verdict"] == cell["verdict"] and line["keys"].split() == cell["keys"]
        assert line["note"] == cell["note"]


def test_another_suite_is_labelled_in_every_format() -> None:
    filled = example("2", "shapes")
    for format in ("md", "latex"):
        text = render([filled], format)
        assert "for orientation only" in text
        assert "published (orientation)" in text and "difference" not in text.split("erdict")[1]
        assert "not comparable" in text
        assert "Measured: tiny, ResNet-18 of width 16. Published: ImageNet-1K" in text
        assert not re.search(r"reproduced|within noise|differs|inconclusive", text)
    assert json.loads(render([filled], "json"))["comparable"] is False
    loaded = json.loads(render([filled], "json"))
    assert "orientation only" in loaded["remarks"][0] and loaded["title"].startswith(
        "Measured: tiny"
    )
    cell = next(c for row in loaded["rows"] for c in row["cells"].values() if c["mean"] is not None)
    assert cell["delta"] is None and cell["incomparable"] == list(ODD["incomparable"])
    assert ",False," in render([filled], "csv")


def test_a_number_that_is_not_comparable_says_why_in_a_note() -> None:
    drawn = sheet(example("3", "paper"))
    assert drawn.title.startswith(
        "Table 3. Measured: the paper's data, ResNet-50; tiny, ResNet-18 of width 16. Published: "
    )
    why = f"Not comparable: {'; '.join(ODD['incomparable'])}."
    marks = [f" [{1 + drawn.notes.index(text)}]" for text in (*ODD["caveats"], why)]
    blocks = [block for block in drawn.blocks[2::3] if len(block.lines) == 4]
    cells = [
        cells for value in blocks for cells in zip(*(x.cells for x in value.lines), strict=True)
    ]
    shown = [(m, d, v) for _, m, d, v in cells if v.value.startswith("not comparable")]
    assert shown and all(d.value == "–" and v.rest == marks[1] for _, d, v in shown)
    assert all(m.rest.endswith(marks[0]) for m, _, _ in shown)
    assert sheet(example("1", "paper")).title.startswith("Table 1. ImageNet-1K linear")


def test_sheet_rounds_as_the_column_says_and_refers_to_its_notes() -> None:
    drawn = sheet(table_1())
    blocks = {block.row: block for block in drawn.blocks}
    names, texts = zip(
        *((line.name, str(line.cells[0])) for line in blocks["lewel_m"].lines), strict=True
    )
    assert names == ("published", "measured", "difference", "verdict")
    number = 1 + [note.startswith("Table 9 prints this") for note in drawn.notes].index(True)
    assert texts == (f"66.1 [{number}]", "66.2 ± 0.2 (3)ᵇ", "+0.1", "inconclusive")
    assert str(blocks["moco_v2"].lines[2].cells[0]) == "−4.4"  # 60.1 - 64.5, with a minus sign
    assert str(blocks["lewel_m"].lines[1].cells[2]) == "68.5 (1 of 2)"
    assert str(blocks["lewel_m"].lines[3].cells[2]) == "inconclusive; failed"
    assert len(blocks["pcl"].lines) == 1  # published only
    assert all(len(line.cells) == 5 for block in drawn.blocks for line in block.lines)
    assert any("loss is nan at step 31" in problem for problem in drawn.problems)


def test_a_rounded_zero_has_no_sign() -> None:
    records = {"k": SimpleNamespace(metrics={"top1": 68.38})}
    slots = {("lewel_m", "200:top1"): [Slot("k", 0, "done")]}
    drawn = sheet(fill(load("1"), slots, records, "paper", True))
    block = next(block for block in drawn.blocks if block.row == "lewel_m")
    assert str(block.lines[2].cells[2]) == "0.0"


def test_the_best_is_bold_in_each_format_that_can() -> None:
    filled = [table_1()]
    assert "| **66.2** ± 0.2 (3)ᵇ |" in render(filled, "md")
    assert r"& \textbf{66.2} $\pm$ 0.2 (3)$^{b}$ &" in render(filled, "latex")
    html = render(filled, "html")
    assert "<b>66.2</b> ± 0.2 (3)ᵇ</td>" in html
    rows = {row["id"]: row["cells"] for row in json.loads(render(filled, "json"))["rows"]}
    flags = {id: cells["100:top1"]["best"] for id, cells in rows.items() if "100:top1" in cells}
    assert [id for id, flag in flags.items() if flag] == ["lewel_m"]
    assert rows["lewel_b"]["100:top1"]["best_published"]
    assert "**71.9** [" in render(filled, "md")


def test_a_mix_within_a_column_is_marked_and_named() -> None:
    drawn = sheet(table_1())
    blocks = {block.row: block for block in drawn.blocks}
    marks = [str(blocks[row].lines[1].cells[0])[-1] for row in ("lewel_m", "moco_v2")]
    # in reading order; the other columns mix nothing
    assert marks == ["ᵇ", "ᵃ"]
    assert drawn.remarks[0] == "Some columns mix measurement settings: ᵃ another way; ᵇ one way."
    assert str(blocks["lewel_m"].lines[1].cells[1]) == "87.2 ± 0.1 (3)"
    loaded = json.loads(render([table_1()], "json"))
    assert loaded["mixed"] == {"100:top1": ["another way", "one way"]}


class Page(HTMLParser):
    """The tags of a page, and whether each was closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.titles: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]
        assert {name for name, _ in attrs} <= {"title", "class", "id", "rowspan", "lang", "charset"}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


HOSTILE = """<script>alert(1)</script>'"><img src=x onerror=alert(1)>&amp;"""


def test_html_stands_alone_and_every_text_is_escaped() -> None:
    slots = {
        ("lewel_m", "200:top1"): [Slot(HOSTILE, 0, "done", setting=HOSTILE)],
        ("moco_v2", "200:top1"): [Slot("k1", 0, "done", setting="one way")],
        ("byol", "200:top1"): [Slot("k2", 0, "failed", reason=HOSTILE)],
    }
    records = {key: SimpleNamespace(metrics={"top1": 68.0}) for key in (HOSTILE, "k1")}
    engines = {HOSTILE: HOSTILE}
    filled = fill(load("1"), slots, records, HOSTILE, False, engines)
    actual = Page(render([filled, table_1()], "html"))
    assert not actual.open and actual.seen.count("table") == 2
    assert not {"script", "img", "link", "iframe"} & set(actual.seen)
    for told in (actual.titles, actual.texts):
        assert any(HOSTILE in text for text in told)


@pytest.mark.parametrize(("id", "suite"), CASES)
def test_html_has_a_cell_for_every_column(id: str, suite: str) -> None:
    filled = example(id, suite)
    actual = Page(render([filled], "html"))
    lines = sum(len(block.lines) for block in sheet(filled).blocks)
    assert not actual.open and actual.seen.count("tbody") == len(filled.table.rows)
    assert actual.seen.count("td") == lines * len(filled.table.columns)
    assert actual.titles


def _latex() -> str:
    """A LaTeX that has what the tables use; skips where there is none."""
    if tectonic := shutil.which("tectonic"):
        return tectonic
    pdflatex, look = shutil.which("pdflatex"), shutil.which("kpsewhich")
    if pdflatex is None or look is None:
        pytest.skip("neither tectonic nor pdflatex is installed")
    for package in ("booktabs.sty", "graphicx.sty"):
        if subprocess.run([look, package], stdout=subprocess.DEVNULL, check=False).returncode:
            pytest.skip(f"pdflatex has no {package} (Debian: texlive-latex-recommended)")
    return pdflatex


def test_latex_compiles(tmp_path: Path) -> None:
    compiler = _latex()
    tables = render([example(id, suite) for id, suite in CASES], "latex")
    lines = [r"\documentclass{article}", r"\usepackage{booktabs,graphicx}", r"\begin{document}"]
    source = tmp_path / "tables.tex"
    source.write_text("\n".join([*lines, tables, r"\end{document}"]), encoding="utf-8")
    options = [] if "tectonic" in compiler else ["-halt-on-error", "-interaction=nonstopmode"]
    done = subprocess.run(
        [compiler, *options, source.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert source.with_suffix(".pdf").stat().st_size > 10_000


@pytest.mark.parametrize(("id", "suite"), CASES)
def test_latex_is_escaped(id: str, suite: str) -> None:
    text = render([example(id, suite)], "latex")
    assert text.isascii(), [letter for letter in text if not letter.isascii()]
    body = text.split("\n", 1)[1]
    bare = re.sub(r"\\[&%$#_{}\\]", "", body)  # without what is escaped
    columns = len(sheet(example(id, suite)).header)
    lines = [line for line in bare.splitlines() if line.endswith(" ") and "&" in line]
    assert lines and all(line.count("&") == columns - 1 for line in lines)
    assert "%" not in bare and "#" not in bare and "_" not in bare and "<" not in bare
    assert bare.count("$") % 2 == 0 and bare.count("{") == bare.count("}")
    assert body.count(r"\begin{") == body.count(r"\end{") == 2


def test_escapes() -> None:
    assert _tex("50 % of a_b & {c} $#~^\\ <x>") == (
        r"50 \% of a\_b \& \{c\} \$\#\textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}x\textgreater{}"
    )
    assert _tex("[1] ± − – † β") == r"{[}1{]} $\pm$ $-$ -- $^\dagger$ $\beta$"
    assert md("a_b | *c* `d` <e> \\") == "a\\_b \\| \\*c\\* \\`d\\` \\<e> \\\\"


def test_markdown_rows_have_the_same_number_of_cells() -> None:
    for id, suite in CASES:
        lines = [x for x in render([example(id, suite)], "md").splitlines() if x.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown format 'mdd'. Did you mean 'md'"):
        render([example("1", "paper")], "mdd")


def test_every_text_that_can_be_rendered_is_ascii_in_latex() -> None:
    texts = [note for id in TABLES for row in load(id).rows for note in row.notes.values()]
    texts += [remark for id in TABLES for remark in load(id).remarks]
    texts += [conflict.why + conflict.default for conflict in conflicts()]
    assert all(_tex(text).isascii() for text in texts)
