"""From a selection of methods and tables to jobs with keys; nothing is written.

A cell becomes jobs: `pretrain`, then for a protocol that searches its learning rate in one pass a
`final`, else one `search` a candidate and a `final` that chooses among them. A dense protocol with
`refit` has one `final` a trial, which trains the chosen candidate again; where there is but one
candidate, nothing is searched. Jobs with the same key are the same job.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.protocol import Candidate, Protocol
from lewel_bench.evals.protocols import ENGINES, PROTOCOLS, AnyProtocol
from lewel_bench.harness.plan.cells import Selection, cells
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.pretrain import methods
from lewel_bench.pretrain.methods import LATER, check
from lewel_bench.pretrain.recipe import Recipe, change
from lewel_bench.pretrain.views import AUGMENTS
from lewel_bench.results import record
from lewel_bench.value import Value, unknown


class Upstream(NamedTuple):
    """What left the backbone that an evaluation reads: the key of its record, a name for it, and
    the seed of the evaluations."""

    key: str
    name: str
    seed: int


class Job(Value):
    """One unit of work; `identity` is all that determines its result."""

    kind: Literal["pretrain", "search", "final"]
    name: str
    recipe_name: str
    suite: str
    seed: int
    data: Dataset
    recipe: Recipe | None = None
    protocol: AnyProtocol | None = None
    upstream: str | None = None  # key of what left the backbone that is evaluated
    needs: tuple[str, ...] = ()
    lr: Candidate | None = None  # of a search: backbone and head lr, or lr and weight decay
    trial: int = 0  # of a final that trains: fine-tunings of one backbone
    key: str = ""

    def identity(self) -> dict[str, Any]:
        """What the key is made of."""
        if self.recipe:
            return {"kind": self.kind, "seed": self.seed, **of_recipe(self.recipe, self.data)}
        assert self.protocol is not None
        what = of_protocol(self.protocol, self.data, self.lr, self.trial)
        return {"kind": self.kind, "seed": self.seed, "upstream": self.upstream, **what}

    @property
    def reads_records(self) -> bool:
        """Whether nothing is computed: the number is that of a candidate."""
        return self.kind == "final" and self.upstream not in self.needs


def of_recipe(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """A recipe's part of an identity; the id of the data stands for its name.

    Defaults of the method count as if they were written, and the views with what they do, so a
    default that changes is another run and one that is written out is not.
    """
    identity = recipe.identity()
    identity.pop("data")
    later = LATER.get(recipe.method, {})
    identity["args"] = {
        name: value
        for name, value in methods.settings(recipe).items()
        if name not in later or value != later[name]
    }
    views = AUGMENTS[recipe.augment]
    identity["augment"] = [view.identity() for view in views]
    return {"recipe": identity, "data": data.id}


def of_protocol(
    protocol: Protocol, data: Dataset, candidate: Candidate | None = None, trial: int = 0
) -> dict[str, Any]:
    """A protocol's part of an identity; that of one candidate does not depend on the others."""
    settings = protocol.identity(candidate)
    settings.pop("data")
    again = {"trial": trial} if trial else {}
    return {"protocol": settings, "data": data.id, **again}


def trials(protocol: Protocol) -> int:
    """How many runs of one backbone a cell asks for."""
    return max(1, protocol.final_trainings())


def plan(selection: Selection, suite: Suite, dataset: Callable[[str, str], Dataset]) -> list[Job]:
    """The jobs of a selection in dependency order, each key once.

    Raises ValueError for names that do not exist and settings that are not allowed.
    """
    jobs: dict[str, Job] = {}
    wanted = cells(selection, suite)
    _used(selection.settings, {name for _, evals in wanted for name in evals})
    for recipe, evals in wanted:
        for seed in selection.seeds:
            for job in chain(recipe, evals, seed, suite, dataset, selection.settings):
                jobs.setdefault(job.key, job)
    order = {"pretrain": 0, "search": 1, "final": 2}
    names = list(dict.fromkeys(job.recipe_name for job in jobs.values()))
    # one method after another, so that a table fills row by row
    return sorted(jobs.values(), key=lambda j: (j.seed, names.index(j.recipe_name), order[j.kind]))


def chain(
    recipe: Recipe,
    evals: Sequence[str],
    seed: int,
    suite: Suite,
    dataset: Callable[[str, str], Dataset],
    settings: Iterable[tuple[str, Any]] = (),
) -> list[Job]:
    """The pre-training of `recipe` and everything that evaluates it, at the suite's scale."""
    first = pretraining(recipe, seed, suite, dataset, settings)
    upstream = Upstream(first.key, first.recipe_name, seed)
    return [first, *evaluations(upstream, evals, suite, dataset, settings)]


def of_checkpoint(
    upstream: str,
    name: str,
    evals: Sequence[str],
    seeds: Iterable[int],
    suite: Suite,
    dataset: Callable[[str, str], Dataset],
    settings: Sequence[tuple[str, Any]] = (),
) -> list[Job]:
    """The jobs that evaluate an imported checkpoint, in dependency order, each key once.

    Raises ValueError for settings that none of the protocols has.
    """
    for dotted, _ in settings:
        if dotted.split(".")[0] in Recipe.model_fields:
            raise ValueError(
                f"--set {dotted}: a checkpoint has no recipe that could be changed; a protocol's "
                f"field is --set PROTOCOL.FIELD=VALUE"
            )
    _used(settings, set(evals))
    jobs: dict[str, Job] = {}
    for seed in seeds:
        for job in evaluations(Upstream(upstream, name, seed), evals, suite, dataset, settings):
            jobs.setdefault(job.key, job)
    return list(jobs.values())


