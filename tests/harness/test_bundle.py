"""Bundles: what travels, that no byte changes unseen, and that nothing here is overwritten."""

import hashlib
import json
import os
import random
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished import board, finish

from lewel_bench.harness import rundir
from lewel_bench.harness.board.cell_details import explained
from lewel_bench.harness.bundles import bundle, merge
from lewel_bench.harness.cli import main
from lewel_bench.results import formats, record
from lewel_bench.results.record import Record
from lewel_bench.results.store import MERGED, Store, conflict_messages
from lewel_bench.results.table import TABLES


def lab(root: Path, value: float = 70.0) -> Path:
    for seed in range(2):
        metrics = {"top1": value + seed, "top5": 90.0}
        key = finish(root, "lewel_m_200ep", "linear_lars", seed, metrics=metrics)
        (root / key / "events.jsonl").write_text('{"event": "step", "step": 1, "steps": 2}\n')
        (root / key / "predictions").mkdir()
        (root / key / "predictions" / "a (1).png").write_bytes(b"mask")
        (root / key / "predictions.npz").write_bytes(os.urandom(200))
        (root / key / "heads.safetensors").write_bytes(b"weights")
        (root / key / "checkpoint-00000001-0.pt").write_bytes(b"no")
    return root


def shown(root: Path) -> dict[str, str]:
    tables = [board(root).filled(name) for name in TABLES]
    return {name: formats.render(tables, name) for name in formats.FORMATS}


def test_a_merged_bundle_shows_the_same_tables(tmp_path: Path) -> None:
    root = lab(tmp_path / "theirs")
    made = bundle.write(root, tmp_path / "a.zip")
    assert len(made.keys) == 4 and not [
        n for n in made.files if n.endswith((".pt", ".safetensors"))
    ]
    assert bundle.verify(made.path) == made
    merged = merge.merge(bundle.verify(made.path), tmp_path / "ours")
    assert sorted(merged.imported) == made.keys and not (
        merged.identical or merged.conflicting or merged.skipped
    )
    assert shown(root) == shown(tmp_path / "ours")
    again = bundle.write(tmp_path / "ours", tmp_path / "b.zip")
    assert again.path.read_bytes() == made.path.read_bytes()
    assert sorted(merge.merge(made, tmp_path / "ours").identical) == made.keys
    with_weights = bundle.write(root, tmp_path / "c.zip", weights=True)
    assert sum(name.endswith(".safetensors") for name in with_weights.files) == 2


def test_weights_that_are_asked_for_and_not_there_are_named(tmp_path: Path) -> None:
    root = lab(tmp_path / "root")
    store = Store(root)
    bare, full = sorted(key for key, record in store.records.items() if record.kind == "pretrain")
    (root / full / "backbone.safetensors").write_bytes(b"weights")
    made = bundle.write(root, tmp_path / "a.zip", weights=True)
    assert made.left_out == (f"the weights of {bare}: they are not under {root}",)
    assert f"{full}/backbone.safetensors" in made.files
    assert bundle.write(root, tmp_path / "b.zip").left_out == ()


def test_a_name_that_a_disk_does_not_take_is_refused(tmp_path: Path) -> None:
    root = lab(tmp_path / "root")
    key = next(k for k, record in Store(root).records.items() if record.kind == "final")
    for name in ("x" * 230, "\udcff"):  # too long, and no UTF-8
        (root / key / "predictions" / f"{name}.png").write_bytes(b"mask")
    made = bundle.write(root, tmp_path / "a.zip")
    assert sum("its name is not allowed in a bundle" in note for note in made.left_out) == 2


@pytest.mark.parametrize("name", ["none.zip", "folder"])
def test_a_bundle_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "folder").mkdir()
    assert main(["bundle", "--verify", str(tmp_path / name)]) == 2
    assert f"cannot read the bundle {tmp_path / name}: " in capsys.readouterr().err


