"""Files that several processes and users share: each is whole or absent, and locks do not outlive
their process.

A temporary file is named `.NAME.NODE.PID.TOKEN.tmp`; `abandoned` tells whether its writer is dead.
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
import pwd
import re
import secrets
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# what file systems without hard links answer: FAT, many FUSE and bucket mounts, some of CIFS
NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV,
            errno.EMLINK)  # fmt: skip
# NFS without a lock daemon, Lustre mounted without -o flock, some FUSE mounts
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
NODE = socket.gethostname()
TEMPORARY = re.compile(r"\.(?P<name_and_node>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
BEFORE = re.compile(r"\..+\.\d+(\.[0-9a-f]{8})?")  # as earlier versions named them
ABANDONED_S = 3600.0  # no write takes so long: whose writer cannot be asked is dead after it
POLL_S = 0.05
LARGEST_JSON = 2**26  # bytes that are read of a record, a spec and the like
# in the folder of a job: why its last attempt failed; its attempts on a cluster
FAILURE, ATTEMPTS = "failure.json", "attempts"
LEDGER = ".slurm"  # in a run root: what was submitted to a cluster
SNAPSHOT = "snapshot.json"  # beside a copy of this package: the commit that it was copied from


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write, beside `path`; what is there at the end is flushed to disk and renamed to it.
    On failure nothing is left and `path` is as before. Raises OSError that names `path`."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    _remove_abandoned(path)
    temporary = _temporary(path)
    try:
        with naming(path):
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, data: bytes | memoryview | str) -> None:
    """Replace `path` by `data`, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def create(path: Path, text: str) -> bool:
    """Write `path` unless it exists, in a folder that is made; whether this writer was the first.

    Of several writers the first wins, and readers see a whole file or none. Raises OSError that
    names `path`, and then leaves nothing behind.
    """
    temporary = _temporary(path)
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            first = _link(temporary, path)
            _flush_folder(path.parent)
            return first
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by JSON, as `replacing` does, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content))


def create_json(path: Path, content: Any) -> bool:
    """Write JSON unless the file exists, as `create` does; whether this writer was the first."""
    return create(path, json.dumps(content))


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where the file is missing or holds anything else."""
    try:
        content = json.loads(read_regular(path, LARGEST_JSON))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def last_lines(path: Path, size: int = 8192) -> list[str]:
    """The lines in the last `size` bytes of a file, the first perhaps cut; empty where it cannot be
    read."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.path.getsize(path) - size))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def newest_match(folder: Path, patterns: str) -> str:
    """The file with the highest number that matches, as a path from `folder`; empty without any.
    `patterns` are separated by blanks; files of a later pattern come after those of an earlier."""
    for pattern in reversed(patterns.split()):
        if matches := [str(path.relative_to(folder)) for path in folder.glob(pattern)]:
            return max(matches, key=_by_number)
    return ""


