"""What a command line asks for: groups of options, and the command that prints them back.

A group parses and checks its own texts, so that everything behind it works with values. `Command`
is the only place that writes a command line: for hints, for the planning jobs of a cluster and for
the worker processes of `--jobs`. Imports cyclopts and the standard library, for `--help` is quick.
"""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

MAX_SEEDS = 10_000
MAX_SEED = 2**32 - 1  # as NumPy and scikit-learn take them
DATA_ROLES = ("pretrain", "linear", "semi", "knn", "voc", "coco")
Form = Literal["text", "json"]


def split_commas(texts: Sequence[str]) -> tuple[str, ...]:
    """The parts of comma-separated texts, without blanks and empty parts."""
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def parse_whole_number(option: str, text: str) -> int:
    """A whole number of at least 1. Raises ValueError naming the option."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{option} {text}: must be a whole number of at least 1")
    return int(text)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`3` is seeds 0, 1, 2; `0,2,5` and `4,` are these. Raises ValueError."""
    if "," not in text:
        count = parse_whole_number("--seeds", text)
        if count > MAX_SEEDS:
            raise ValueError(
                f"--seeds {text}: that is a number of seeds; for one seed write {text},"
            )
        return tuple(range(count))
    parts = split_commas([text])
    if not parts or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--seeds {text}: write a number of seeds (3) or a list of them (0,2,5)")
    if too_large := [part for part in parts if int(part) > MAX_SEED]:
        raise ValueError(f"--seeds {text}: {too_large[0]} is more than {MAX_SEED}")
    return tuple(dict.fromkeys(map(int, parts)))


def parse_setting(text: str) -> tuple[str, Any]:
    """The field and the value of KEY=VALUE; a value that is not JSON is text. Raises ValueError."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {text!r} is not KEY=VALUE, such as --set optimizer.lr=0.1")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def format_setting(value: Any) -> str:
    """The value of a setting as `parse_setting` reads it: a bare word where that is not JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def parse_learning_rates(texts: Sequence[str]) -> tuple[float, ...]:
    """The numbers of comma-separated texts. Raises ValueError for anything else."""
    try:
        rates = tuple(map(float, split_commas(texts)))
    except ValueError:
        rates = ()
    if not rates:
        text = ",".join(texts)
        raise ValueError(f"--lrs {text!r}: write learning rates with commas, as 0.01,0.02")
    return rates


def parse_data(text: str) -> tuple[str, Path]:
    """The role (empty: all roles) and the folder of [ROLE=]PATH. Raises ValueError."""
    role, equals, path = text.partition("=")
    if equals and not path and role and "/" not in role:
        raise ValueError(f"--data {text} is empty: name a folder, as {text}FOLDER")
    if not equals or "/" in role:  # a path may contain the sign too
        return "", Path(text)
    if role not in DATA_ROLES:
        from lewel_bench.value import unknown

        raise ValueError(unknown("data role", role, DATA_ROLES))
    return role, Path(path)


def parse_gpu_hours(text: str) -> float:
    """GPU-hours of "500gpuh", "500h" or "500". Raises ValueError for anything else."""
    number = text.strip().lower().removesuffix("h").removesuffix("gpu").rstrip()
    whole, _, fraction = number.partition(".")
    is_number = whole.isdecimal() and (fraction.isdecimal() or whole == number)
    hours = float(number) if is_number else 0.0
    if not hours:
        raise ValueError(f"--budget {text!r}: write device-hours above 0, as 500gpuh or 2.5h")
    return hours