def test_a_check_takes_no_option_of_writing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bundle", str(tmp_path / "a.zip"), "--verify"]
    assert main([*words, "--weights", "--root", str(tmp_path)]) == 2
    assert "only reads" in (output := capsys.readouterr().err) and "--weights, --root" in output


def test_no_byte_changes_unseen(tmp_path: Path) -> None:
    root = tmp_path / "root"
    finish(root, "lewel_m_200ep", "linear_lars", metrics={"top1": 70.0})
    made = bundle.write(root, tmp_path / "a.zip")
    whole = made.path.read_bytes()
    bad = tmp_path / "bad.zip"
    named = 0
    first = random.randrange(7)  # every byte in seven runs; all at once were checked by hand
    print(f"bytes {first}, {first + 7}, …")
    for place in range(first, len(whole), 7):
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"bad\.zip") as error:
            bundle.verify(bad)
        named += "record.json" in str(error.value) or "spec.json" in str(error.value)
    assert named > len(whole) / 7 / 3
    for cut in (10, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"bad\.zip"):
            bundle.verify(bad)


def evil(path: Path, entries: dict[str, bytes], mode: int = 0o100644, **manifest: Any) -> Path:
    """A bundle whose hashes are all right."""
    files = {
        n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in entries.items()
    }
    files |= manifest
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
        archive.writestr("manifest.json", json.dumps({"bundle": 1, "files": files}))
        archive.comment = b"0" * 64
    bundle._seal(path)
    return path


KEY = "0123456789ab"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.json", r"'\.\./evil\.json' is not a file of a run"),
        (f"{KEY}/../../evil", "is not a file of a run"),
        ("/etc/evil", "is not a file of a run"),
        (f"{KEY}/.lock", "is not a file of a run"),
        (f"{KEY}/deep/er.json", "is not a file of a run"),
        (f"{KEY}\\..\\evil", "is not a file of a run"),
        ("C:/evil", "is not a file of a run"),
        ("record.json", "is not a file of a run"),
        (f"{KEY}/checkpoint-1-0.pt", "is not a file of a run"),
        (f"{KEY}/failure.json", "is not a file of a run"),
        (f"{KEY}/attempts", "is not a file of a run"),
        (f"{KEY}/predictions/CON.png", "is not a file of a run"),
        (f"{KEY}/predictions/com1", "is not a file of a run"),
        (f"{KEY}/predictions/a.", "is not a file of a run"),
        (f"{KEY}/predictions/a?.png", "is not a file of a run"),
        (f"{KEY}/predictions/a\u202egnp.exe", "is not a file of a run"),
        (f"{KEY}/predictions/a\x9b.png", "is not a file of a run"),
        (f"{KEY}/predictions/a\x7f.png", "is not a file of a run"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bundle.verify(evil(tmp_path / "evil.zip", {name: b"x"}))
    assert main(["merge", str(tmp_path / "evil.zip"), "--root", str(tmp_path / "root")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_what_is_no_bundle_of_ours_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    key = finish(root, "lewel_m_200ep", "linear_lars", metrics={"top1": 70.0})
    text = (root / key / "record.json").read_bytes()
    spec = {"kind": "pretrain", "seed": 0}
    fields = {**json.loads(text), "kind": "pretrain", "spec": spec, "key": record.key(spec)}
    odd = Record.model_validate(fields)
    out = tmp_path / "evil.zip"
    whole = {f"{key}/record.json": text}
    assert bundle.verify(evil(out, whole)).keys == [key]
    for entries, options, message in (
        (whole, {"mode": 0o120777}, "is a link"),
        ({f"{KEY}/record.json": text}, {}, f"is the record of {key}"),
        ({f"{key}/spec.json": b"{}"}, {}, "has no record.json"),
        ({f"{key}/record.json": b"{}"}, {}, "foreign: not a record"),
        ({**whole, f"{key}/spec.json": b"{}"}, {}, "spec.json: kind: Field required"),
        ({f"{odd.key}/record.json": odd.model_dump_json().encode()}, {}, "spec: recipe: Field req"),
        (whole, {f"{key}/spec.json": {"size": 1, "sha256": ""}}, "spec.json' is not in the bundle"),
        (whole, {f"{key}/record.json": {"size": 9, "sha256": ""}}, "record.json was changed"),
    ):
        with pytest.raises(ValueError, match=message):
            bundle.verify(evil(out, entries, **options))
    bomb = {**whole, f"{key}/events.jsonl": b"0" * 50_000_000}
    small = {f"{key}/events.jsonl": {"size": 10, "sha256": "0" * 64}}
    with pytest.raises(ValueError, match=r"events\.jsonl was changed"):
        bundle.verify(evil(out, bomb, **small))
    evil(out, whole)
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning):
        archive.writestr(f"{key}/record.json", text)
    with pytest.raises(ValueError, match="appears twice"):
        bundle.verify(out)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("holiday.jpg", b"x")
    with pytest.raises(ValueError, match="not a file of a run"):
        bundle.verify(out)
    out.write_text("not a zip")
    with pytest.raises(ValueError, match="is not a bundle"):
        bundle.verify(out)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("A.png", "a.png"), "are the same file on case-insensitive file systems"),
        (("caf\u00e9.png", "cafe\u0301.png"), "are the same file on case-insensitive file systems"),
        (("stra\u00dfe.png", "STRASSE.png"), "are the same file on case-insensitive file systems"),
    ],
)
def test_names_that_clash_on_another_disk(
    tmp_path: Path, names: tuple[str, str], message: str
) -> None:
    root = lab(tmp_path / "root")
    key = next(k for k, record in Store(root).records.items() if record.kind == "final")
    text = (root / key / "record.json").read_bytes()
    entries = {f"{key}/predictions/{name}": b"x" for name in names} | {f"{key}/record.json": text}
    with pytest.raises(ValueError, match=message):
        bundle.verify(evil(tmp_path / "evil.zip", entries))
    for name in names:
        (root / key / "predictions" / name).write_bytes(b"x")
    made = bundle.write(root, tmp_path / "a.zip")
    assert sum("on case-insensitive file systems" in note for note in made.left_out) == 1
    bundle.verify(made.path)


