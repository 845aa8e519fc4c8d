"""Results of claims as text, Markdown, JSON and as a section of the report."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lewel_bench.results.cell_text import signed
from lewel_bench.results.claims import claim, judge
from lewel_bench.results.claims.judge import ClaimResult, Finding, Judgement
from lewel_bench.results.formats import escape, md
from lewel_bench.value import json_text

LOOKS: dict[Judgement, str] = {
    "supported": "good",
    "contradicted": "bad",
    "inconclusive": "fair",
    "missing": "none",
}


def text(verdicts: Sequence[ClaimResult], suite: str) -> str:
    """A block for each claim, each of its comparisons on a line, and how many there are of each."""
    blocks = [
        "\n".join(
            [f"{verdict.judgement:12}  {verdict.claim.id}: {verdict.claim.says}", *_about(verdict)]
        )
        for verdict in verdicts
    ]
    return "\n\n".join([*blocks, f"suite {suite}: {tally(verdicts)}"])


def missing_tables(verdicts: Iterable[ClaimResult]) -> list[str]:
    """The tables that claims are missing cells of."""
    return sorted({verdict.claim.table for verdict in verdicts if verdict.judgement == "missing"})


def markdown(verdicts: Sequence[ClaimResult], suite: str) -> str:
    """The claims as one table of Markdown, a comparison a line."""
    lines = [
        f"Claims of the paper, suite {suite}: {tally(verdicts)}.",
        "",
        "| claim | | compared | measured | published |",
        "|---|---|---|---:|---:|",
    ]
    for verdict in verdicts:
        for place, finding in enumerate(verdict.findings):
            head = f"{verdict.claim.says} ({verdict.claim.id})" if not place else ""
            state = verdict.judgement if not place else ""
            finding_text = f"{finding.judgement}: {measured(finding)}"
            words = (head, state, finding.comparison.text, finding_text, published(finding))
            lines.append(f"| {' | '.join(map(md, words))} |")
    lines += [
        "",
        *(
            f"- {verdict.claim.id}: {md(line)}"
            for verdict in verdicts
            for line in about(verdict)[1:]
        ),
    ]
    return "\n".join(lines) + "\n"


def as_json(verdicts: Sequence[ClaimResult], suite: str) -> str:
    """The claims with all their numbers; differences are in points."""
    return json_text({"suite": suite, "claims": [_plain(verdict) for verdict in verdicts]})


def tally(verdicts: Iterable[ClaimResult]) -> str:
    """How many claims are of each judgement: "3 supported, 34 missing"."""
    counts = Counter(verdict.judgement for verdict in verdicts)
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
    reasons = "".join(f"; {reason}" for reason in finding.reasons)
    return f"{points(finding.difference)}{within} ({seeds}){reasons}"


def published(finding: Finding) -> str:
    """The difference that the paper prints (in its text, where no table has it), and what is odd in
    it."""
    comparison = finding.comparison
    claimed = None if comparison.by is None else f"{comparison.by:+g}"
    if finding.published is None:
        return f"text: {claimed}" if claimed else "not printed"
    own = "" if finding.own == "holds" else f" ({finding.own})"
    return f"{points(finding.published)}{own}"


def about(verdict: ClaimResult) -> list[str]:
    """Where a claim stands, how it is judged, and what the paper's own tables have against it."""
    floor = claim.floors(verdict.claim)
    floor += "" if verdict.comparable else "; unknown at this scale, so 0"
    lines = [f"{verdict.claim.where}; supported if {claim.HOLDS[verdict.claim.holds]} ({floor})."]
    if verdict.own == "contradicted":
        lines.append(f"Contradicted by the paper's own table: {verdict.claim.flaw}")
    elif verdict.own == "within noise":
        lines.append("In the paper's own table, part of the claim lies within the noise floor.")
    return lines


def _about(verdict: ClaimResult) -> list[str]:
    lines = [f"    {line}" for line in about(verdict)]
    for finding in verdict.findings:
        lines.append(
            f"    {finding.judgement}: {finding.comparison.text}: {measured(finding)}; "
            f"paper {published(finding)}"
        )
    return lines


def _plain(verdict: ClaimResult) -> dict[str, Any]:
    return {
        "id": verdict.claim.id,
        "says": verdict.claim.says,
        "where": verdict.claim.where,
        "holds": verdict.claim.holds,
        "judgement": verdict.judgement,
        "paper": verdict.own,
        "flaw": verdict.claim.flaw,
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
            for f in verdict.findings
        ],
    }


def section(verdicts: Sequence[ClaimResult]) -> Iterator[str]:
    """The claims as a section of the HTML report."""
    yield '<section id="claims"><h2>Claims</h2>'
    yield f'<p class="soft">Verdict of the records on each claim of the paper: {tally(verdicts)}.'
    yield " Differences are in points, with their 95 % interval.</p>"
    for verdict in verdicts:
        shown = " open" if verdict.judgement == "contradicted" else ""
        yield (
            f'<details class="claim {LOOKS[verdict.judgement]}"{shown}><summary><span class="chip">'
            f"{verdict.judgement}</span> {escape(verdict.claim.says)} "
            f'<small class="soft">{escape(verdict.claim.id)}</small></summary>'
        )
        yield from (f'<p class="soft">{escape(line)}</p>' for line in about(verdict))
        yield '<div class="wide"><table><thead><tr><th>compared</th><th></th><th>measured</th>'
        yield "<th>paper</th></tr></thead><tbody>"
        for finding in verdict.findings:
            texts = (finding.judgement, measured(finding), published(finding))
            cells = "".join(f'<td class="name">{escape(text)}</td>' for text in texts)
            yield f"<tr><th>{escape(finding.comparison.text)}</th>{cells}</tr>"
        yield "</tbody></table></div></details>"
    yield "</section>"
