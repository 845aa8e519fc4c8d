"""The backbone of a pre-training in another tool's format, with a model card."""

import hashlib
from pathlib import Path

from lewel_bench.evals import export
from lewel_bench.files import write_atomically
from lewel_bench.harness.bundles import bundle
from lewel_bench.harness.model_card import card
from lewel_bench.harness.rundir import missing_weights_message
from lewel_bench.pretrain import checkpoint
from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.results.record import Record
from lewel_bench.results.store import Store
from lewel_bench.value import unknown


def write(
    root: Path, name: str, out: Path, to: str, *, licence: str | None = None, force: bool = False
) -> list[Path]:
    """Write the backbone of a run in the format `to`, and its model card; the files. Raises
    ValueError for a run that does not exist, a backbone that the format cannot hold, and, without
    `force`, for files that exist."""
    out = out.expanduser()
    card_path = out.with_name(f"{out.name}.md")
    if to not in export.FORMATS:
        raise ValueError(unknown("format", to, export.FORMATS))
    if out.suffix != (suffix := export.FORMATS[to].suffix):
        raise ValueError(f"{out}: {to} files must end in {suffix}")
    for path in (out, card_path):
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name a file")
        if path.exists() and not force:
            raise ValueError(f"{path} exists: name another file, or add --force to replace it")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent}: make it first")
    store = Store(root)
    run = find(store, name)
    state, spec = backbone(root, run)
    content = export.write(to, state, spec)
    text = card(
        store,
        run,
        spec,
        file=out.name,
        sha256=hashlib.sha256(content).hexdigest(),
        format=to,
        licence=licence,
    )
    write_atomically(out, content)
    write_atomically(card_path, text)
    return [out, card_path]


def find(store: Store, text: str) -> Record:
    """The run that left a backbone, by key or by name. Raises ValueError naming the nearest, or the
    keys of several of one name."""
    having = {key: record for key, record in store.records.items() if record.kind in bundle.LEAVE}
    if text in having:
        return having[text]
    if text in store.records:
        before = ", ".join(key for key in store.records[text].upstream if key in having)
        raise ValueError(
            f"{text} is {store.records[text].name}, which has no backbone: use {before}"
        )
    named = [record for record in having.values() if record.name == text]
    if not named:
        known = [*having, *{record.name for record in having.values()}]
        if not known:
            raise ValueError(f"no finished pre-training under {store.root}: see lewel-bench status")
        raise ValueError(unknown("run", text, known))
    if len(named) > 1:
        keys = "; ".join(f"{record.key} (seed {record.seed}, {_data(record)})" for record in named)
        raise ValueError(f"{len(named)} runs are named {text}: choose one by its key: {keys}")
    return named[0]


def _data(run: Record) -> str:
    return ", ".join(data.name for data in run.data.values()) or "no data"


def backbone(root: Path, run: Record) -> tuple[export.State, Backbone]:
    """The weights of a finished run and what they are of. Raises ValueError where the file is gone
    or is not the one that the record names."""
    assert run.checkpoint is not None
    path = root / run.key / run.checkpoint.file
    if not path.exists():
        raise ValueError(f"{missing_weights_message(path)} (computed by: {run.command})")
    if checkpoint.sha256(path) != run.checkpoint.sha256:
        raise ValueError(f"{path} does not match its record (hash mismatch)")
    return checkpoint.read_network(path)
