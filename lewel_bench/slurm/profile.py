"""Cluster profiles: what each kind of job requests from a SLURM cluster.

A profile is a TOML file of `clusters/` or a table `[clusters.NAME]` of the site file. `[defaults]`
applies to every kind, and `[kinds.KIND]` overrides it for one.
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

# Parameters of submitit that this package sets itself, with the reason for the error message.
RESERVED = {
    "job_name": "the ledger identifies submissions by it",
    "dependency": "readiness is decided from records",
    "teardown": "its exit code would hide that of the job",
    "use_srun": "signals reach only processes that srun started",
    "srun_args": "use additional_parameters",
    "signal_delay_s": "use the field signal_delay_s",
    "setup": "use the field setup",
    "time": "use the field timeout_min",
    "mem": "use the field mem_gb",
    "ntasks_per_node": "use the field tasks_per_node",
    "clusters": "squeue would not show the jobs of another cluster",
    "array": "it follows from the jobs",
    "output": "lewel-bench logs reads it",
    "error": "lewel-bench logs reads it",
    "signal": "use the field signal_delay_s",
    "requeue": "use the field requeue of the profile",
    "no_requeue": "use the field requeue of the profile",
    "ntasks": "use the fields nodes and tasks_per_node",
    "hold": "a job that is held never starts",
    "wait": "sbatch would not return before the jobs end",
    "parsable": "submitit could not read the job id",
    "test_only": "nothing would be submitted",
}


class Resources(Value):
    """The request of one job of a kind. `tasks_per_node` is the number of processes on a node, by
    default one per GPU."""

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
    signal_delay_s: Count = 120  # before the time limit; at least twice the time of a checkpoint
    array_parallelism: Count = 256  # tasks of an array that run at the same time
    pack: Count = 1  # jobs computed by one task, one after another
    setup: tuple[str, ...] = ()  # shell lines before Python starts; one that fails ends the job
    submitit: dict[str, Any] = {}  # any other parameter of submitit

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
                "every process needs its own GPU"
            )
        if self.pack > 1 and self.world > 1:
            raise ValueError(
                f"pack {self.pack}: only jobs of one process can be packed, these have {self.world}"
            )
        if self.signal_delay_s * 2 > self.timeout_min * 60:
            raise ValueError(
                f"signal_delay_s {self.signal_delay_s} is more than half of timeout_min "
                f"{self.timeout_min}: increase timeout_min or decrease signal_delay_s"
            )
        more = self.submitit.get("additional_parameters", {})
        if not isinstance(more, Mapping):
            raise ValueError("submitit.additional_parameters must be a table of sbatch options")
        given = {f"submitit.{name}": name for name in self.submitit}
        given |= {f"submitit.additional_parameters.{n}": n.replace("-", "_") for n in more}
        for where, name in given.items():
            if name in RESERVED:
                raise ValueError(f"{where} cannot be set: {RESERVED[name]}")
            if name in type(self).model_fields:
                raise ValueError(f"{where} conflicts with the field {name}: set that field")
            if name == "gres" and self.gpus_per_node:
                raise ValueError(f"{where} conflicts with gpus_per_node: set only one of them")
        return self

    def parameters(self) -> dict[str, Any]:
        """These resources as parameters of submitit, without those that the executor adds."""
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
            "wckey": None,  # clusters that track wckeys reject submitit's default
            **{name: value for name, value in named.items() if value is not None},
            **self.submitit,
        }


class Profile(Value):
    """How a site uses a cluster."""

    name: str
    kinds: dict[str, Resources]
    python: str = ""  # the interpreter on a node (default: this one)
    container: str = ""  # its prefix, such as `apptainer exec --nv image.sif`
    scratch: str = ""  # a node-local folder; becomes TMPDIR
    requeue: bool = True  # SLURM restarts jobs after node failure and preemption
    max_queued: Count = 2000  # lewel-bench tasks in the queue at the same time
    max_attempts: Count = 5  # in a row without progress, until a job counts as failed
    wake: bool = True  # planning jobs submit what becomes ready after `run` returns
    wake_delay_s: Annotated[int, Field(ge=0)] = (
        60  # of a planning job, to handle what ends together
    )
    source: str = ""  # the file that it was read from

    @model_validator(mode="after")
    def _every_kind(self) -> Self:
        for name in self.kinds:
            if name not in KINDS:
                raise ValueError(unknown("kind of job", name, KINDS))
        missing = [name for name in KINDS if name not in self.kinds]
        if missing:
            raise ValueError(f"no settings for kinds {', '.join(missing)}: add [defaults]")
        if self.container and not self.python:
            raise ValueError(
                "container: set python to the interpreter inside it, such as python = 'python3'"
            )
        return self

    def interpreter(self) -> str:
        """The shell command that starts Python on a node."""
        return " ".join(filter(None, (self.container, self.python or shlex.quote(sys.executable))))


def load_profile(name: str, own: Mapping[str, Mapping[str, Any]], source: str = "") -> Profile:
    """The profile `name` of `own` (the site file's), else of the examples.

    Raises ValueError that names the file, the field and the nearest known name.
    """
    if name in own:
        return parse_profile(name, own[name], source or "the site file")
    path = EXAMPLES / f"{name}.toml"
    if not path.is_file():
        known = {*own, *(p.stem for p in EXAMPLES.glob("*.toml"))}
        raise ValueError(unknown("cluster", name, known))
    return parse_profile(name, tomllib.loads(path.read_text()), str(path))


def parse_profile(name: str, content: Mapping[str, Any], source: str) -> Profile:
    """A validated profile from the content of its TOML table."""
    fields = dict(content)
    defaults = fields.pop("defaults", {})
    kinds = fields.pop("kinds", {})
    if not isinstance(defaults, Mapping) or not isinstance(kinds, Mapping):
        raise ValueError(f"cluster {name} ({source}): defaults and kinds must be tables")
    merged: dict[str, Any] = {}
    for kind in dict.fromkeys([*(KINDS if "defaults" in content else ()), *kinds]):
        merged[kind] = _merge(defaults, kinds.get(kind, {}))
    if problems := _problems_message(merged):
        raise ValueError(f"cluster {name} ({source}): {problems}")
    try:
        profile = Profile.model_validate(
            {**fields, "name": name, "kinds": merged, "source": source}
        )
    except ValidationError as error:
        raise ValueError(f"cluster {name} ({source}): {explain(error)}") from None
    for kind, resources in profile.kinds.items():
        _check_submitit(f"cluster {name} ({source}): kinds.{kind}", resources)
    return profile


def _problems_message(merged: Mapping[str, Any]) -> str:
    """The problems in the settings of the kinds; one that all kinds share is listed once."""
    problems: dict[str, list[str]] = {}
    for kind, content in merged.items():
        try:
            Resources.model_validate(content)
        except ValidationError as error:
            problems.setdefault(explain(error), []).append(kind)
    return "; ".join(
        f"{'defaults' if set(KINDS) <= set(kinds) else 'kinds.' + ', '.join(kinds)}: {what}"
        for what, kinds in problems.items()
    )


def _merge(defaults: Mapping[str, Any], own: Any) -> Any:
    if not isinstance(own, Mapping):
        return own
    both = {**defaults, **own}
    if isinstance(defaults.get("submitit"), Mapping) and isinstance(own.get("submitit"), Mapping):
        both["submitit"] = {**defaults["submitit"], **own["submitit"]}
    return both


def _check_submitit(where: str, resources: Resources) -> None:
    if not resources.submitit:
        return
    from submitit.slurm.slurm import SlurmExecutor

    known = SlurmExecutor._valid_parameters() - set(RESERVED)
    for name in resources.submitit:
        if name not in known:
            raise ValueError(f"{where}: {unknown('submitit parameter', name, known)}")
