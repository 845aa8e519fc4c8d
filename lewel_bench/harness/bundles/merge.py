"""The records of a bundle under this run root; what is there is never changed.

A record with another number under a key that is there already is kept beside it, in
`.merged/<digest of the bundle>/<key>/`, and shown wherever ours is. What was measured on a network
that is another here is kept there too, so that no number of ours ever rests on their network.
"""

import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lewel_bench.files import replacing, write_atomically
from lewel_bench.harness.bundles.bundle import ASIDE, Bundle, opened
from lewel_bench.harness.rundir import MERGED_CODE, METHOD, SPEC, RunDir
from lewel_bench.results import record
from lewel_bench.results.record import BadRecord, Record
from lewel_bench.results.store import MERGED, Store

ORDER = ("pretrain", "import", "search", "final")  # a kind rests on those before it


@dataclass
class Merged:
    """The keys of a bundle, by what became of them."""

    imported: list[str] = field(default_factory=list)
    identical: list[str] = field(default_factory=list)  # with the same number
    conflicting: list[str] = field(default_factory=list)  # with another number: both are kept
    quarantined: dict[str, str] = field(default_factory=dict)  # kept, but in no table, and why
    skipped: dict[str, str] = field(default_factory=dict)  # left out, and why


def merge(bundle: Bundle, root: Path) -> Merged:
    """Bring the records of a bundle that was verified under `root`. May be killed at any moment and
    called again: a record comes last, and whole."""
    store, merged = Store(root), Merged()
    corrupt = {bad.path.parent.name: bad.reason for bad in store.bad}
    with opened(bundle.path) as archive:
        names = {key: f"{key}/{record.NAME}" for key in bundle.keys}
        records = {k: record.parse(archive.read(n), bundle.path / n) for k, n in names.items()}
        kept = root / MERGED / bundle.digest[:12]
        for key in sorted(records, key=lambda key: (ORDER.index(records[key].kind), key)):
            theirs, local = records[key], store.records.get(key)
            if key in corrupt:
                merged.skipped[key] = f"the local record is corrupt ({corrupt[key]})"
            elif local is None and RunDir(root).job(key).is_locked():
                merged.skipped[key] = "a local run is computing it"
            elif local and local.metrics == theirs.metrics:
                merged.identical.append(key)
            elif local:
                _unpack(archive, bundle, key, kept / key)
                merged.conflicting.append(key)
            elif lost := [
                up
                for up in theirs.upstream
                if up in merged.skipped or (up not in records and up not in store.records)
            ]:
                merged.skipped[key] = f"it evaluates {lost[0]}, which is not in the bundle"
            elif strange := [
                up for up in theirs.upstream if _is_another(up, theirs, records, store, merged)
            ]:
                _unpack(archive, bundle, key, kept / key)
                merged.quarantined[key] = (
                    f"it evaluates {strange[0]}, whose hash differs from the local one"
                )
            else:
                _unpack(archive, bundle, key, root / key)
                merged.imported.append(key)
    return merged


def _is_another(
    key: str, of: Record, records: Mapping[str, Record], store: Store, merged: Merged
) -> bool:
    """Whether ours of a key is, or may be, another network or number than the one that their `of`
    rests on."""
    if key in merged.conflicting or key in merged.quarantined:
        return True
    theirs, local = records.get(key), store.records.get(key)
    if local is None or local.kind == "import":  # the key of an import is the hash of its weights
        return False
    if theirs is None:  # it did not come: a checkpoint that was used has its hash in what used it
        used = of.checkpoint and of.checkpoint.sha256
        return not (local.checkpoint and local.checkpoint.sha256 == used)
    return local.checkpoint != theirs.checkpoint


def _unpack(archive: zipfile.ZipFile, bundle: Bundle, key: str, folder: Path) -> None:
    """The files of a key into its folder, the record last and, as always, by the first writer."""
    *others, last = bundle.of(key)
    if (before := folder / record.NAME).exists():  # of a merge of the same bundle
        try:
            record.read(before)
            return
        except BadRecord:
            record.set_aside(before)
    for name in others:
        path = folder / name.removeprefix(f"{key}/")
        if path.name == METHOD:  # another's code, to be read and never run
            path = path.with_name(METHOD + MERGED_CODE)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.name == SPEC:
                continue  # ours knows where our data is
            if path.read_bytes() == archive.read(name):
                continue  # of a merge that was killed
            os.replace(path, _aside(path))
        if path.name == SPEC:
            write_atomically(path, _inert(archive.read(name)))
            continue
        with (
            replacing(path) as temporary,
            archive.open(name) as source,
            open(temporary, "wb") as file,
        ):
            shutil.copyfileobj(source, file)
    record.commit(folder, record.parse(archive.read(last), bundle.path / last))


def _aside(path: Path) -> Path:
    """The first free name for what was ours."""
    aside = path.with_name(path.name + ASIDE)
    for n in itertools.count(2):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.{n}{ASIDE}")
    return aside


def _inert(spec: bytes) -> bytes:
    """A spec that names no code which could be run here."""
    content = json.loads(spec)
    own = (content.get("recipe") or {}).get("own")
    if not own:
        return spec
    own |= {"file": METHOD + MERGED_CODE, "module": ""}
    return json.dumps(content, indent=1).encode()
