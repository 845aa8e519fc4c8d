import errno
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import making
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lewel_bench.files import described
from lewel_bench.results.record import (
    NAME,
    BadRecord,
    Record,
    commit,
    key,
    key_by,
    read,
    set_aside,
)

LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
) | st.text(max_size=8)
IDENTITY = st.dictionaries(
    st.text(max_size=6),
    st.recursive(
        LEAF,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    ),
    min_size=1,
    max_size=5,
)


# ---- key ----


def test_key_is_the_hash_of_canonical_json() -> None:
    text = '{"a":[1,"\\u03b2"],"b":0.5}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert key({"b": 0.5, "a": (1.0, "β")}) == expected


def test_key_is_pinned() -> None:
    """A change of `key` would orphan every record that exists."""
    assert key({"method": "lewel_m", "lr": 0.06, "h": 4, "on": True}) == "95b15586b1bf"


def _shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shuffled(field) for name, field in reversed(value.items())}
    return [_shuffled(field) for field in value] if isinstance(value, list) else value


@given(IDENTITY)
def test_key_ignores_order_and_survives_json(identity: dict[str, Any]) -> None:
    assert key(_shuffled(identity)) == key(identity)
    assert key(json.loads(json.dumps(identity))) == key(identity)
    assert len(key(identity)) == 12


def _same(a: Any, b: Any) -> bool:
    # Equal as JSON values: 1 == 1.0, but True is not 1.
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b and (type(a) is type(b) or (_number(a) and _number(b)))


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


@given(IDENTITY, st.integers(0, 10**6))
def test_key_by_is_the_key(identity: dict[str, Any], seed: int) -> None:
    assert key_by(identity, "seed")(seed) == key({**identity, "seed": seed})
    both = key_by(identity, "seed", "upstream")(seed, "0123456789ab")
    assert both == key({**identity, "seed": seed, "upstream": "0123456789ab"})


@given(IDENTITY, st.data())
def test_key_changes_with_any_value(identity: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(identity)))
    other = data.draw(LEAF)
    changed = identity | {name: other}
    assert (key(changed) == key(identity)) == _same(identity[name], other)
    without = {field: entry for field, entry in identity.items() if field != name}
    assert key(without) != key(identity)


def test_equal_numbers_share_a_key_but_true_is_not_one() -> None:
    assert key({"lr": 1}) == key({"lr": 1.0}) != key({"lr": True})
    assert key({"lr": 0.0}) == key({"lr": -0.0})
    assert key({"lr": 1e300}) == key({"lr": int(1e300)})
    assert key({"lr": "1"}) != key({"lr": 1})
    assert key({"lr": None}) != key({})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_key_refuses_what_is_no_number(value: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        key({"lr": value})


@pytest.mark.parametrize("identity", [{"a": {1: 2}}, {"a": Path("x")}, {"a": {3}}, {"a": b"x"}])
def test_key_refuses_what_json_cannot_hold(identity: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="identity"):
        key(identity)


# ---- record ----


def test_record_refuses_a_key_that_is_not_the_hash_of_its_spec() -> None:
    with pytest.raises(ValidationError, match="is not the hash of its spec"):
        making.record(key="0" * 12)


@pytest.mark.parametrize("metric", [math.nan, math.inf])
def test_record_refuses_a_metric_that_is_no_number(metric: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        making.record(metrics={"top1": metric})


def test_record_is_frozen_and_knows_its_fields() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        making.record().seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="host"):
        making.record(host="node1")


def test_commit_and_read_give_the_record_back(tmp_path: Path) -> None:
    record = making.record()
    written = commit(tmp_path / record.key, record)
    assert written == record == read(tmp_path / record.key / NAME)
    raw = json.loads((tmp_path / record.key / NAME).read_text())
    assert raw["schema"] == 1
    assert raw["metrics"] == {"top1": 50.25, "top5": 80.5}
    assert os.listdir(tmp_path / record.key) == [NAME]


def test_commit_stores_a_number_that_is_none_as_null(tmp_path: Path) -> None:
    record = making.record(outcome={"grid": [{"loss": math.nan}, {"loss": 1.5}]})
    assert commit(tmp_path, record).outcome == {"grid": [{"loss": None}, {"loss": 1.5}]}
    assert "NaN" not in (tmp_path / NAME).read_text()


def test_commit_refuses_an_outcome_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="lewel_m_200ep linear_lars"):
        commit(tmp_path, making.record(outcome={"x": object()}))
    assert os.listdir(tmp_path) == []