@pytest.mark.parametrize(
    "size", ["1e999", "-1", "1.5", "true", "NaN", '"9"', "[" * 5000 + "]" * 5000]
)
def test_a_size_that_is_none(tmp_path: Path, size: str) -> None:
    out = tmp_path / "evil.zip"
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{KEY}/record.json", "{}")
        text = (
            f'{{"bundle": 1, "files": {{"{KEY}/record.json": {{"size": {size}, "sha256": ""}}}}}}'
        )
        archive.writestr("manifest.json", text)
    with pytest.raises(ValueError, match=r"manifest\.json is (damaged|too large)"):
        bundle.verify(out)


def test_what_would_fill_the_memory_or_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, record_json = tmp_path / "evil.zip", f"{KEY}/record.json"
    lists = b"[" + b"[]," * (bundle.LARGEST_JSON // 3) + b"[]]"
    with pytest.raises(ValueError, match=r"record\.json is larger than 8 MiB"):
        bundle.verify(evil(out, {record_json: lists}))
    with pytest.raises(ValueError, match=r"spec\.json is larger than 8 MiB"):
        bundle.verify(evil(out, {record_json: b"{}", f"{KEY}/spec.json": lists}))
    monkeypatch.setattr(bundle, "SLACK", 1 << 20)
    with pytest.raises(ValueError, match="more than 100 times its size"):
        bundle.verify(evil(out, {record_json: b"{}", f"{KEY}/predictions.npz": bytes(4 << 20)}))
    with pytest.raises(ValueError, match=r"manifest\.json is too large"):
        bundle.verify(evil(out, {record_json: b"{}"}, more={"x": "y" * 9000}))


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_python_unpacks_in_one_piece_is_refused(tmp_path: Path, packing: int) -> None:
    out = tmp_path / "evil.zip"
    with zipfile.ZipFile(out, "w", packing) as archive:
        archive.writestr("manifest.json", bytes(1 << 20))
    with pytest.raises(
        ValueError, match=r"'manifest\.json' uses an unsupported compression method"
    ):
        bundle.verify(out)


def test_no_pipe_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of these hung."""
    root = lab(tmp_path / "root")
    for key in ("1" * 12, "2" * 12, "3" * 12, *Store(root).records):
        (root / key).mkdir(exist_ok=True)
        for name in ("record.json", "spec.json", "events.jsonl", "failure.json"):
            if not (root / key / name).exists():
                os.mkfifo(root / key / name)
    os.mkfifo(tmp_path / "pipe.zip")
    (root / ".methods").mkdir()
    for words, code in (("status", 0), ("ls runs", 0), ("table 1 --suite shapes", 0)):
        assert main([*words.split(), "--root", str(root)]) == code
    output = capsys.readouterr()
    assert (
        f"{'1' * 12}/record.json: cannot be read: is not a regular file" in output.out + output.err
    )
    assert main(["bundle", "--verify", str(tmp_path / "pipe.zip")]) == 2
    os.mkfifo(root / ".methods" / "mine_200ep.json")
    assert main(["status", "--root", str(root)]) == 2
    assert "mine_200ep.json is damaged" in capsys.readouterr().err


def test_another_number_is_kept_beside_ours_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, local = lab(tmp_path / "theirs", 71.5), lab(tmp_path / "ours", 70.0)
    before = {p: p.read_bytes() for p in local.rglob("*") if p.is_file()}
    made = bundle.write(theirs, tmp_path / "a.zip")
    entries = {name: board(local).filled(name).entries for name in TABLES}
    words = ["--root", str(local)]
    for _ in range(2):
        assert main(["merge", str(made.path), *words]) == 0
        out = capsys.readouterr().out
        assert "0 records imported, 2 identical, 2 conflicting" in out
        assert out.count("top1 71.5 there, 70 here") == 1
        assert {p: p.read_bytes() for p in before} == before
        for name, were in entries.items():
            for id, entry in board(local).filled(name).entries.items():
                assert replace(entry, elsewhere=()) == were[id]
        assert len(list((local / MERGED).glob("*/*/record.json"))) == 2
    another = f"has another number in the merged bundle {made.digest[:12]}"
    assert main(["table", "1", "--suite", "shapes", "--format", "csv", *words]) == 0
    assert f"{another}: top1 71.5 there" in capsys.readouterr().err
    pretrain = next(
        key for key, record in Store(local).records.items() if record.kind == "pretrain"
    )
    drawn = ["--out", str(tmp_path / "a.svg"), *words]
    assert main(["figure", "curves", pretrain, *drawn]) == 2  # nothing is logged
    assert f"{another}: top1 71.5 there" in capsys.readouterr().err
    details = explained(board(local), "table1:lewel_m:200:top1")
    (other,) = details["seeds"][0]["elsewhere"]
    assert other["metrics"] == {"top1": 71.5, "top5": 90.0}
    assert other["bundle"] == made.digest[:12] and (Path(other["folder"]) / "record.json").is_file()
    first, second = (seed["key"] for seed in details["seeds"])
    told = f"71.5 there, 70 here ({first}); 72.5 there, 71 here ({second})"
    told = f"the merged bundle {made.digest[:12]} has a different top1: {told}"
    for text in shown(local).values():
        assert told in text and "another top5" not in text  # that is the same
    assert main(["report", str(tmp_path / "r.html"), "--suite", "shapes", *words]) == 0
    (data,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text())
    assert json.loads(data)["cells"]["table1:lewel_m:200:top1"]["elsewhere"] == [told]
    for seed in range(2):
        finish(local, "moco_v2_200ep", "linear_lars", seed, metrics={"top1": 60.0 + seed})
    capsys.readouterr()
    main(["claims", "linear:baselines", "--format", "json", "--suite", "shapes", *words])
    assert told in capsys.readouterr().out
    assert sorted(Store(local).others) == sorted({seed["key"] for seed in details["seeds"]})


def test_a_metric_that_one_lab_lacks_is_a_difference(tmp_path: Path) -> None:
    cell = ("lewel_m_200ep", "linear_lars")
    finish(tmp_path / "theirs", *cell, metrics={"top1": 70.0, "top5": 90.0})
    finish(tmp_path / "ours", *cell, metrics={"top1": 70.0, "mca": 60.0})
    made = bundle.write(tmp_path / "theirs", tmp_path / "a.zip")
    merge.merge(made, tmp_path / "ours")
    (text,) = conflict_messages(Store(tmp_path / "ours"))
    assert text.endswith(": top5 90 there, none here, mca none there, 60 here")


@pytest.mark.parametrize(
    ("local", "why"),
    [
        ({"metrics": {"loss": 2.0}}, "whose hash differs from the local one"),
        (
            {"checkpoint": {"file": "backbone.safetensors", "sha256": "b" * 64}},
            "whose hash differs from the local one",
        ),
        ("running", "which is not in the bundle"),
        ("corrupt", "which is not in the bundle"),
        ({}, ""),
    ],
)
def test_a_number_of_another_network_fills_no_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    local: Any,
    why: str,
) -> None:
    """Their evaluation is new here, but ours of its pre-training is another network."""
    cell, metrics = ("lewel_m_200ep", "linear_lars"), {"top1": 70.0, "top5": 90.0}
    here = tmp_path / "ours"
    key = finish(tmp_path / "theirs", *cell, metrics=metrics)
    made = bundle.write(tmp_path / "theirs", tmp_path / "a.zip")
    (first,) = Store(tmp_path / "theirs").records[key].upstream
    finish(here, *cell, before=local if isinstance(local, dict) else {}, metrics=metrics)
    shutil.rmtree(here / key)
    if local == "running":
        (here / first / "record.json").unlink()
        monkeypatch.setattr(rundir.JobDir, "is_locked", lambda folder: folder.path.name == first)
    elif local == "corrupt":
        (here / first / "record.json").write_text("{")
    assert main(["merge", str(made.path), "--root", str(here)]) == ("not in the bundle" in why)
    output = capsys.readouterr()
    assert (key in Store(here).records) == (not why)
    assert bool(list((here / MERGED).glob(f"*/{key}/record.json"))) == ("differs" in why)
    assert not why or f"it evaluates {first}, {why}" in output.err
    assert (", 1 of another network" in output.out) == ("differs" in why)
    entry = board(here).filled("1").entries["lewel_m", "200:top1"]
    assert entry.mean == (None if why else 70.0)


@pytest.mark.parametrize("same", [True, False])
def test_an_evaluation_whose_network_did_not_come_but_is_here(tmp_path: Path, same: bool) -> None:
    """It is known by the hash of the file that it used."""
    cell, metrics = ("lewel_m_200ep", "linear_lars"), {"top1": 70.0, "top5": 90.0}
    theirs, here = tmp_path / "theirs", tmp_path / "ours"
    for root in (theirs, here):
        key = finish(root, *cell, metrics=metrics)
    (first,) = Store(theirs).records[key].upstream
    path = theirs / key / "record.json"
    used = Store(theirs).records[first].checkpoint
    assert used is not None
    content = json.loads(path.read_text())
    digest = used.sha256 if same else "1" * 64
    content["checkpoint"] = {"file": f"../{first}/{used.file}", "sha256": digest}
    path.write_text(json.dumps(content))
    (theirs / first / "record.json").write_text("{")
    shutil.rmtree(here / key)
    merged = merge.merge(bundle.write(theirs, tmp_path / "a.zip"), here)
    assert (merged.imported == [key]) == same and (key in merged.quarantined) != same
    left_out = bundle.write(here, tmp_path / "b.zip").left_out
    assert left_out == () if same else "1 records of merged bundles" in left_out[0]


def test_a_corrupt_record_of_a_merged_bundle_stops_nothing_and_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, local = lab(tmp_path / "theirs", 71.5), lab(tmp_path / "ours", 70.0)
    made = bundle.write(theirs, tmp_path / "a.zip")
    merge.merge(made, local)
    whole = {p: p.read_bytes() for p in (local / MERGED).rglob("*") if p.is_file()}
    merge.merge(made, local)
    assert {p: p.read_bytes() for p in (local / MERGED).rglob("*") if p.is_file()} == whole
    bad, good = sorted(path for path in whole if path.name == "record.json")
    bad.write_text("{")
    words = ["--suite", "shapes", "--root", str(local)]
    assert main(["table", "1", "--format", "csv", *words]) == 0
    output = capsys.readouterr().err
    assert f"corrupt record {bad}: incomplete" in output and "merge its bundle again" in output
    assert f"{good.parent.name} (" in output  # the other one is still shown
    assert main(["report", str(tmp_path / "r.html"), *words]) == 0
    assert "Corrupt record of a merged bundle" in (tmp_path / "r.html").read_text()
    merge.merge(made, local)
    assert bad.read_bytes() == whole[bad] and not Store(local).bad_others


def test_what_an_unfinished_job_left_is_set_aside(tmp_path: Path) -> None:
    made = bundle.write(lab(tmp_path / "theirs"), tmp_path / "a.zip")
    local = lab(tmp_path / "ours", 1.0)
    key = next(k for k in made.keys if f"{k}/events.jsonl" in made.files)
    (local / key / "record.json").unlink()
    (local / key / "events.jsonl").write_text("half")
    merged = merge.merge(made, local)
    assert merged.imported == [key] and len(merged.conflicting) == 1
    assert (local / key / "events.jsonl.before-merge").read_text() == "half"
    assert Store(local).records[key].metrics == Store(tmp_path / "theirs").records[key].metrics


def test_a_merge_that_was_killed_keeps_what_was_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle.write(lab(tmp_path / "theirs"), tmp_path / "a.zip")
    local = tmp_path / "ours"
    key = next(k for k in made.keys if f"{k}/events.jsonl" in made.files)
    (local / key).mkdir(parents=True)
    (local / key / "events.jsonl").write_text("half")
    commit = record.commit

    def killed(folder: Path, made: Record) -> None:
        if folder.name == key:
            raise KeyboardInterrupt
        commit(folder, made)

    with monkeypatch.context() as other, pytest.raises(KeyboardInterrupt):
        other.setattr(record, "commit", killed)
        merge.merge(made, local)
    assert not (local / key / "record.json").exists()
    merge.merge(made, local)
    assert (local / key / "events.jsonl.before-merge").read_text() == "half"
    assert Store(local).records[key].metrics == Store(tmp_path / "theirs").records[key].metrics
    # the record is lost, our job begins again, and the bundle is merged once more
    (local / key / "record.json").unlink()
    (local / key / "events.jsonl").write_text("second")
    merge.merge(made, local)
    kept = {path.name: path.read_text() for path in (local / key).glob("*.before-merge")}
    assert kept == {
        "events.jsonl.before-merge": "half",
        "events.jsonl.2.before-merge": "second",
    }


def test_a_corrupt_record_of_ours_and_a_running_job_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bundle.write(lab(tmp_path / "theirs"), tmp_path / "a.zip")
    local = tmp_path / "ours"
    bad, busy = (
        k for k, record in Store(tmp_path / "theirs").records.items() if record.kind == "final"
    )
    (local / bad).mkdir(parents=True)
    (local / bad / "record.json").write_text("{")
    monkeypatch.setattr(rundir.JobDir, "is_locked", lambda folder: folder.path.name == busy)
    assert main(["merge", str(made.path), "--root", str(local)]) == 1
    output = capsys.readouterr()
    assert f"{bad} was skipped: the local record is corrupt" in output.err
    assert f"{busy} was skipped: a local run is computing it" in output.err
    assert "2 records imported" in output.out and (local / bad / "record.json").read_text() == "{"


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = lab(tmp_path / "root")
    merge.merge(bundle.write(lab(tmp_path / "theirs", 71.5), tmp_path / "a.zip"), root)
    capsys.readouterr()
    records = Store(root).records
    bad, _, kept, _ = (
        root / k for k in sorted(records, key=lambda k: records[k].kind, reverse=True)
    )
    (bad / "record.json").write_text("{")
    (kept / "predictions" / "a:b.png").write_bytes(b"mask")
    (kept / "predictions.npz.before-merge").write_bytes(b"half")
    assert main(["bundle", str(tmp_path / "b.zip"), "--root", str(root)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"warning: left out: {bad / 'record.json'}: incomplete or not JSON: EOF while parsing an "
        "object at line 1 column 1",
        f"warning: left out: {kept / 'predictions' / 'a:b.png'}: its name is not allowed in a "
        "bundle",
        "warning: left out: 2 records of merged bundles that are kept apart from the local ones",
    ]
    files = bundle.verify(tmp_path / "b.zip").files
    assert f"{kept.name}/predictions.npz" in files and len(files) == 12
    odd = root / kept.name / "spec.json"
    odd.write_text("[1]")
    assert str(odd) in bundle.write(root, tmp_path / "c.zip").left_out[1]
    assert len(bundle.verify(tmp_path / "c.zip").keys) == 2


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "root", tmp_path / "a.zip"
    for words, message in (
        (["bundle", str(out), "--root", str(root)], "there is no record under"),
        (["bundle", str(out), "--verify"], "No such file"),
        (["merge", str(out), "--root", str(root)], "No such file"),
    ):
        assert main(words) == 2 and message in capsys.readouterr().err
    lab(root)
    assert main(["bundle", str(out), "--root", str(root)]) == 0
    assert main(["bundle", str(out), "--verify"]) == 0
    assert "4 records, 14 files" in capsys.readouterr().out
    assert main(["bundle", str(out), "--root", str(root)]) == 2
    assert "name another file, or add --force" in capsys.readouterr().err
    assert main(["bundle", str(out), "--root", str(root), "--force"]) == 0
    assert main(["bundle", str(tmp_path / "no" / "a.zip"), "--root", str(root)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "root"]


def test_another_labs_code_is_kept_to_be_read_and_never_run(tmp_path: Path) -> None:
    root = lab(tmp_path / "theirs")
    key = next(k for k in Store(root).records if Store(root).records[k].kind == "pretrain")
    spec = json.loads((root / key / "spec.json").read_text())
    code = b"raise SystemExit('it ran')"
    spec["recipe"]["own"] = {
        "code": hashlib.sha256(code).hexdigest(), "file": "/theirs/method.py", "module": "this",
    }  # fmt: skip
    (root / key / "spec.json").write_text(json.dumps(spec))
    (root / key / "method.py").write_bytes(code)
    merge.merge(bundle.verify(bundle.write(root, tmp_path / "a.zip").path), tmp_path / "ours")
    # and a third lab, which has it from ours, can read it too
    merge.merge(bundle.write(tmp_path / "ours", tmp_path / "b.zip"), tmp_path / "third")
    for folder in (tmp_path / "ours" / key, tmp_path / "third" / key):
        assert not (folder / "method.py").exists()
        assert (folder / "method.py.merged").read_bytes() == code
        own = json.loads((folder / "spec.json").read_text())["recipe"]["own"]
        assert own["module"] == "" and own["file"] == "method.py.merged"
