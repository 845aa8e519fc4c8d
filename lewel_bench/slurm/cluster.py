"""Cluster profiles: what a kind of job asks of a SLURM cluster.

A profile is a TOML file of `clusters/` or a table `[clusters.NAME]` of the site file. `[defaults]`
holds for every kind; `[kinds.KIND]` changes it for one.
"""

import shlex
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from lewel_bench.value import Value, explain, unknown

KINDS = ("pretrain", "linear", "semi", "dense", "light")
EXAMPLES = Path(__file__).parent / "clusters"

Count = Annotated[int, Field(gt=0)]

# What submitit knows and this package decides itself; the reason is what the error says.
RESERVED = {
    "job_name": "the ledger finds submissions by it",
    "dependency": "readiness is decided from records",
    "teardown": "its exit code would hide that of the job",
    "use_srun": "signals reach only what srun started",
    "srun_args": "give additional_parameters, or ask for the option you need",
    "signal_delay_s": "use the field signal_delay_s",
    "setup": "use the field setup",
    "time": "use the field timeout_min",
    "mem": "use the field mem_gb",
    "ntasks_per_node": "use the field tasks_per_node",
    "clusters": "squeue would not show the jobs of another cluster",
    "array": "the cells decide it",
    "output": "lewel-bench logs reads it",
    "error": "lewel-bench logs reads it",
    "signal": "use the field signal_delay_s",
    "requeue": "use requeue of the profile",
    "no_requeue": "use requeue of the profile",
    "ntasks": "use the fields nodes and tasks_per_node",
    "hold": "a job that is held never starts",
    "wait": "sbatch would not return before the jobs end",
    "parsable": "submitit could not read the job id",
    "test_only": "nothing would be submitted",
}


class Resources(Value):
    """What one job of a kind asks for. `tasks_per_node` is the number of processes on a node, one
    per GPU where there are GPUs."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: Count = 1
    tasks_per_node: Count | None = None
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    cpus_per_task: Count = 1
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    timeout_min: Count = 60
    signal_delay_s: Count = 120  # the warning before the limit; twice a checkpoint's time and more
    array_parallelism: Count = 256  # tasks of one array that run at once
    pack: Count = 1  # cells computed by one task, one after another
    setup: tuple[str, ...] = ()  # shell lines before Python starts; a failing one ends the job
    submitit: dict[str, Any] = {}  # anything else that submitit knows

    @property
    def tasks(self) -> int:
        """Processes on one node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def world(self) -> int:
        """Processes of one job."""
        return self.nodes * self.tasks

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gpus_per_node and self.tasks > self.gpus_per_node:
            raise ValueError(
                f"tasks_per_node {self.tasks} is more than gpus_per_node {self.gpus_per_node}: "
                "every process needs a GPU of its own"
            )
        if self.pack > 1 and self.world > 1:
            raise ValueError(
                f"pack {self.pack}: only jobs of one process can be packed, this has {self.world}"
            )
        if self.signal_delay_s * 2 > self.timeout_min * 60:
            raise ValueError(
                f"signal_delay_s {self.signal_delay_s} is more than half of timeout_min "
                f"{self.timeout_min}: lengthen the one or shorten the other"
            )
        more = self.submitit.get("additional_parameters", {})
        if not isinstance(more, Mapping):
            raise ValueError("submitit.additional_parameters is a table of options of sbatch")
        given = {f"submitit.{name}": name for name in self.submitit}
        given |= {f"submitit.additional_parameters.{n}": n.replace("-", "_") for n in more}
        for where, name in given.items():
            if name in RESERVED:
                raise ValueError(f"{where} cannot be set: {RESERVED[name]}")
            if name in type(self).model_fields:
                raise ValueError(f"{where} contradicts the field {name}: set that one")
            if name == "gres" and self.gpus_per_node:
                raise ValueError(f"{where} contradicts gpus_per_node: set one of them")
        return self

    def parameters(self) -> dict[str, Any]:
        """The same in submitit's words, without what the executor adds."""
        named = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gpus_per_node": self.gpus_per_node or None,
            "mem": f"{self.mem_gb * 1024:.0f}MB" if self.mem_gb else None,
        }
        return {
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks,
            "cpus_per_task": self.cpus_per_task,
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism,
            "wckey": None,  # submitit's own is refused where wckeys are tracked and it is not known
            **{name: value for name, value in named.items() if value is not None},
            **self.submitit,
        }


