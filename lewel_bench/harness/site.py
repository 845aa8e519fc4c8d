"""The site file: where this place keeps its data and runs, and its own suites."""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from lewel_bench.value import Value, explain

FILE = "lewel-bench.toml"


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
        """Threads of each of the jobs that run at once: as asked for, else an equal part of the
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
    config = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser()
    candidates = [*(folder / FILE for folder in (here, *here.parents)), config / FILE]
    return next((c for c in candidates if c.is_file()), None)


def load() -> Site:
    """The site file's content, or defaults. Raises ValueError naming file, field and choices."""
    path = find()
    if path is None:
        return Site()
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the site file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the site file {path} is not valid TOML: {error}") from None
    try:
        return Site.model_validate({**content, "path": path.resolve()})
    except ValidationError as error:
        raise ValueError(f"site file {path}: {explain(error)}") from None