def test_the_first_writer_wins(tmp_path: Path) -> None:
    first, second = making.record(), making.record(metrics={"top1": 99.0}, command="again")
    commit(tmp_path, first)
    before = (tmp_path / NAME).stat()
    assert commit(tmp_path, second) == first
    after = (tmp_path / NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert os.listdir(tmp_path) == [NAME]


RACER = """
import json, os, sys, time
from pathlib import Path
import making
from lewel_bench.results.record import commit

root, me, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
records = [making.record(seed=i, command=me) for i in range(rounds)]
(root / f"ready-{me}").touch()
while not (root / "go").exists():
    time.sleep(0.001)
print(json.dumps([commit(root / r.key, r).command for r in records]))
"""


def test_two_processes_at_once_one_wins_and_both_return_it(tmp_path: Path) -> None:
    rounds = 40
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *sys.path])
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), me, str(rounds)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        for me in ("a", "b")
    ]
    while not all((tmp_path / f"ready-{me}").exists() for me in ("a", "b")):
        assert all(racer.poll() is None for racer in racers), "a racer died before the start"
    (tmp_path / "go").touch()
    a, b = (json.loads(racer.communicate(timeout=60)[0]) for racer in racers)
    stored = [read(tmp_path / making.record(seed=i).key / NAME).command for i in range(rounds)]
    assert a == b == stored
    folders = [making.record(seed=i).key for i in range(rounds)]
    assert all(os.listdir(tmp_path / folder) == [NAME] for folder in folders)


# ---- a disk that cannot take it ----


def test_full_disk_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    record = making.record()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        commit(tmp_path, record)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / NAME)
    assert described(caught.value) == (
        f"{tmp_path / NAME}: No space left on device. Make room there or choose another place, "
        "then run the same command again"
    )
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    assert commit(tmp_path, record) == record


def test_a_write_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses the write after 1,000 bytes, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"File too large.*{NAME}"):
            commit(tmp_path, making.record())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match=r"Not a directory.*0123"):
        commit(tmp_path / "runs" / "0123", making.record())


# ---- files that are no records ----


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: "", "incomplete or not JSON"),
        (lambda text: "hello\n", "incomplete or not JSON"),
        (lambda text: text[:200], "incomplete or not JSON"),
        (lambda text: text + text, "incomplete or not JSON"),
        (lambda text: text.replace("lewel_m", "\0" * 7), "incomplete or not JSON"),
        (lambda text: "[]", "foreign"),
        (lambda text: "null", "foreign"),
        (lambda text: '{"name": "their experiment"}', "foreign"),
        (lambda text: text.replace('"schema": 1,', ""), "foreign"),
        (lambda text: text.replace('"schema": 1,', '"schema": 2,'), "schema 2, but this version"),
        (lambda text: text.replace('"lr": 0.06', '"lr": 0.6'), "is not the hash of its spec"),
        (lambda text: text.replace('"key": "', '"key": "f'), "is not the hash of its spec"),
        (lambda text: text.replace('"top1": 50.25', '"top1": "high"', 1), "metrics.top1"),
        (lambda text: text.replace('"seed"', '"sead"'), "sead"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(tmp_path: Path, change: Any, reason: str) -> None:
    path = tmp_path / NAME
    commit(tmp_path, making.record())
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(BadRecord, match=reason) as caught:
        read(path)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in caught.value.reason


def test_not_utf8_a_folder_and_nothing_are_named(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRecord, match="not JSON"):
        read(path)
    with pytest.raises(BadRecord, match="cannot be read: No such file"):
        read(tmp_path / "absent.json")
    with pytest.raises(BadRecord, match="cannot be read: Is a directory"):
        read(tmp_path)


SMALL = making.record(environment={}, outcome={}, data={})
TEXT = SMALL.model_dump_json(indent=1)


def test_a_file_cut_at_any_byte_is_bad(tmp_path: Path) -> None:
    path, whole = tmp_path / NAME, TEXT.encode()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(BadRecord, match="incomplete"):
            read(path)
    path.write_bytes(whole)
    assert read(path) == SMALL


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40), st.integers(0, len(TEXT)), st.integers(0, 40))
def test_overwritten_bytes_are_a_record_or_a_bad_one(
    tmp_path: Path, patch: bytes, start: int, length: int
) -> None:
    path, whole = tmp_path / NAME, TEXT.encode()
    path.write_bytes(whole[:start] + patch + whole[start + length :])
    try:
        assert isinstance(read(path), Record)
    except BadRecord as bad:
        assert bad.path == path and bad.reason


def test_a_bad_record_is_replaced_only_after_it_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text("{")
    with pytest.raises(BadRecord, match="incomplete"):
        commit(tmp_path, making.record())
    kept = set_aside(path)
    assert kept.read_text() == "{"
    assert commit(tmp_path, making.record()) == making.record()
    assert sorted(os.listdir(tmp_path)) == sorted([NAME, kept.name])
