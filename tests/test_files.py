"""Files that are whole or absent, on file systems that lack something, and locks that end."""

import errno
import fcntl
import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lewel_bench import files
from lewel_bench.files import Held, Lock, create, described, is_held, replacing, write_atomically


@pytest.fixture(params=["hard links", "no hard links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", _refused(errno.EPERM))


def _refused(number: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.usefixtures("links")
def test_the_first_writer_wins_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "record.json"
    wins: list[int] = []
    whole = {f"{i} " * 5000 for i in range(8)}

    def write(text: str) -> None:
        if create(path, text):
            wins.append(1)
        assert path.read_text() in whole

    threads = [threading.Thread(target=write, args=(text,)) for text in whole]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1 and os.listdir(path.parent) == ["record.json"]
    before = path.read_text()
    assert not create(path, "later") and path.read_text() == before


@pytest.mark.usefixtures("links")
def test_a_kill_before_the_name_is_taken_leaves_no_record(tmp_path: Path) -> None:
    for call in ("fsync", "link" if os.link.__module__ == "posix" else "rename"):
        child = os.fork()
        if not child:
            try:
                setattr(os, call, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
                create(tmp_path / "record.json", "half" * 1000)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".record.json.") and files.abandoned(left)
        left.unlink()
    assert create(tmp_path / "record.json", "whole")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_another_error_of_a_link_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", _refused(number))
    with pytest.raises(OSError, match=r"record\.json") as caught:
        create(tmp_path / "record.json", "x")
    assert caught.value.errno == number and not os.listdir(tmp_path)


@pytest.mark.parametrize("answer", [OSError(errno.EIO, "lost"), FileExistsError(errno.EEXIST, "")])
def test_a_lost_answer_to_a_link_is_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: OSError
) -> None:
    link = os.link

    def late(*arguments: Path) -> None:
        link(*arguments)
        raise answer

    monkeypatch.setattr(os, "link", late)
    assert create(tmp_path / "record.json", "x") and os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "replaced", "x")
        create(tmp_path / "new" / "created", "x")
        with Lock(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    for name in ("replaced", "new/created", "lock"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("mode", [0o2775, 0o2755, 0o775])
def test_a_root_shared_by_a_group_stays_open_to_it(tmp_path: Path, mask: int, mode: int) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    root.chmod(mode)
    before = os.umask(mask)
    try:
        files.follow_group(root)
        create(root / "key" / "record.json", "x")
    finally:
        os.umask(before)
    opened = mask & ~0o070 if mode == 0o2775 else mask
    assert stat.S_IMODE((root / "key" / "record.json").stat().st_mode) == 0o666 & ~opened
    assert stat.S_IMODE((root / "key").stat().st_mode) & 0o777 == 0o777 & ~opened


def test_a_full_disk_names_the_file_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.zip"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", _refused(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught, replacing(path) as temporary:
        temporary.write_text("after")
    assert described(caught.value) == (
        f"{path}: No space left on device. Make room there or choose another place, then run "
        "the same command again"
    )
    assert os.listdir(tmp_path) == ["b.zip"] and path.read_text() == "before"


def test_a_refused_write_names_the_owner_and_what_is_needed(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "a" / "b"))
    text = described(error)
    assert text.startswith(f"{tmp_path}/a/b: Permission denied. {tmp_path} belongs to you.")
    assert "chmod -R g+rwX ROOT" in text and "\n" not in text


# ---- what killed writes leave ----


def _dead_process() -> int:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


@pytest.mark.parametrize(
    ("name", "old", "expected"),
    [
        (".b.zip.{node}.{dead}.0123abcd.tmp", False, True),
        (".b.zip.{node}.{alive}.0123abcd.tmp", True, False),
        (".b.zip.elsewhere.{dead}.0123abcd.tmp", False, False),
        (".b.zip.elsewhere.{alive}.0123abcd.tmp", True, True),
        (".predictions.npz.{dead}", False, False),  # as earlier versions named it
        (".predictions.npz.{dead}", True, True),
        (".record.json.{dead}.0123abcd", True, True),
        (".lock", True, False),
        ("b.zip", True, False),
        (".b.zip.tmp", True, False),
    ],
)
def test_what_is_abandoned(tmp_path: Path, name: str, old: bool, expected: bool) -> None:
    path = tmp_path / name.format(node=files.NODE, dead=_dead_process(), alive=os.getpid())
    path.touch()
    if old:
        os.utime(path, (0, 0))
    assert files.abandoned(path) == expected


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    dead, mine = _dead_process(), os.getpid()
    left = tmp_path / f".r.html.{files.NODE}.{dead}.0123abcd.tmp"
    kept = [
        tmp_path / f".r.html.{files.NODE}.{mine}.0123abcd.tmp",
        tmp_path / ".r.html.2024",  # a user's own
    ]
    for path in (left, *kept):
        path.touch()
    os.utime(kept[1], (0, 0))
    write_atomically(tmp_path / "r.html", "x")
    assert not left.exists() and all(path.exists() for path in kept)


# ---- locks ----


def test_a_lock_excludes_and_a_look_needs_no_right_to_write(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    with Lock(path):
        path.chmod(0o444)
        assert is_held(path)
        with pytest.raises(Held), Lock(path):
            pass
    assert not is_held(path)
    path.chmod(0o644)
    with Lock(path):
        pass


def test_a_lock_ends_with_its_process_though_its_workers_go_on(tmp_path: Path) -> None:
    path, (mine, theirs) = tmp_path / "lock", os.pipe()
    child = os.fork()
    if not child:
        try:
            lock = Lock(path)
            lock.acquire()
            worker = os.fork()  # outlives it
            if worker:
                os.write(theirs, b"%d" % worker)
            signal.pause()
        finally:
            os._exit(1)
    worker = int(os.read(mine, 20))
    try:
        assert is_held(path)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with Lock(path, timeout_s=1.0):
            os.kill(worker, 0)  # it lives
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = Lock(path)
    first.acquire()
    waiting = threading.Thread(target=lambda: Lock(path, timeout_s=5.0).acquire())
    waiting.start()
    path.unlink()
    first.release()
    waiting.join()
    assert path.exists()


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", _refused(number))
    with pytest.raises(OSError, match="Lustre with -o flock") as caught:
        files.check_folder(tmp_path)
    assert described(caught.value).startswith(f"{tmp_path}: file locks do not work there (")
    assert not os.listdir(tmp_path) and not is_held(tmp_path)


@pytest.mark.usefixtures("links")
def test_a_folder_is_checked_without_a_trace(tmp_path: Path) -> None:
    files.check_folder(tmp_path)
    assert not os.listdir(tmp_path)
