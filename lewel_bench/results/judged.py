"""Judged claims as text, Markdown, JSON and as a section of the report."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lewel_bench.results import claim, judge
from lewel_bench.results.judge import Finding, Judged, Judgement
from lewel_bench.results.page import escape
from lewel_bench.results.render import md
from lewel_bench.results.sheet import signed
from lewel_bench.value import json_text

LOOKS: dict[Judgement, str] = {
    "supported": "good",
    "contradicted": "bad",
    "inconclusive": "fair",
    "missing": "none",
}


def text(found: Sequence[Judged], suite: str) -> str:
    """A block for each claim, each of its comparisons on a line, and how many there are of each."""
    blocks = [
        "\n".join([f"{one.judgement:12}  {one.claim.id}: {one.claim.says}", *_about(one)])
        for one in found
    ]
    return "\n\n".join([*blocks, f"suite {suite}: {tally(found)}"])


def lacking(found: Iterable[Judged]) -> list[str]:
    """The tables that claims are missing cells of."""
    return sorted({one.claim.table for one in found if one.judgement == "missing"})


def markdown(found: Sequence[Judged], suite: str) -> str:
    """The claims as one table of Markdown, a comparison a line."""
    lines = [
        f"Claims of the paper, suite {suite}: {tally(found)}.",
        "",
        "| claim | | compared | measured | published |",
        "|---|---|---|---:|---:|",
    ]
    for one in found:
        for place, finding in enumerate(one.findings):
            head = f"{one.claim.says} ({one.claim.id})" if not place else ""
            state = one.judgement if not place else ""
            said = f"{finding.judgement}: {measured(finding)}"
            words = (head, state, finding.comparison.text, said, published(finding))
            lines.append(f"| {' | '.join(map(md, words))} |")
    lines += ["", *(f"- {one.claim.id}: {md(line)}" for one in found for line in about(one)[1:])]
    return "\n".join(lines) + "\n"


def as_json(found: Sequence[Judged], suite: str) -> str:
    """The claims with all their numbers; differences are in points."""
    return json_text({"suite": suite, "claims": [_plain(one) for one in found]})


def tally(found: Iterable[Judged]) -> str:
    """How many claims are of each judgement: "3 supported, 34 missing"."""
    counts = Counter(one.judgement for one in found)
    return ", ".join(f"{counts[j]} {j}" for j in reversed(judge.GRAVITY) if counts[j])


def points(difference: float) -> str:
    """A difference with its sign, which a rounded zero has not."""
    return signed(difference, 1)


def measured(finding: Finding) -> str:
    """The difference with its interval, in words."""
    if finding.difference is None:
        return "; ".join(finding.reasons)
    within = ""
    if finding.low is not None and finding.high is not None:
        within = f" [{points(finding.low)}, {points(finding.high)}]"
    seeds = f"n={finding.n}" + (f", {finding.how}" if finding.how else "")
    said = "".join(f"; {reason}" for reason in finding.reasons)
    return f"{points(finding.difference)}{within} ({seeds}){said}"


def published(finding: Finding) -> str:
    """The difference that the paper prints (in its text, where no table has it), and what is odd in
    it."""
    comparison = finding.comparison
    claimed = None if comparison.by is None else f"{comparison.by:+g}"
    if finding.published is None:
        return f"text: {claimed}" if claimed else "not printed"
    own = "" if finding.own == "holds" else f" ({finding.own})"
    return f"{points(finding.published)}{own}"


def about(one: Judged) -> list[str]:
    """Where a claim stands, how it is judged, and what the paper's own tables have against it."""
    floor = claim.floors(one.claim)
    floor += "" if one.comparable else "; at this scale none is known, 0 is taken"
    said = [f"{one.claim.where}. Holds where {claim.HOLDS[one.claim.holds]} ({floor})."]
    if one.own == "contradicted":
        said.append(f"The paper's own table contradicts it: {one.claim.flaw}")
    elif one.own == "within noise":
        said.append("In the paper's own table some of it is within the noise floor.")
    return said


def _about(one: Judged) -> list[str]:
    lines = [f"    {line}" for line in about(one)]
    for finding in one.findings:
        lines.append(
            f"    {finding.judgement}: {finding.comparison.text}: {measured(finding)}; "
            f"paper {published(finding)}"
        )
    return lines


def _plain(one: Judged) -> dict[str, Any]:
    return {
        "id": one.claim.id,
        "says": one.claim.says,
        "where": one.claim.where,
        "holds": one.claim.holds,
        "judgement": one.judgement,
        "paper": one.own,
        "flaw": one.claim.flaw,
        "comparisons": [
            {
                "of": f.comparison.cell(f.comparison.of),
                "over": f.comparison.over and f.comparison.cell(f.comparison.over),
                "claimed": f.comparison.by,
                "published": f.published,
                "floor": f.floor,
                "noise": f.comparison.noise.model_dump(),
                "paper": f.own,
                "judgement": f.judgement,
                "difference": f.difference,
                "low": f.low,
                "high": f.high,
                "n": f.n,
                "interval": f.how,
                "keys": list(f.keys),
                "reasons": list(f.reasons),
            }
            for f in one.findings
        ],
    }


def section(found: Sequence[Judged]) -> Iterator[str]:
    """The claims as a section of the HTML report."""
    yield '<section id="claims"><h2>Claims</h2>'
    yield f'<p class="soft">What the paper says, and what the records say about it: {tally(found)}.'
    yield " Differences are in points, with their 95 % interval.</p>"
    for one in found:
        shown = " open" if one.judgement == "contradicted" else ""
        yield (
            f'<details class="claim {LOOKS[one.judgement]}"{shown}><summary><span class="chip">'
            f"{one.judgement}</span> {escape(one.claim.says)} "
            f'<small class="soft">{escape(one.claim.id)}</small></summary>'
        )
        yield from (f'<p class="soft">{escape(line)}</p>' for line in about(one))
        yield '<div class="wide"><table><thead><tr><th>compared</th><th></th><th>measured</th>'
        yield "<th>paper</th></tr></thead><tbody>"
        for finding in one.findings:
            texts = (finding.judgement, measured(finding), published(finding))
            cells = "".join(f'<td class="name">{escape(text)}</td>' for text in texts)
            yield f"<tr><th>{escape(finding.comparison.text)}</th>{cells}</tr>"
        yield "</tbody></table></div></details>"
    yield "</section>"