def _each(parse: Callable[[str], Any]) -> Parameter:
    """An option that may be repeated, whose every text is parsed by `parse`."""

    def convert(_: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
        return tuple(parse(token.value) for token in tokens)

    return Parameter(converter=convert, n_tokens=1, accepts_keys=False)


def _all(parse: Callable[[Sequence[str]], Any]) -> Parameter:
    """An option that may be repeated, all of whose texts are parsed together by `parse`."""

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        return parse([token.value for token in tokens])

    return Parameter(converter=convert, n_tokens=1, accepts_keys=False)


def _whole_numbers(texts: Sequence[str]) -> tuple[int, ...]:
    return tuple(parse_whole_number("--epochs", text) for text in split_commas(texts))


def _last(parse: Callable[[str], Any]) -> Parameter:
    """An option of which the last text counts."""

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        return parse(tokens[-1].value)

    return Parameter(converter=convert, n_tokens=1, accepts_keys=False)


def _number(kind: type[int] | type[float], option: str) -> Parameter:
    def parse(text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{option} {text}: must be {what}") from None

    return _last(parse)


def _table_numbers(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.removeprefix("table") for name in split_commas(texts))


# Names in a list, with commas or repeated; and those of tables, as 1 or table1.
Names = Annotated[tuple[str, ...], _all(split_commas)]
Tables = Annotated[tuple[str, ...], _all(_table_numbers)]

METHODS = Group("What to run", sort_key=1)
SCALE = Group("Scale, data and settings", sort_key=2)
MACHINE = Group("Where and how jobs run", sort_key=3)

ROOT_HELP = "Run root, the folder of all results (default: `runs` of the site file, else ./runs)."
Root = Annotated[Path | None, Parameter(help=ROOT_HELP, group=SCALE)]
WITH_HELP = (
    "Add a row for this imported checkpoint (see `eval`) or recipe of your own. Repeatable, or a "
    "list with commas."
)
FORM_HELP = "text (default) or json."
KEYS_HELP = "Key of a job, as `status` shows it, or a cell: table1:lewel_m:200:top1."
CELL_HELP = "A cell of a table, as TABLE:ROW:COLUMN: table1:lewel_m:200:top1."


@Parameter(name="*", group=SCALE)
@dataclass(frozen=True, kw_only=True)
class Where:
    """The numbers that a command is about: their scale, data, settings and run root."""

    suite: Annotated[
        str, Parameter(help="Scale of the experiments; see `ls suites` (default: paper).")
    ] = "paper"
    data: Annotated[
        tuple[tuple[str, Path], ...],
        _each(parse_data),
        Parameter(
            metavar="[ROLE=]PATH",
            help="Your own class folders (train/CLASS/*, val/CLASS/*) for every role, or for "
            "ROLE: pretrain, linear, semi or knn. voc=VOCDEVKIT and coco=COCO take data in those "
            "layouts. Repeatable.",
        ),
    ] = ()
    set: Annotated[
        tuple[tuple[str, Any], ...],
        _each(parse_setting),
        Parameter(
            metavar="KEY=VALUE",
            help="Change a field of the recipe (optimizer.lr=0.1, args.h=1) or of a protocol "
            "(semi_1pct.epochs=20). Repeatable.",
        ),
    ] = ()
    refit: Annotated[
        bool,
        Parameter(
            help="Linear, detection, segmentation: retrain the chosen candidate on all training "
            "images, the held-out ones included."
        ),
    ] = False
    lrs: Annotated[
        tuple[float, ...],
        _all(parse_learning_rates),
        Parameter(
            metavar="LR,LR",
            help="Learning rates that detection and segmentation search: 0.01,0.02.",
        ),
    ] = ()
    engine: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="NAME",
            help="Implementation of detection and segmentation: native (default), detectron2 or "
            "mmseg. Repeatable.",
        ),
    ] = ()
    root: Annotated[Path | None, Parameter(help=ROOT_HELP)] = None


@Parameter(name="*", group=METHODS)
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which methods, of which lengths, for which tables."""

    method: Annotated[
        Names,
        Parameter(
            metavar="NAME",
            help="Method or recipe (see `ls methods`, `ls recipes`), or a recipe in a file of your "
            "own: ./my_method.py:recipe. Repeatable, or a list with commas.",
        ),
    ] = ()
    epochs: Annotated[
        tuple[int, ...],
        _all(_whole_numbers),
        Parameter(metavar="N,N", help="Pre-training lengths of the paper: 100,200."),
    ] = ()
    table: Annotated[
        Tables,
        Parameter(metavar="N", help="Everything that a table needs; `all` for all tables."),
    ] = ()


@Parameter(name="*", group=METHODS)
@dataclass(frozen=True, kw_only=True)
class Evals:
    """By which protocols to evaluate, and with which seeds."""

    evals: Annotated[
        Names,
        Parameter(
            metavar="NAME,NAME",
            help="Evaluations: linear, semi, voc, coco, knn, none, or protocols (see `ls "
            "protocols`); default: those of the paper's tables.",
        ),
    ] = ()
    seeds: Annotated[
        tuple[int, ...],
        _last(parse_seeds),
        Parameter(
            metavar="N",
            help="Number of seeds (3: seeds 0, 1, 2), or a list of them (0,2,5); default: 1.",
        ),
    ] = (0,)


@Parameter(name="*", group=METHODS)
@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be computed."""

    budget: Annotated[
        float | None,
        _last(parse_gpu_hours),
        Parameter(
            metavar="500gpuh",
            help="Run only what fits in this budget (estimated device-hours: GPU-hours on GPUs), "
            "shortest schedules first. Re-running resumes the same selection.",
        ),
    ] = None
    probe: Annotated[
        int | None,
        _number(int, "--probe"),
        Parameter(
            metavar="STEPS",
            help="Benchmark this many steps of each job type that has no comparable finished run, "
            "to estimate cost.",
        ),
    ] = None


@Parameter(name="*", group=METHODS)
@dataclass(frozen=True, kw_only=True)
class Import:
    """A checkpoint that was trained elsewhere, and what it is called."""

    name: Annotated[
        str,
        Parameter(help="Name of the checkpoint in tables and lists; see `ls checkpoints`."),
    ]
    checkpoint: Annotated[
        Path | None,
        Parameter(
            metavar="FILE",
            help="PyTorch, safetensors or .pkl file; nothing in it is executed. Not needed for a "
            "NAME that was imported before.",
        ),
    ] = None
    format: Annotated[
        str | None,
        Parameter(
            metavar="NAME",
            help="Layout of the file (default: detected): moco, lewel, swav, torchvision, …, or a "
            "TOML file that describes your own.",
        ),
    ] = None
    network: Annotated[
        str | None,
        Parameter(
            metavar="NAME",
            help="Which network to take from the file: query or key, online or target, student or "
            "teacher (default: the one that the original code evaluates).",
        ),
    ] = None
    as_: Annotated[
        str | None,
        Parameter(
            name="--as",
            metavar="RECIPE",
            help="Recipe it corresponds to, such as moco_v2_200ep; its row appears next to that "
            "recipe's published values.",
        ),
    ] = None
    epochs: Annotated[
        int | None,
        _last(lambda text: parse_whole_number("--epochs", text)),
        Parameter(metavar="N", help="Epochs of its pre-training, if --as is not given."),
    ] = None
    force: Annotated[bool, Parameter(help="Evaluate even if the sanity check fails.")] = False


