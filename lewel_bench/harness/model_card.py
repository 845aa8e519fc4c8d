"""The model card of an exported backbone: where it comes from and what was measured on it."""

import json
from collections.abc import Iterator, Sequence

from lewel_bench.evals.export import FORMATS, unusual
from lewel_bench.files import LARGEST_JSON, read_regular
from lewel_bench.harness.rundir import SPEC
from lewel_bench.pretrain.colour import MEAN, STD
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.results import checkpoints, comparable
from lewel_bench.results.formats import md, md_code
from lewel_bench.results.record import Record
from lewel_bench.results.store import Store, conflict_messages
from lewel_bench.value import json_text

UNSTATED = "unknown"  # the Hugging Face Hub's word for it


def card(
    store: Store,
    run: Record,
    spec: Backbone,
    *,
    file: str,
    sha256: str,
    format: str,
    licence: str | None,
) -> str:
    """A model card in Markdown, with the front matter that the Hugging Face Hub reads."""
    suite = _suite(store, run)
    lines = [
        "---",
        f"license: {json.dumps(licence or UNSTATED)}",
        "tags: [lewel-bench, self-supervised, resnet]",
        "---",
        "",
        f"# {_text(run.name)}, seed {run.seed}",
        "",
        f"A {spec.arch} (stem {spec.stem}, width {spec.width}{unusual(spec)}) without classifier, "
        f"as {md_code(file)} in the format {format}.",
        "",
        f"- run {run.key}{f' of the suite {_text(suite)}' if suite else ''}, finished "
        f"{run.finished:%Y-%m-%d}, lewel-bench {_text(run.version)}, "
        f"{_text(run.commit)}{' with uncommitted changes' if run.dirty else ''}",
        f"- command: {md_code(run.command)}",
        f"- sha256 of this file: {sha256}",
        f"- licence: {_text(licence or 'not stated')}. The terms of the training images are their "
        "own.",
        "",
        "## Reading it",
        "",
        "```python",
        FORMATS[format].how(spec).format(out=file),
        "```",
        "",
        f"Images are RGB in [0, 1], minus the mean {spec.mean or MEAN}, over the standard "
        f"deviation {STD}.",
        "",
        *(_imported(run) if run.kind == "import" else _trained(run)),
        "",
        "## Measured",
        "",
        *_measured(store, run, suite),
        "",
        "## Identity",
        "",
        "Everything that determines these weights:",
        "",
        "```json",
        json_text(run.spec, indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _trained(run: Record) -> list[str]:
    images = [
        (_text(role), _text(data.name), f"{data.images:,}", _text(data.fingerprint))
        for role, data in run.data.items()
    ]
    table = _table(("role", "data set", "images", "fingerprint"), images)
    warning_rows = _table(("warning",), [(_text(warning),) for warning in run.warnings])
    warnings = ["## Warnings", "", *warning_rows, ""]
    return [*(warnings if run.warnings else ()), "## Data", "", *table]


def _imported(run: Record) -> list[str]:
    """Where weights come from that were not trained here."""
    of, pixels = run.outcome, run.outcome["pixels"]
    listed = next((known for known in checkpoints.load() if known.name == run.name), None)
    rows = [
        ("file", f"{md_code(of['file'])}, sha256 {_text(of['file_sha256'])}"),
        ("format and network", _text(f"{of['format']}, {run.spec['network']}")),
        (
            "trained on pixels",
            _text(f"{pixels['order']}, mean {pixels['mean']}, std {pixels['std']}"),
        ),
        ("assumed", _text(str(of.get("guessed") or "nothing"))),
        ("sanity check", _text("; ".join(run.warnings)) or "passed"),
    ]
    if listed:
        rows.append(("published by", f"{listed.project} ({listed.url}), licence {listed.licence}"))
    return ["## Imported", "", *_table(("of the checkpoint", ""), rows)]


def _suite(store: Store, run: Record) -> str:
    try:
        suite = json.loads(read_regular(store.root / run.key / SPEC, LARGEST_JSON)).get("suite", "")
    except (OSError, ValueError):
        return ""
    return str(suite)


def _measured(store: Store, run: Record, suite: str) -> Iterator[str]:
    rows = [
        (
            _text(record.name),
            str(record.seed),
            _text(metric),
            f"{value:.4g}",
            _images(record),
            record.key,
        )
        for record in sorted(store.records.values(), key=lambda record: (record.name, record.seed))
        if record.kind == "final" and record.spec.get("upstream") == run.key
        for metric, value in record.metrics.items()
    ]
    if not rows:
        yield "No evaluation has finished."
        return
    if suite not in ("", "paper"):
        yield f"Numbers of the suite {_text(suite)} cannot be compared with the paper's."
        yield ""
    yield from _table(("evaluation", "seed", "metric", "value", "tested on", "record"), rows)
    if elsewhere := conflict_messages(store, {key for *_, key in rows}):
        yield ""
        yield from (f"- {_text(text)}" for text in elsewhere)


def _images(evaluation: Record) -> str:
    data = evaluation.data.get("report")
    return _text(comparable.described(data)) if data else "not recorded"


def _text(text: str) -> str:
    """A text as Markdown shows it; underscores within words are plain."""
    return md(text).replace("\\_", "_")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; its cells are Markdown already."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]
