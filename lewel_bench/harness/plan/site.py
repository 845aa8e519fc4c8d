"""The site file: where this place keeps its data and runs, and its own suites."""

import grp
import os
import pwd
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from lewel_bench.value import LARGEST_TOML, Value, explain, parse_toml

FILE = "lewel-bench.toml"
# Fields of a cluster profile that reach a shell or name a program: only the user's own site file
# may set them. `submitit` may hold any parameter of the submission script.
SHELL_FIELDS = frozenset({"python", "container", "scratch", "setup", "submitit"})


class OwnSuite(Value):
    """A suite of the user's: the scale of `like`, on the class folders at `data`."""

    like: str
    data: str


class Engines(Value):
    """The interpreters of engines that live in another environment."""

    detectron2: str | None = None
    mmseg: str | None = None


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"unknown device {name!r}: use cpu, cuda or cuda:N")
    return name


class MachineSettings(Value):
    """How jobs run here; never part of a number's identity."""

    device: Annotated[str, AfterValidator(_device)] | None = None
    jobs: Annotated[int, Field(gt=0)] = 1  # at once
    processes: Annotated[int, Field(gt=0)] | None = None
    workers: Annotated[int, Field(ge=0)] | None = None
    micro_batch: Annotated[int, Field(gt=0)] | None = None
    compile: bool = False
    threads: Annotated[int, Field(gt=0)] | None = None
    save_every_s: Annotated[float, Field(gt=0)] = 300.0
    engines: Engines = Engines()

    @property
    def share(self) -> int:
        """Threads of each of the jobs that run at once: as requested, else an equal part of the
        cores that this process may use."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.jobs)


class Site(Value):
    """The content of a site file."""

    runs: str = "runs"
    data: dict[str, str] = {}
    suites: dict[str, OwnSuite] = {}
    engines: Engines = Engines()
    machine: MachineSettings = MachineSettings()
    clusters: dict[str, dict[str, Any]] = {}  # profiles, checked where one is used
    path: Path | None = None  # the file it was read from; paths in it are relative to its folder

    @property
    def pythons(self) -> dict[str, str]:
        """The interpreter of each engine that lives elsewhere, as an absolute path."""
        named = self.engines.model_dump(exclude_none=True)
        # not resolved: a virtual environment's python is a link, and must be called by its name
        return {name: os.path.abspath(self._place(path)) for name, path in named.items()}

    def resolve(self, path: str) -> Path:
        """`path` of the site file as an absolute path."""
        return self._place(path).resolve()

    def _place(self, path: str) -> Path:
        base = self.path.parent if self.path else Path.cwd()
        return base / Path(path).expanduser()


def find() -> Path | None:
    """The site file that applies: $LEWEL_BENCH_CONFIG, upward from here, the user's folder."""
    named = os.environ.get("LEWEL_BENCH_CONFIG")
    if named:
        return Path(named)
    here = Path.cwd()
    candidates = [*(folder / FILE for folder in (here, *here.parents)), own_file()]
    # os.path: False, too, where a folder above is closed to this user
    return next((c for c in candidates if os.path.isfile(c)), None)


def own_file() -> Path:
    """The site file of the user's configuration folder, whether it exists or not. An empty or
    relative $XDG_CONFIG_HOME is ignored, as its specification asks: a relative one would name a
    folder of a cloned repository."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(config if os.path.isabs(config) else "~/.config").expanduser() / FILE


def load() -> Site:
    """The site file's content, or defaults. Raises ValueError naming file, field and choices.

    The file that $LEWEL_BENCH_CONFIG names is taken as it is. Any other is refused where it belongs
    to another user or others can write it, and one from the working directory upward also where
    it names programs or shell lines: it may have come with a cloned repository.
    """
    path = find()
    if path is None:
        return Site()
    named = bool(os.environ.get("LEWEL_BENCH_CONFIG"))
    try:
        with path.open("rb") as file:
            if not named and (problem := _unsafe(os.fstat(file.fileno()), path)):
                raise ValueError(problem)
            text = file.read(LARGEST_TOML + 1)
    except OSError as error:
        raise ValueError(f"cannot read the site file {path}: {error.strerror}") from None
    content = parse_toml(text, f"the site file {path}")
    try:
        site = Site.model_validate({**content, "path": path.resolve()})
    except ValidationError as error:
        raise ValueError(f"site file {path}: {explain(error)}") from None
    if not named and path != own_file() and (run := _runs(site)):
        raise ValueError(
            f"site file {path}: {run} runs a program or a shell command, which only your own "
            f"{own_file()} or a file that you name may do. If you trust this file: "
            f"export LEWEL_BENCH_CONFIG={shlex.quote(str(path))}"
        )
    return site


def _unsafe(status: os.stat_result, path: Path) -> str | None:
    """Why a file that nobody named must not be obeyed, as git's safe.directory has it: it belongs
    to neither this user nor root (under sudo: nor to who called it), or others can write it."""
    owners = {0, os.geteuid()}
    if os.geteuid() == 0 and (caller := os.environ.get("SUDO_UID", "")).isdecimal():
        owners.add(int(caller))
    if status.st_uid not in owners:
        return (
            f"the site file {path} belongs to {_user(status.st_uid)}, not to you. If you trust it: "
            f"export LEWEL_BENCH_CONFIG={shlex.quote(str(path))}"
        )
    group = status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid, status.st_uid)
    if group or status.st_mode & stat.S_IWOTH:
        return f"others can write the site file {path}: chmod go-w {shlex.quote(str(path))}"
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group is the user's own, of the same name and without other members: where each
    user has one, the usual umask is 002."""
    try:
        name, group = pwd.getpwuid(uid).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == name and not set(group.gr_mem) - {name}


def _runs(site: Site) -> str | None:
    """The first setting of a site file that names a program or a shell line, if there is any."""
    for name in site.engines.model_fields_set | site.machine.engines.model_fields_set:
        return f"[engines] {name}"
    for name, profile in site.clusters.items():
        if field := _shell_field(profile):
            return f"{field} of [clusters.{name}]"
    return None


def _shell_field(table: Mapping[str, Any]) -> str | None:
    """The first field of a cluster profile, or of a table in it, that reaches a shell."""
    for field, value in table.items():
        if field in SHELL_FIELDS:
            return field
        if isinstance(value, Mapping) and (inner := _shell_field(value)):
            return inner
        if (
            isinstance(value, str) and not value.isprintable()
        ):  # a line break in a comment of the batch script ends it
            return field
    return None