@Parameter(name="*", group=MACHINE)
@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how jobs run; never part of a number's identity."""

    dry_run: Annotated[
        bool, Parameter(help="Print the jobs and their estimated cost without starting any.")
    ] = False
    cluster: Annotated[
        str | None,
        Parameter(metavar="NAME", help="Submit the jobs to this SLURM cluster and return."),
    ] = None
    device: Annotated[
        str | None,
        Parameter(metavar="NAME", help="cpu, cuda or cuda:N (default: cuda if there is a GPU)."),
    ] = None
    jobs: Annotated[
        int | None,
        _number(int, "--jobs"),
        Parameter(metavar="N", help="Jobs to run at once on a CPU; they share its cores."),
    ] = None
    processes: Annotated[
        int | None,
        _number(int, "--processes"),
        Parameter(metavar="N", help="Processes per job on this machine (default: one per GPU)."),
    ] = None
    workers: Annotated[
        int | None,
        _number(int, "--workers"),
        Parameter(metavar="N", help="Data-loader workers per process."),
    ] = None
    micro_batch: Annotated[
        int | None,
        _number(int, "--micro-batch"),
        Parameter(
            metavar="N",
            help="Images per forward pass of a process; gradients are accumulated.",
        ),
    ] = None
    compile: Annotated[bool, Parameter(help="Use torch.compile.")] = False
    save_every: Annotated[
        float | None,
        _number(float, "--save-every"),
        Parameter(metavar="SECONDS", help="Seconds between checkpoints (default: 300)."),
    ] = None
    replace_corrupt: Annotated[
        bool,
        Parameter(help="Recompute records that cannot be read; the old files are kept, renamed."),
    ] = False


@Parameter(name="*", group=SCALE)
@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that a table has beside the paper's."""

    with_: Annotated[Names, Parameter(name="--with", metavar="NAME", help=WITH_HELP)] = ()


@Parameter(name="*", group=METHODS)
@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Jobs by what they have in common."""

    method: Annotated[
        Names, Parameter(metavar="NAME", help="Only jobs of this method or recipe. Repeatable.")
    ] = ()
    table: Annotated[
        Tables, Parameter(metavar="N", help="Only jobs that this table, or `all`, needs.")
    ] = ()
    suite: Annotated[str, Parameter(help="Only jobs of this suite.")] = ""
    state: Annotated[
        Names, Parameter(metavar="STATE", help="Only jobs in this state. Repeatable.")
    ] = ()


Options = Where | Selection | Evals | Budget | Import | Compute | Rows


@dataclass(frozen=True)
class Command:
    """A command line: a verb, its words and its groups of options."""

    verb: str
    options: tuple[Options, ...] = ()
    words: tuple[str, ...] = ()

    def argv(self) -> list[str]:
        """The words after `lewel-bench`; options that have their defaults are left out."""
        words = [word for options in self.options for word in option_words(options)]
        suite = words.index("--suite") if "--suite" in words else len(words)
        scale, rest = words[suite : suite + 2], words[:suite] + words[suite + 2 :]
        return [*self.verb.split(), *self.words, *scale, *rest]  # the scale is read first

    def __str__(self) -> str:
        return shlex.join(["lewel-bench", *self.argv()])


def typed_command() -> str:
    """The command line of this process as it was typed."""
    return shlex.join(["lewel-bench", *sys.argv[1:]])


def option_words(options: Options) -> list[str]:
    """The options of a group that differ from their defaults, as a command line gives them."""
    words: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        option = "--" + field.name.rstrip("_").replace("_", "-")
        if value is True:
            words.append(option)
            continue
        for text in _texts(field.name, value):
            # a value such as -1 must not be taken for an option
            words += [f"{option}={text}"] if text.startswith("-") else [option, text]
    return words


def _texts(name: str, value: Any) -> list[str]:
    """The texts that an option of this value is given with, one for each time."""
    if name == "set":
        return [f"{key}={format_setting(element)}" for key, element in value]
    if name == "data":
        return [f"{role}={path}" if role else str(path) for role, path in value]
    if name == "engine":
        return list(value)
    if name == "seeds":
        if value == tuple(range(len(value))):
            return [str(len(value))]
        return [",".join(map(str, value)) + ("," if len(value) == 1 else "")]
    if name == "budget":
        return [f"{value:.15g}gpuh"]
    return [",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
