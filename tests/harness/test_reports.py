"""The report: what stands in it, that nothing from outside can act in it, and that it works in a
browser."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, browser
from finished import board, finish

from lewel_bench.harness import report as reports
from lewel_bench.harness.cli import main
from lewel_bench.harness.report import gather, write
from lewel_bench.results.report import report
from lewel_bench.results.table import TABLES, load

EVIL = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=2">\'"&\u2028$\\'
GRID = [
    {"lr": lr, "weight_decay": 0.0, "select_top1": 50 + lr, "top1": 51 + lr}
    for lr in (0.1, 0.2, 0.4)
]
VALUES = {"lewel_m_200ep": (70.0, 72.0, 74.0), "moco_v2_200ep": (60.0,), "lewel_m_100ep": (65.0,)}


def lab(root: Path) -> Path:
    """Cells of Table 1 whose records say evil things wherever a record is free to."""
    outcome = {"chosen": {"lr": 0.2, "weight_decay": 0.0, EVIL: EVIL}, "grid": GRID}
    for name, values in VALUES.items():
        for seed, value in enumerate(values):
            key = finish(
                root, name, "linear_lars", seed,
                metrics={"top1": value, "top5": 90.0, EVIL: 1.0},
                outcome={**outcome, "chosen": {"lr": 0.2, "weight_decay": 0.0}},
                warnings=(EVIL,), command=EVIL, commit=EVIL,
                environment={"device": EVIL, "threads": EVIL},
                data={EVIL: {"name": EVIL, "fingerprint": EVIL, "images": 3}},
                checkpoint={"file": "a.safetensors", "sha256": "0" * 64},
            )  # fmt: skip
            events = [{"event": "step", "epoch": e, "loss": 3.0 - e, EVIL: 1.0} for e in (1, 2)]
            for run in board(root).store.records[key].upstream:
                text = "".join(json.dumps(event) + "\n" for event in events)
                (root / run / "events.jsonl").write_text(text)
    finish(root, "lewel_b_200ep", "linear_sgd", metrics={"top1": 1.0}, outcome=outcome, name=EVIL)
    bad = root / "0123456789ab"
    bad.mkdir()
    (bad / "record.json").write_text(json.dumps({"schema": EVIL}))
    return root


class Reader(HTMLParser):
    """The elements of a page, as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.within = tag

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, text: str) -> None:
        if self.within == "script":
            self.scripts.append(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab(tmp_path_factory.mktemp("lab") / "run root & <co>")


@pytest.fixture(scope="module")
def file(root: Path) -> Path:
    made = root.parent / "report.html"
    write(board(root), made)
    return made


def test_it_holds_every_table_and_what_is_behind_each_number(root: Path, file: Path) -> None:
    text = file.read_text()
    page = Reader(text)
    ids = [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    assert ids == [*(f"table{t}" for t in TABLES), "claims", "figures", "coverage", "cost"]
    data = json.loads(page.scripts[0])
    cell = data["cells"]["table1:lewel_m:200:top1"]
    assert cell["measured"] == "72.00 ± 2.00 %; 3 of 3 seeds" and cell["metric"] == "top1"
    assert cell["published"].startswith("68.4 %; the LEWEL authors' own method")
    store = board(root).store.records
    for key, seed, trial in cell["runs"]:
        assert data["records"][key]["metrics"]["top1"] == VALUES["lewel_m_200ep"][seed]
        assert trial == 0 and data["records"][key]["upstream"] == list(store[key].upstream)
        assert store[key].upstream[0] in data["records"]
    assert data["root"] == "./run%20root%20%26%20%3Cco%3E/"
    missing = data["cells"]["table1:byol:100:top1"]
    assert missing["verdict"] == "missing" and not missing["runs"]
    assert missing["commands"][0].startswith("lewel-bench run --suite shapes --method byol_100ep")
    measurable = sum(len(list(load(t).cells())) for t in TABLES)
    assert f"of {measurable}</b>" in text and len(data["cells"]) == measurable


def test_its_figures_are_drawn_and_its_costs_are_those_of_the_records(file: Path) -> None:
    text = file.read_text()
    figures = re.findall(r'<figure id="(.*?)">', text)
    assert figures == ["curves", "searches"]  # nothing of 3a and 3b is measured
    assert text.count("<svg") == 2 and "MoCov2*, 200 ep top-1, seed 0" in text
    jobs = sum(map(len, VALUES.values())) + 1
    assert f'<th>all</th><td class="name"></td><td>{2 * jobs}</td>' in text
    row = next(line for line in text.splitlines() if ">linear_lars<" in line)
    assert f"<td>{jobs - 1}</td><td>{(jobs - 1) * 60 / 3600:.3g}</td>" in row
    assert "Corrupt record, not counted" in text


def test_nothing_from_outside_is_markup_or_runs(root: Path, file: Path) -> None:
    text = file.read_text()
    page = Reader(text)
    assert [tag for tag, _ in page.tags].count("script") == 2 and len(page.scripts) == 2
    assert not [1 for tag, attrs in page.tags if tag == "img" or any(a[:2] == "on" for a in attrs)]
    (policy,) = (a["content"] for t, a in page.tags if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'"
    data = json.loads(page.scripts[0])
    assert EVIL in {
        record.get("command") for record in data["records"].values()
    }  # as it was written
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert {link for link in links if link and link[0] != "#"} == {
        "https://arxiv.org/abs/2203.14898"
    }
    of = gather(board(root), file.parent)
    filled = of.tables[0]
    scale = replace(of, scale=EVIL, suite=EVIL, options=EVIL, problems=[EVIL])
    quoted = filled.table.model_copy(update={"title": EVIL, "caption": EVIL, "remarks": (EVIL,)})
    for material in (scale, replace(of, tables=[replace(filled, table=quoted, suite=EVIL)])):
        text = report(replace(material, figures=()))
        assert len(Reader(text).scripts) == 2 and "<img" not in text


def test_equal_records_give_equal_bytes(root: Path, file: Path) -> None:
    write(board(root), file)
    before = file.read_bytes()
    write(board(root), file)
    assert file.read_bytes() == before


def test_another_file_is_not_replaced_unasked(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "thesis.html"
    out.write_text("<!doctype html> years of work")
    asked = ["report", str(out), "--suite", "shapes", "--root", str(root)]
    assert main(asked) == 2
    assert (
        "is not a lewel-bench report: name another file, or add --force" in capsys.readouterr().err
    )
    assert out.read_text() == "<!doctype html> years of work"
    assert main([*asked, "--force"]) == 0 and "<table>" in out.read_text()
    out.write_bytes(out.read_bytes() + b"<!-- stale -->")
    assert main(asked) == 0 and b"<!-- stale" not in out.read_bytes()
    assert main(["report", str(tmp_path), "--suite", "shapes", "--root", str(root)]) == 2
    assert main(["report", str(tmp_path / "no" / "a.html"), "--root", str(root)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.html"]


def test_a_failing_write_leaves_what_was_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    write(board(root), out)
    before = out.read_bytes()

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="No space"):
        reports.write(board(root), out)
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_an_empty_root_is_reported_too(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write(board(tmp_path / "nothing"), out)
    assert "<b>0 of " in out.read_text() and "<figure" not in out.read_text()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if not CHROMIUM:
        pytest.skip("chromium is not installed: the report is not opened in a browser")
    with browser() as opened:
        yield opened


def column(page: Page, place: int) -> list[tuple[str | None, str | None]]:
    """What is measured and published in a column of Table 1, as it stands."""
    rows = "[...document.querySelectorAll('#table1 tbody tr')]"
    told = "(d => [d.value ?? null, d.paper ?? null])"
    return [tuple(row) for row in page.run(f"{rows}.map(r => {told}(r.cells[{place}].dataset))")]


def ordered(cells: list[tuple[str | None, str | None]], sign: int) -> list[Any]:
    """Measured values, then those of the paper alone, then nothing."""

    def key(cell: tuple[str | None, str | None]) -> tuple[int, float]:
        measured, paper = cell
        if measured:
            return 0, sign * float(measured)
        return (1, sign * float(paper)) if paper else (2, 0.0)

    return sorted(cells, key=key)


def test_a_browser_sorts_filters_and_opens_what_is_behind_a_number(page: Page, file: Path) -> None:
    page.open(file)
    assert page.errors == []
    assert page.run("window.pwned === undefined && document.querySelectorAll('img').length === 0")

    before = column(page, 3)
    assert sum(bool(value) for value, _ in before) == 3 and before[-1][0] == "1.0"
    for sign in (-1, 1):
        page.run("document.querySelectorAll('#table1 thead button')[3].click()")
        assert column(page, 3) == ordered(before, sign)
    page.run("document.querySelectorAll('#table1 thead button')[3].click()")
    assert column(page, 3) == before
    page.run("document.querySelectorAll('#table1 thead button')[0].click()")
    names = "[...document.querySelectorAll('#table1 tbody th')].map(h => h.dataset.value)"
    assert page.run(names) == sorted((row.label for row in load("1").rows), reverse=True)

    assert not page.run("document.querySelector('dialog').open")
    page.run("document.querySelector('[data-id=\"table1:lewel_m:200:top1\"] button').click()")
    assert page.run("document.querySelector('dialog').open")
    page.run("document.querySelectorAll('dialog summary')[1].click()")
    page.run("new Promise(done => setTimeout(done, 100))")
    output = page.run("document.querySelector('dialog').innerText")
    assert "72.00 ± 2.00 %; 3 of 3 seeds" in output and "seed 2" in output
    assert EVIL.replace("\u2028", "") in output.replace("\u2028", "")
    links = page.run("[...document.querySelectorAll('dialog a')].map(a => a.href)")
    for link in links:
        target = Path(link.removeprefix("file://").replace("%20", " ").replace("%26", "&"))
        assert Path(str(target).replace("%3C", "<").replace("%3E", ">")).is_file(), link
    assert sum(link.endswith("/record.json") for link in links) == 2  # its own and its upstream's
    page.run("document.querySelector('dialog .close').click()")
    assert not page.run("document.querySelector('dialog').open")

    shown = (
        "[...document.querySelectorAll('tr[data-words]')].filter(r => r.offsetParent)"
        ".map(r => r.cells[0].dataset.value)"
    )
    page.run("document.forms.filter.words.value = 'lewel_m'")
    page.run("document.forms.filter.oninput()")
    assert {*page.run(shown)} and all("LEWEL_M" in name for name in page.run(shown))
    page.run("document.forms.filter.words.value = ''")
    page.run("document.forms.filter.verdict.value = 'not comparable'")
    page.run("document.forms.filter.oninput()")
    assert {*page.run(shown)} == {"LEWEL_M", "MoCov2*", "LEWEL_B"}
    assert page.errors == [] and page.run("window.pwned === undefined")


def test_a_number_that_is_none_stops_no_report(tmp_path: Path) -> None:
    """NaN and Infinity, which are no JSON, in a record of another hand."""
    outcome = {"chosen": {"lr": 0.2, "weight_decay": 0.0}, "grid": GRID}
    metrics = {"top1": 1.0, "top5": 2.0}
    key = finish(tmp_path, "lewel_m_200ep", "linear_lars", metrics=metrics, outcome=outcome)
    path = tmp_path / key / "record.json"
    text = path.read_text()
    path.write_text(text.replace('"lr": 0.2', '"lr": NaN').replace('"top1": 51.1', '"top1": 1e999'))
    assert path.read_text().count("NaN") > 1
    write(board(tmp_path), tmp_path / "r.html")
    assert "NaN" not in (tmp_path / "r.html").read_text()
