"""Golden files: run with LEWEL_BENCH_REGOLD=1 to write them again, then read the difference."""

import csv
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from lewel_bench.results.conflicts import load as conflicts
from lewel_bench.results.fill import Filled, Slot, fill
from lewel_bench.results.render import FORMATS, _md, _tex, as_dict, render
from lewel_bench.results.sheet import sheet
from lewel_bench.results.table import TABLES, load

GOLDEN = Path(__file__).parent / "golden"


def example(id: str, suite: str) -> Filled:
    """Every state and verdict in one table."""
    values = {
        "a0": (66.0, 87.1), "a1": (66.2, 87.3), "a2": (66.4, 87.2),
        "b0": (60.0, 80.0), "b1": (60.2, 80.5), "c0": (68.5, 88.0), "d0": (67.0, 90.1),
        "d1": (70.2, 88.0),
    }  # fmt: skip
    records = {
        key: SimpleNamespace(metrics={"top1": a, "top5": b}) for key, (a, b) in values.items()
    }
    done = {
        key: Slot(key, int(key[1]), "done", command=f"lewel-bench run --suite {suite}")
        for key in values
    }
    records["e0"] = SimpleNamespace(metrics={"box_ap": 57.1, "miou": 67.4})
    done["e0"] = Slot("e0", 0, "done")
    engines: dict[str, str] = {}
    failed = Slot("e1", 1, "failed", "loss is nan at step 31, lr 0.06 & 100 % of <heads>_diverged")
    states = {state: Slot(f"f_{state}", 0, state) for state in ("running", "queued", "stale")}
    if id == "1":
        slots = {
            ("lewel_m", "100:top1"): [done["a0"], done["a1"], done["a2"]],
            ("lewel_m", "100:top5"): [done["a0"], done["a1"], done["a2"]],
            ("lewel_m", "200:top1"): [done["c0"], failed],
            ("lewel_m", "200:top5"): [failed],
            ("moco_v2", "100:top1"): [done["b0"], done["b1"]],
            ("moco_v2", "100:top5"): [done["d0"], done["d1"]],
            ("moco_v2", "200:top1"): [states["running"]],
            ("moco_v2", "200:top5"): [states["queued"]],
            ("byol", "100:top1"): [states["stale"]],
            ("byol", "400:top1"): [done["c0"], done["d0"]],
        }
    elif id == "3":
        slots = {("lewel_m:200", "ap"): [done["e0"]], ("lewel_m:200", "miou"): [done["e0"]]}
        engines = {"voc07_det_c4": "detectron2", "voc12_seg_fcn_d8": "native"}
    else:
        slots = {
            ("lewel_m:200", "1pct:top1"): [done["b0"], done["b1"]],
            ("lewel_m:200", "1pct:top5"): [done["c0"]],
            ("lewel_b:200", "10pct:top1"): [done["c0"], states["running"]],
        }
    return fill(load(id), slots, records, suite, suite == "paper", engines)


CASES = [("1", "paper"), ("2", "paper"), ("2", "shapes"), ("3", "paper")]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("id", "suite"), CASES)
def test_golden(id: str, suite: str, format: str) -> None:
    text = render(example(id, suite), format)
    file = GOLDEN / f"table{id}_{suite}.{ {'latex': 'tex'}.get(format, format) }"
    if os.environ.get("LEWEL_BENCH_REGOLD"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_json_has_the_shape_that_scripts_rely_on() -> None:
    found = json.loads(render(example("1", "paper"), "json"))
    assert (found["table"], found["suite"], found["comparable"]) == ("1", "paper", True)
    rows = {row["id"]: row for row in found["rows"]}
    assert (rows["lewel_m"]["label"], rows["lewel_m"]["recipe"]) == ("LEWEL_M", "lewel_m")
    cell = rows["lewel_m"]["cells"]["100:top1"]
    assert cell["published"] == 66.1 and cell["origin"] == "own"
    assert cell["mean"] == pytest.approx(66.2) and cell["delta"] == pytest.approx(0.1)
    assert cell["std"] == pytest.approx(0.2)
    assert (cell["n"], cell["state"], cell["verdict"]) == (3, "done", "reproduced")
    assert cell["keys"] == ["a0", "a1", "a2"]
    assert [row["id"] for row in found["rows"]] == [row.id for row in load("1").rows]
    assert rows["pcl"]["cells"].keys() == {"200:top1"}
    assert rows["pcl"]["recipe"] is None


def test_csv_holds_the_same_numbers_as_json() -> None:
    filled = example("1", "paper")
    lines = list(csv.DictReader(io.StringIO(render(filled, "csv"))))
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
        text = render(filled, format)
        assert "for orientation only" in text
        assert "published (orientation)" in text and "difference (orientation)" in text
        assert "not comparable" in text
        assert not re.search(r"reproduced|within noise|differs|inconclusive", text)
    assert json.loads(render(filled, "json"))["comparable"] is False
    assert "orientation only" in json.loads(render(filled, "json"))["remarks"][0]
    assert ",False," in render(filled, "csv")


def test_sheet_rounds_as_the_column_says_and_refers_to_its_notes() -> None:
    drawn = sheet(example("1", "paper"))
    blocks = {block.row: block for block in drawn.blocks}
    names, texts = zip(
        *((line.name, line.cells[0]) for line in blocks["lewel_m"].lines), strict=True
    )
    assert names == ("published", "measured", "difference", "verdict")
    number = 1 + [note.startswith("Table 9 prints this") for note in drawn.notes].index(True)
    assert texts == (f"66.1 [{number}]", "66.2 ± 0.2 (3)", "+0.1", "reproduced")
    assert blocks["moco_v2"].lines[2].cells[0] == "−4.4"  # 60.1 - 64.5, with a minus sign
    assert blocks["lewel_m"].lines[1].cells[2] == "68.5 (1 of 2)"
    assert blocks["lewel_m"].lines[3].cells[2] == "inconclusive (n=1); failed"
    assert len(blocks["pcl"].lines) == 1  # published only
    assert all(len(line.cells) == 5 for block in drawn.blocks for line in block.lines)
    assert any("loss is nan at step 31" in problem for problem in drawn.problems)


def test_a_rounded_zero_has_no_sign() -> None:
    records = {"k": SimpleNamespace(metrics={"top1": 68.38})}
    slots = {("lewel_m", "200:top1"): [Slot("k", 0, "done")]}
    drawn = sheet(fill(load("1"), slots, records, "paper", True))
    block = next(block for block in drawn.blocks if block.row == "lewel_m")
    assert block.lines[2].cells[2] == "0.0"


@pytest.mark.parametrize(("id", "suite"), CASES)
def test_latex_is_escaped(id: str, suite: str) -> None:
    text = render(example(id, suite), "latex")
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
    assert _md("a_b | *c* `d` <e> \\") == "a\\_b \\| \\*c\\* \\`d\\` \\<e> \\\\"


def test_markdown_rows_have_the_same_number_of_cells() -> None:
    for id, suite in CASES:
        lines = [x for x in render(example(id, suite), "md").splitlines() if x.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown format 'mdd'. Did you mean 'md'"):
        render(example("1", "paper"), "mdd")


def test_every_text_that_can_be_rendered_is_ascii_in_latex() -> None:
    texts = [note for id in TABLES for row in load(id).rows for note in row.notes.values()]
    texts += [remark for id in TABLES for remark in load(id).remarks]
    texts += [one.why + one.default for one in conflicts()]
    assert all(_tex(text).isascii() for text in texts)
