"""A bundle: the records under a run root with their specs, logs and predictions, as one zip file.

    manifest.json                   what made it, and of every file its size and SHA-256
    <key>/record.json, spec.json, events.jsonl, predictions.*, …

The zip's comment is the SHA-256 of all bytes before it, so that no byte can change unseen. Equal
records give equal bytes.
"""

import hashlib
import json
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lewel_bench import __version__
from lewel_bench.files import open_regular, replacing
from lewel_bench.harness import spec_schema as foreign
from lewel_bench.harness.rundir import EVENTS, MERGED_CODE, METHOD, SPEC
from lewel_bench.results import record
from lewel_bench.results.store import Store

MANIFEST = "manifest.json"
FORMAT = 1
ASIDE = ".before-merge"  # what an unfinished job had under the name of a file that came
KEPT = (
    *(SPEC, METHOD, METHOD + MERGED_CODE, EVENTS, "predictions.*", "config.*"),
    *("metrics.json", "predictions/*"),
)
WEIGHTS = "*.safetensors"
LEAVE = ("pretrain", "import")  # the kinds of a record that has a backbone
# No part of a name starts with a dot or holds what could lead elsewhere.
NAME = re.compile(
    r"[0-9a-f]{12}/(?:predictions/)?[^./\\:\x00-\x1f\ud800-\udfff][^/\\:\x00-\x1f\ud800-\udfff]*"
)
# What a folder of Windows does not take, and what its end may not be.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
NOT_IN_NAMES = frozenset('<>"|?*')
LONGEST = 200  # bytes of a name: disks take 255, and a file is written beside its place
DIGEST = 64  # characters of the comment
# What a bundle may take when it is read. Weights and predictions are packed already; logs and
# records come to a tenth.
RATIO, SLACK = 100, 1 << 26  # times its own size, and bytes more
LARGEST_JSON = 1 << 23  # bytes of a record or a spec; the largest of ours have less than one MiB
# Python unpacks what the others hold in one piece, however large.
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
PER_FILE = 2048  # bytes of the manifest for each file
CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of a bundle, as its manifest has it."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked; `files` by name, `digest` that of the whole. `left_out` is, in
    words, what is under the root and did not go into it."""

    path: Path
    digest: str
    files: Mapping[str, File]
    left_out: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        """The keys of its records, sorted."""
        return sorted({name.split("/")[0] for name in self.files})

    def of(self, key: str) -> list[str]:
        """The names of the files of a key, the record last."""
        names = sorted(name for name in self.files if name.startswith(f"{key}/"))
        return sorted(names, key=lambda name: name.endswith(f"/{record.NAME}"))


def write(root: Path, out: Path, *, weights: bool = False, force: bool = False) -> Bundle:
    """Write the bundle of a run root to `out`, atomically; with `weights` the networks too.

    Raises ValueError where there is no record, or `out` exists and `force` was not asked for.
    """
    if out.exists() and not force:
        raise ValueError(f"{out} exists: name another file, or add --force")
    names, left_out = _chosen(Store(root), weights)
    if not names:
        raise ValueError("\n".join([f"there is no record under {root} to bundle", *left_out]))
    files = {}
    with replacing(out) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                files[name] = _add(archive, name, root / name)
            manifest = {
                "bundle": FORMAT,
                "lewel-bench": __version__,
                "files": {name: vars(file) for name, file in files.items()},
            }
            archive.writestr(_entry(MANIFEST), json.dumps(manifest, indent=1))
            archive.comment = b"0" * DIGEST
        digest = _seal(temporary)
    return Bundle(out, digest, files, tuple(left_out))


def verify(path: Path) -> Bundle:
    """The bundle in a file, every byte of it checked; nothing is written.

    Raises ValueError that names the file of it that has changed, is not named in the manifest or
    missing, is none that a run leaves, or whose name could lead out of a run's folder; and the
    field that a record or a spec lacks.
    """
    try:
        with open_regular(path):
            pass
    except OSError as error:
        raise ValueError(f"cannot read the bundle {path}: {error.strerror}") from None
    try:
        with opened(path) as archive:
            digest = archive.comment.decode(errors="replace")
            bundle = Bundle(path, digest, _manifest(path, archive))
            for name, file in bundle.files.items():
                _check(path, archive, name, file)
            for key in bundle.keys:
                _record(path, archive, key, bundle.files)
    except (OSError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if _digest(path) != digest:
        raise ValueError(f"{path}: its table of contents was changed after it was written")
    return bundle


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip of a bundle. Raises ValueError where it is none, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    # NotImplementedError, RuntimeError: a changed byte asked for a method or a password
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a bundle, or is damaged: {error}") from None


def _chosen(store: Store, weights: bool) -> tuple[list[str], list[str]]:
    """The names of the files that go into a bundle, and what does not, in words."""
    names: list[str] = []
    left_out = [str(bad) for bad in store.bad]
    bare = []  # pre-trainings whose weights are wanted and not there
    for key, entry in sorted(store.records.items()):
        spec = store.root / key / SPEC
        try:  # what `verify` would refuse
            foreign.check(entry, store.root / key / record.NAME)
            if spec.exists():
                foreign.check_spec(spec.read_bytes(), entry, spec)
        except ValueError as error:
            left_out.append(str(error))
            continue
        files_of_key = list(_files(store.root, key, weights))
        names += filter(_may_stand, _distinct(files_of_key, left_out))
        if (
            entry.kind in LEAVE
            and entry.checkpoint
            and f"{key}/{entry.checkpoint.file}" not in files_of_key
        ):
            bare.append(key)
        left_out += [
            f"{store.root / n}: its name is not allowed in a bundle"
            for n in files_of_key
            if not _may_stand(n)
        ]
    if weights and bare:
        left_out.append(f"the weights of {', '.join(bare)}: they are not under {store.root}")
    if store.kept_apart:
        left_out.append(
            f"{store.kept_apart} records of merged bundles that are kept apart from the local ones"
        )
    return names, left_out


def _distinct(names: list[str], left_out: list[str]) -> list[str]:
    """Those of `names` that differ in more than case from the ones before them."""
    known: dict[str, str] = {}
    for name in names:
        if known.setdefault(_folded(name), name) != name:
            left_out.append(
                f"{name}: the same file as {known[_folded(name)]} on case-insensitive file systems"
            )
    return list(known.values())


def _files(root: Path, key: str, weights: bool) -> Iterator[str]:
    yield f"{key}/{record.NAME}"
    for pattern in (*KEPT, *([WEIGHTS] if weights else [])):
        for path in sorted((root / key).glob(pattern)):
            if path.is_file() and not (path.name.startswith(".") or path.suffix == ASIDE):
                yield path.relative_to(root).as_posix()


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> File:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file, archive.open(_entry(name), "w", force_zip64=True) as entry:
        while part := file.read(CHUNK):
            digest.update(part)
            size += len(part)
            entry.write(part)
    return File(size, digest.hexdigest())


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980: equal records give equal bytes
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _seal(path: Path) -> str:
    digest = _digest(path)
    with open(path, "r+b") as file:
        file.seek(-DIGEST, os.SEEK_END)
        file.write(digest.encode())
    return digest


def _digest(path: Path) -> str:
    digest, left = hashlib.sha256(), path.stat().st_size - DIGEST
    with open(path, "rb") as file:
        while left > 0 and (part := file.read(min(CHUNK, left))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def _manifest(path: Path, archive: zipfile.ZipFile) -> dict[str, File]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename
        if name in entries:
            raise ValueError(f"{path}: {name!r} appears twice")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
            raise ValueError(f"{path}: {name!r} is a link, a folder or encrypted, not a plain file")
        if entry.compress_type not in PACKINGS:
            raise ValueError(f"{path}: {name!r} uses an unsupported compression method")
        if name != MANIFEST and not _may_stand(name):
            raise ValueError(f"{path}: {name!r} is not a file of a run; nothing was unpacked")
        entries[name] = entry
    if MANIFEST not in entries:
        raise ValueError(f"{path} is not a lewel-bench bundle: it has no {MANIFEST}")
    _refuse_large(path, entries)
    try:
        content = json.loads(_bytes(path, archive, MANIFEST, PER_FILE * len(entries)))
        if content["bundle"] != FORMAT:
            raise ValueError(f"format {content['bundle']!r}, but this version reads {FORMAT}")
        files = {
            name: File(_size(f["size"]), str(f["sha256"])) for name, f in content["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: {MANIFEST} is damaged: {error}") from None
    for name in {*files, *entries} - {MANIFEST}:
        if name not in entries or name not in files:
            where = "in the bundle" if name not in entries else f"named in {MANIFEST}"
            raise ValueError(f"{path}: {name!r} is not {where}")
    return files


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"size {value!r}: a whole number of bytes is allowed")
    return value


def _refuse_large(path: Path, entries: Mapping[str, zipfile.ZipInfo]) -> None:
    """Raise ValueError where the files of a bundle would take much more than it, or where two
    names are one on a disk that does not tell cases or compositions apart."""
    size, most = sum(e.file_size for e in entries.values()), RATIO * path.stat().st_size + SLACK
    if size > most:
        raise ValueError(
            f"{path}: its files unpack to {size:,} bytes, more than {RATIO} times its size"
        )
    if entries[MANIFEST].file_size > PER_FILE * len(entries):
        raise ValueError(f"{path}: {MANIFEST} is too large")
    for name, entry in entries.items():
        if name.endswith((f"/{record.NAME}", f"/{SPEC}")) and entry.file_size > LARGEST_JSON:
            raise ValueError(f"{path}: {name} is larger than {LARGEST_JSON >> 20} MiB")
    known: dict[str, str] = {}
    for name in entries:
        other = known.setdefault(_folded(name), name)
        if other != name:
            raise ValueError(
                f"{path}: {name!r} and {other!r} are the same file on case-insensitive file systems"
            )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _may_stand(name: str) -> bool:
    """Whether a bundle may have a file of this name: on every system, and seen as it is."""
    last = name.rpartition("/")[2]
    if DEVICES.fullmatch(last) or last[-1:] in (".", " ") or NOT_IN_NAMES & set(name):
        return False
    if not name.isprintable():
        return False
    of_key = name.partition("/")[2]
    known = any(fnmatchcase(of_key, pattern) for pattern in (record.NAME, *KEPT, WEIGHTS))
    long = any(len(part.encode(errors="surrogatepass")) > LONGEST for part in name.split("/"))
    return known and not long and NAME.fullmatch(name) is not None


def _check(path: Path, archive: zipfile.ZipFile, name: str, file: File) -> None:
    digest, size = hashlib.sha256(), 0
    for part in _parts(path, archive, name):
        digest.update(part)
        size += len(part)
        if size > file.size:  # a bomb ends here
            break
    if size != file.size or digest.hexdigest() != file.sha256:
        raise ValueError(f"{path}: {name} was changed after the bundle was written")


def _record(path: Path, archive: zipfile.ZipFile, key: str, files: Mapping[str, File]) -> None:
    """Refuses what could not stand under a run root: a key without a whole record of its own, with
    all that is read of it here."""
    name, spec = f"{key}/{record.NAME}", f"{key}/{SPEC}"
    if name not in files:
        raise ValueError(f"{path}: {key} has no {record.NAME}")
    parsed = record.parse(_bytes(path, archive, name, files[name].size), path / name)
    if parsed.key != key:
        raise ValueError(f"{path}: {name} is the record of {parsed.key}")
    foreign.check(parsed, path / name)
    if spec in files:
        foreign.check_spec(_bytes(path, archive, spec, files[spec].size), parsed, path / spec)


def _bytes(path: Path, archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    content = bytearray()
    for part in _parts(path, archive, name):
        content += part
        if len(content) > most:
            raise ValueError(f"{path}: {name} is larger than declared")
    return bytes(content)


def _parts(path: Path, archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    try:
        with archive.open(name) as entry:
            while part := entry.read(CHUNK):
                yield part
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise ValueError(
            f"{path}: {name} was changed after the bundle was written: {error}"
        ) from None
