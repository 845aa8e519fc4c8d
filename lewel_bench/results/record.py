"""One measured result on disk: its identity, its schema, and the write that the first writer wins.

A record is `<root>/<key>/record.json`, written once and never changed. It holds no host name.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lewel_bench.files import LARGEST_JSON, create, read_regular
from lewel_bench.value import explain

NAME = "record.json"
SCHEMA: Literal[1] = 1
FOREIGN = "foreign: not a record of lewel-bench (it has no field 'schema')"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BadRecord(ValueError):
    """A file that is not a whole record of ours; `path` and `reason` say which and why."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Frozen(BaseModel):
    # Not value.Value: thousands are read for one table, and its nearest-name check costs as much
    # time again as reading them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="null", serialize_by_alias=True
    )


class Contents(_Frozen):
    """What a whole split holds: its images and classes, the digest of the class names, and the
    fewest and the most images of a class (None: images have several, or none)."""

    images: Annotated[int, Field(ge=0)]
    classes: Annotated[int, Field(ge=0)]
    names: str
    per_class: tuple[int, int] | None = None


class Data(_Frozen):
    """The images that played one role: their name, fingerprint and number. `left_out` counts the
    files of their folder that are not read, by extension; `whole` is the split that they were taken
    from (None: not recorded)."""

    name: str
    fingerprint: str
    images: Annotated[int, Field(ge=0)]
    left_out: dict[str, int] = {}
    whole: Contents | None = None


class Checkpoint(_Frozen):
    """The weights that a run left or used: a file in its folder or in another run's beside it, and
    its hash."""

    file: Annotated[str, Field(pattern=r"^(\.\./[0-9a-f]{12}/)?[A-Za-z0-9][A-Za-z0-9._-]*$")]
    sha256: Sha256


class Record(_Frozen):
    """What came out of one job. `spec` is everything that determines it: `key(spec) == key`.

    `metrics` are what tables show (percent unless the table's column says otherwise). `outcome` is
    free JSON (grids, selection gap, curves); JSON has no NaN, so a non-finite number in it is
    stored as null. `data` maps a role ("train", "select", "report") to the images that played it.
    `seconds` are those of the computation over all attempts, every step once; `peak_memory` is the
    most that it held in bytes: of a GPU's memory, of a process's own on a CPU (None: not measured).
    """

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    key: str
    kind: Literal["pretrain", "import", "search", "final"]
    name: str
    spec: dict[str, Any]
    seed: int
    upstream: tuple[str, ...] = ()
    metrics: dict[str, Finite]
    outcome: dict[str, Any] = {}
    warnings: tuple[str, ...] = ()
    data: dict[str, Data] = {}
    commit: str
    dirty: bool
    version: str
    environment: dict[str, str] = {}
    command: str
    started: AwareDatetime
    finished: AwareDatetime
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_memory: Annotated[int, Field(gt=0)] | None = None
    checkpoint: Checkpoint | None = None

    @model_validator(mode="after")
    def _key_of_spec(self) -> Self:
        if (expected := key(self.spec)) != self.key:
            raise ValueError(f"key {self.key!r} is not the hash of its spec, which is {expected!r}")
        return self

    @property
    def processes(self) -> int:
        """How many computed it, one a device."""
        return int(self.environment.get("processes", "1"))


def key(identity: Mapping[str, Any]) -> str:
    """12 hex digits that name `identity`: the SHA-256 of its canonical JSON.

    The order of fields does not matter; every value does. Numbers that are equal share a key, so
    `1` and `1.0` (`--set optimizer.lr=1`) are the same run; `true` is not 1, and a tuple is a list.
    Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold.
    """
    return hashlib.sha256(_text(identity)).hexdigest()[:12]


def key_by(identity: Mapping[str, Any], *names: str) -> Callable[..., str]:
    """The `key` of `identity` with further fields, as a function of their values in the order of
    `names`, which is alphabetical: a hundred times faster than to ask for each of many values."""
    assert list(names) == sorted(names), "as canonical JSON has them"
    marks = {name: f"<the {name}>" for name in names}
    text = _text({**identity, **marks})
    pieces = []
    for mark in marks.values():
        piece, text = text.split(json.dumps(mark).encode())
        pieces.append(piece)

    def of(*values: int | str) -> str:
        digest = hashlib.sha256()
        for piece, value in zip(pieces, values, strict=True):
            digest.update(piece + json.dumps(value).encode())
        digest.update(text)
        return digest.hexdigest()[:12]

    return of


def _text(identity: Mapping[str, Any]) -> bytes:
    text = json.dumps(_canonical(identity), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def _canonical(value: Any) -> Any:
    # Exact types first: this runs for every value of every record that is read.
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"field {name!r} of an identity is not a string")
        return {name: _canonical(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(element) for element in value]
    raise TypeError(f"{value!r} ({kind.__name__}) cannot be part of an identity: use JSON types")


def commit(folder: Path, record: Record) -> Record:
    """Write `record` to `folder/record.json` unless one is there; the record that is there now.

    The first writer wins, whatever the number of processes, and readers see a whole file or none.
    Raises OSError that names the file when it cannot be written, for instance on a full disk, and
    then leaves nothing behind; BadRecord when a corrupt record is in the way (see `set_aside`);
    TypeError for an outcome that JSON cannot hold.
    """
    path = folder / NAME
    try:
        text = record.model_dump_json(indent=1) + "\n"
    except pydantic_core.PydanticSerializationError as error:
        raise TypeError(f"the record of {record.name} ({record.key}): {error}") from None
    create(path, text)
    return read(path)


def read(path: Path | str) -> Record:
    """The record in the file `path`. Raises BadRecord naming the file and what is wrong with it."""
    try:
        text = read_regular(path, LARGEST_JSON)
    except OSError as error:
        reason = "Is a directory" if os.path.isdir(path) else error.strerror
        raise BadRecord(path, f"cannot be read: {reason}") from None
    return parse(text, path)


def parse(text: bytes, path: Path | str) -> Record:
    """The record in `text`, which is that of `path`. Raises BadRecord as `read` does."""
    try:
        record = Record.model_validate_json(text)
    except (ValidationError, TypeError) as error:
        raise BadRecord(path, _reason(text, error)) from None
    if "schema_" not in record.model_fields_set:
        raise BadRecord(path, FOREIGN)
    return record


def _reason(text: bytes, error: ValidationError | TypeError) -> str:
    try:
        data = pydantic_core.from_json(text)
    except ValueError as broken:
        return f"incomplete or not JSON: {broken}"
    if not isinstance(data, dict) or "schema" not in data:
        return FOREIGN
    if data["schema"] != SCHEMA:
        return (
            f"schema {data['schema']!r}, but this version reads schema {SCHEMA}: written by "
            "another version of lewel-bench"
        )
    return explain(error) if isinstance(error, ValidationError) else str(error)


def set_aside(path: Path) -> Path:
    """Rename a bad record so that its job can be computed again; where it is kept now.

    Raises FileNotFoundError when another process was first.
    """
    kept = path.with_name(f"{NAME}.bad-{secrets.token_hex(4)}")
    os.rename(path, kept)
    return kept