def _by_number(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _link(temporary: Path, path: Path) -> bool:
    # A hard link, not a rename: it fails when the name is taken, so a later writer cannot replace
    # what somebody may already have read.
    try:
        os.link(temporary, path)
    except OSError as error:
        # NFS may lose the answer to a link that it made, and refuse the second try: it exists
        if os.stat(temporary).st_nlink == 2:
            return True
        if isinstance(error, FileExistsError):
            return False
        if error.errno not in NO_LINKS:
            raise
        return _rename(temporary, path)
    return True


def _rename(temporary: Path, path: Path) -> bool:
    """As `_link` where there are no hard links: writers exclude each other by a lock on the folder,
    which leaves no file and ends with its process."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        while not _flock(folder, fcntl.LOCK_EX, path):
            time.sleep(POLL_S)
        if path.exists():
            return False
        os.rename(temporary, path)
        return True
    finally:
        os.close(folder)


def _flush(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Make a new name survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _temporary(path: Path) -> Path:
    # a new name for every write: a fixed one of a killed process would be in the way
    return path.with_name(f".{path.name}.{NODE}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def abandoned(path: Path) -> bool:
    """Whether `path` is the temporary file of a write that ended with its process."""
    match = TEMPORARY.fullmatch(path.name)
    if match and match["name_and_node"].endswith(f".{NODE}"):
        return not _lives(int(match["pid"]))
    if not match and not BEFORE.fullmatch(path.name):
        return False
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except OSError:
        return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove_abandoned(path: Path) -> None:
    """Remove what killed writes of the same file left."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if abandoned(temporary):
            with contextlib.suppress(OSError):
                temporary.unlink()


def follow_group(root: Path) -> None:
    """From now on what this process writes is as open to its group as a shared `root` is, whatever
    the umask: shared is a folder that its group can write and whose files inherit the group."""
    try:
        mode = root.stat().st_mode
    except OSError:
        return
    if mode & stat.S_ISGID and mode & stat.S_IWGRP:
        os.umask(os.umask(0) & ~stat.S_IRWXG)


def check_folder(folder: Path) -> None:
    """Raise OSError where files cannot be made, replaced, created once and locked in `folder`."""
    probe = _temporary(folder / "probe")
    try:
        write_atomically(probe, "")
        if create(probe, ""):
            raise OSError(errno.EIO, f"{folder}: creating a file that exists succeeded")
        probe.unlink()
        create(probe, "")
        with Lock(probe):
            pass
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class ClaimLost(Exception):
    """Another process has taken over the job; this one must not write any more."""


class Held(Exception):
    """Another process holds a lock."""


class Lock:
    """A lock that ends with the process that holds it, however it ends.

    Waits up to `timeout_s` (None: for ever). Raises Held when another process keeps it, OSError
    where the file system has no locks or the file cannot be opened.
    """

    def __init__(self, path: Path, timeout_s: float | None = 0.0) -> None:
        self.path, self.timeout_s = path, timeout_s
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock."""
        until = time.monotonic() + (float("inf") if self.timeout_s is None else self.timeout_s)
        while not self._try():
            if time.monotonic() >= until:
                raise Held(f"another process holds {self.path}")
            time.sleep(POLL_S)

    def _try(self) -> bool:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # whoever removes a lock's file holds it: who waited then holds a file without a name
            if _flock(file, fcntl.LOCK_EX, self.path) and os.fstat(file).st_nlink:
                self._file, file = file, -1
                _open_files.add(self._file)
                return True
        finally:
            if file != -1:
                os.close(file)
        return False

    def release(self) -> None:
        """Let it go; nothing where it is not held."""
        if self._file in _open_files:  # not in a forked worker
            _open_files.remove(self._file)
            os.close(self._file)
        self._file = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


_open_files: set[int] = set()  # open files of this process


def _leave_to_parent() -> None:
    """A forked worker that outlives its parent must not keep the parent's locks."""
    for file in _open_files:
        os.close(file)
    _open_files.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def _flock(file: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EACCES on some file systems
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            raise OSError(error.errno, no_locks_message(path.parent, error)) from None
        raise
    return True


def no_locks_message(folder: Path, error: OSError) -> str:
    """What to do where a file system has no locks."""
    return (
        f"{folder}: file locks do not work there ({error.strerror}). Choose a --root on another "
        "file system, or mount this one with locks: NFS with its lock daemon (rpc.statd) "
        "or -o local_lock=flock, Lustre with -o flock"
    )


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of a file; a look, which needs to read it only. False
    where it cannot be told: no such file, one of another user, no locks on this file system."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not _flock(file, fcntl.LOCK_SH, path)
    except OSError:
        return False
    finally:
        os.close(file)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError that names no file, as those of `write` do, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and _is_raw(error):
            error.filename = str(path)
        raise


def described(error: Exception) -> str:
    """An error in words; of a full disk, or a file that may not be written, with what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if not _is_raw(error):
        return str(error.strerror)
    where = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if error.errno in FULL and error.filename:
        return f"{where}. Make room there or choose another place, then run the same command again"
    if error.errno in FULL:  # every file that is written here is named
        return f"standard output: {where}. Make room there, then run the same command again"
    if error.errno in FORBIDDEN:
        return f"{where}. {permission_advice(Path(error.filename))}"
    return where


def _is_raw(error: OSError) -> bool:
    """Whether an error says what the system said, and nothing more."""
    return error.errno is not None and error.strerror == os.strerror(error.errno)


def permission_advice(path: Path) -> str:
    """What is needed to write where another user's files are."""
    place = next(
        (ancestor for ancestor in (path, *path.parents) if os.path.lexists(ancestor)), path
    )
    try:
        owner = place.stat().st_uid
        whose = "you" if owner == os.geteuid() else pwd.getpwuid(owner).pw_name
    except (OSError, KeyError):
        whose = "another user"
    return (
        f"{place} belongs to {whose}. To share a run root, put its users into one group and have "
        "the owner run `chgrp -R GROUP ROOT; chmod -R g+rwX ROOT; find ROOT -type d -exec chmod "
        "g+s {} +`; else choose another --root"
    )


def open_regular(path: str | os.PathLike[str], limit: int = sys.maxsize) -> BinaryIO:
    """A regular file of at most `limit` bytes, opened for reading; links are followed.

    Raises OSError where it cannot be opened, is a pipe, device, socket or folder, or is larger.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    if about.st_size > limit:
        os.close(descriptor)
        raise OSError(
            errno.EFBIG, f"has {about.st_size:,} bytes, at most {limit:,} are read", str(path)
        )
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a file; raises OSError as `open_regular`."""
    with open_regular(path, limit) as file:
        return file.read()