class Cluster(Value):
    """A cluster as this site uses it."""

    name: str
    kinds: dict[str, Resources]
    python: str = ""  # the interpreter on a node (default: this one)
    container: str = ""  # put before it, as `apptainer exec --nv image.sif`
    scratch: str = ""  # a folder of a node's own; becomes TMPDIR
    requeue: bool = True  # SLURM itself starts a job again that lost its node or its place
    max_queued: Count = 2000  # tasks of ours in the queue at once
    max_attempts: Count = 5  # in a row without progress, before a cell is given up
    wake: bool = True  # small jobs go on planning when the client has gone
    wake_delay_s: Annotated[int, Field(ge=0)] = 60  # they gather what ends within this time
    source: str = ""  # the file this was read from

    @model_validator(mode="after")
    def _every_kind(self) -> Self:
        for name in self.kinds:
            if name not in KINDS:
                raise ValueError(unknown("kind of job", name, KINDS))
        missing = [name for name in KINDS if name not in self.kinds]
        if missing:
            raise ValueError(f"no settings for kinds {', '.join(missing)}: add [defaults]")
        if self.container and not self.python:
            raise ValueError("container: name the interpreter inside it too, as python = 'python3'")
        return self

    def interpreter(self) -> str:
        """The shell words that start Python on a node."""
        return " ".join(filter(None, (self.container, self.python or shlex.quote(sys.executable))))


def load(name: str, own: Mapping[str, Mapping[str, Any]], source: str = "") -> Cluster:
    """The profile `name`: of `own` (the site file's), else of the examples.

    Raises ValueError that names the file, the field and the nearest known name.
    """
    if name in own:
        return parse(name, own[name], source or "the site file")
    path = EXAMPLES / f"{name}.toml"
    if not path.is_file():
        known = {*own, *(p.stem for p in EXAMPLES.glob("*.toml"))}
        raise ValueError(unknown("cluster", name, known))
    return parse(name, tomllib.loads(path.read_text()), str(path))


def parse(name: str, content: Mapping[str, Any], source: str) -> Cluster:
    """A profile from the content of its TOML table, checked."""
    fields = dict(content)
    defaults = fields.pop("defaults", {})
    kinds = fields.pop("kinds", {})
    if not isinstance(defaults, Mapping) or not isinstance(kinds, Mapping):
        raise ValueError(f"cluster {name} ({source}): defaults and kinds are tables")
    merged: dict[str, Any] = {}
    for kind in dict.fromkeys([*(KINDS if "defaults" in content else ()), *kinds]):
        merged[kind] = _merge(defaults, kinds.get(kind, {}))
    if wrong := _misfits(merged):
        raise ValueError(f"cluster {name} ({source}): {wrong}")
    try:
        cluster = Cluster.model_validate(
            {**fields, "name": name, "kinds": merged, "source": source}
        )
    except ValidationError as error:
        raise ValueError(f"cluster {name} ({source}): {explain(error)}") from None
    for kind, resources in cluster.kinds.items():
        _known_to_submitit(f"cluster {name} ({source}): kinds.{kind}", resources)
    return cluster


def _misfits(merged: Mapping[str, Any]) -> str:
    """What is wrong with the settings of the kinds; what all of them share is said once."""
    alike: dict[str, list[str]] = {}
    for kind, content in merged.items():
        try:
            Resources.model_validate(content)
        except ValidationError as error:
            alike.setdefault(explain(error), []).append(kind)
    return "; ".join(
        f"{'defaults' if set(KINDS) <= set(kinds) else 'kinds.' + ', '.join(kinds)}: {what}"
        for what, kinds in alike.items()
    )


def _merge(defaults: Mapping[str, Any], own: Any) -> Any:
    if not isinstance(own, Mapping):
        return own
    both = {**defaults, **own}
    if isinstance(defaults.get("submitit"), Mapping) and isinstance(own.get("submitit"), Mapping):
        both["submitit"] = {**defaults["submitit"], **own["submitit"]}
    return both


def _known_to_submitit(where: str, resources: Resources) -> None:
    if not resources.submitit:
        return
    from submitit.slurm.slurm import SlurmExecutor

    known = SlurmExecutor._valid_parameters() - set(RESERVED)
    for name in resources.submitit:
        if name not in known:
            raise ValueError(f"{where}: {unknown('submitit parameter', name, known)}")