def evaluations(
    upstream: Upstream,
    evals: Iterable[str],
    suite: Suite,
    dataset: Callable[[str, str], Dataset],
    settings: Iterable[tuple[str, Any]] = (),
) -> list[Job]:
    """The jobs that evaluate a backbone by several protocols, at the suite's scale."""
    protocols = (scale_protocol(name, suite, settings) for name in evals)
    return [job for protocol in protocols for job in evaluation(protocol, upstream, suite, dataset)]


def pretraining(
    recipe: Recipe,
    seed: int,
    suite: Suite,
    dataset: Callable[[str, str], Dataset],
    settings: Iterable[tuple[str, Any]] = (),
) -> Job:
    """The pre-training of `recipe` at the suite's scale."""
    scaled = scale_recipe(recipe, suite, settings)
    return _keyed(
        kind="pretrain",
        name=recipe.name,
        recipe_name=recipe.name,
        suite=suite.name,
        seed=seed,
        data=dataset(scaled.data, "pretrain"),
        recipe=scaled,
    )


def choices(
    protocols: Iterable[str],
    *,
    refit: bool = False,
    lrs: Sequence[float] = (),
    engines: Sequence[str] = (),
) -> list[tuple[str, Any]]:
    """The settings that --refit, --lrs and --engine stand for. Raises ValueError for one that none
    of the protocols has a use for."""
    chosen: list[tuple[str, Any]] = []
    known = {name: PROTOCOLS[name] for name in protocols}

    def choose(unused: str, **asked: Any) -> None:
        settings = [
            (f"{name}.{field}", value)
            for name, protocol in known.items()
            for field, value in protocol.choices(**asked).items()
        ]
        if not settings:
            raise ValueError(unused)
        chosen.extend(settings)

    if refit:
        choose("--refit: no selected evaluation trains its choice once more", refit=True)
    if lrs:
        choose("--lrs: no detection or segmentation is selected, and only these use it", lrs=lrs)
    for engine in engines:
        if engine not in ENGINES:
            raise ValueError(unknown("engine", engine, ENGINES))
        choose(f"--engine {engine}: no selected evaluation runs on it", engine=engine)
    return chosen


def scale_recipe(recipe: Recipe, suite: Suite, settings: Iterable[tuple[str, Any]]) -> Recipe:
    """`recipe` at the suite's scale, with the settings that are its own."""
    own = {k: v for k, v in settings if k.split(".")[0] not in PROTOCOLS}
    scaled: Recipe = change(suite.recipe(recipe), own)
    check(scaled)
    return scaled


def scale_protocol(name: str, suite: Suite, settings: Iterable[tuple[str, Any]]) -> Protocol:
    """Protocol `name` at the suite's scale, with the settings that begin with its name."""
    prefix = f"{name}."
    own = {k.removeprefix(prefix): v for k, v in settings if k.startswith(prefix)}
    try:
        scaled: Protocol = change(suite.protocol(name, PROTOCOLS[name]), own)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return scaled


NAMES = ("name", "label", "source", "published_lr")  # what no result depends on


def _used(settings: Iterable[tuple[str, Any]], protocols: set[str]) -> None:
    """Raise ValueError for a setting that nothing selected would read."""
    for dotted, _ in settings:
        first, _, rest = dotted.partition(".")
        if (rest if first in PROTOCOLS else first) in ("", *NAMES):
            raise ValueError(f"--set {dotted}: name a field that a result depends on")
        if first in PROTOCOLS and first not in protocols:
            raise ValueError(
                f"--set {dotted}: {first} is not among the selected protocols "
                f"({', '.join(sorted(protocols)) or 'none'})"
            )
        if first not in PROTOCOLS and first not in Recipe.model_fields:
            raise ValueError(unknown("setting", first, [*Recipe.model_fields, *PROTOCOLS]))


def evaluation(
    protocol: Protocol, upstream: Upstream, suite: Suite, dataset: Callable[[str, str], Dataset]
) -> list[Job]:
    """The jobs that evaluate a backbone by a protocol at the suite's scale."""
    data = dataset(protocol.data, protocol.runner)
    common: dict[str, Any] = {
        "recipe_name": upstream.name,
        "suite": suite.name,
        "seed": upstream.seed,
        "data": data,
        "protocol": protocol,
        "upstream": upstream.key,
    }
    name = f"{protocol.name} of {upstream.name}"
    searches = [
        _keyed(
            kind="search",
            name=f"{name}, lr {candidate[0]:g}/{candidate[1]:g}",
            needs=(upstream.key,),
            lr=candidate,
            **common,
        )
        for candidate in protocol.candidates()
    ]
    needs = tuple(job.key for job in searches)
    if protocol.final_trainings():
        needs += (upstream.key,)
    finals = [
        _keyed(
            kind="final",
            name=name if trial == 0 else f"{name}, trial {trial}",
            needs=needs,
            trial=trial,
            **common,
        )
        for trial in range(trials(protocol))
    ]
    return [*searches, *finals]


def _keyed(**fields: Any) -> Job:
    job = Job(**fields)
    return job.model_copy(update={"key": record.key(job.identity())})
