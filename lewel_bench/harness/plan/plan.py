"""From what a command line selects to jobs with keys; nothing is written.

A cell becomes jobs: `pretrain`, then for a protocol that searches its learning rate in one pass a
`final`, else one `search` a candidate and a `final` that chooses among them. A dense protocol with
`refit` has one `final` a trial, which trains the chosen candidate again; where there is but one
candidate, nothing is searched. Jobs with the same key are the same job.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lewel_bench.evals.dataset import Dataset
from lewel_bench.evals.protocol import Candidate, Protocol
from lewel_bench.evals.protocols import AnyProtocol
from lewel_bench.harness.plan import cells
from lewel_bench.harness.plan.catalog import Catalog
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.harness.request import Evals, Selection
from lewel_bench.pretrain import methods
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.views import AUGMENTS
from lewel_bench.results import record
from lewel_bench.value import Value

if TYPE_CHECKING:
    from lewel_bench.harness.plan.workspace import Workspace


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
    def is_selection(self) -> bool:
        """Whether the job only picks the best finished candidate."""
        return self.kind == "final" and self.upstream not in self.needs


def of_recipe(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """A recipe's part of an identity; the id of the data stands for its name.

    Defaults of the method count as if they were written, and the views with what they do, so a
    default that changes is another run and one that is written out is not.
    """
    identity = recipe.identity()
    identity.pop("data")
    identity["args"] = methods.arguments(recipe)
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


def plan(selection: Selection, evals: Evals, workspace: "Workspace") -> list[Job]:
    """The jobs of a command line in dependency order, each key once.

    Raises ValueError for names that do not exist, for settings that are not allowed or that nothing
    selected reads, and for data that this site does not have.
    """
    named = select(selection, evals, workspace.catalog, workspace.suite)
    protocols = dict.fromkeys(name for names in named.values() for name in names)
    scaled = workspace.scaled(protocols)
    scaled.check_settings(protocols)
    pairs = [
        (scaled.recipe(recipe), [scaled.protocol(name) for name in names])
        for recipe, names in named.items()
    ]
    jobs: dict[str, Job] = {}
    for recipe, chosen in pairs:
        for seed in evals.seeds:
            for job in chain(recipe, chosen, seed, workspace.suite.name, workspace.datasets):
                jobs.setdefault(job.key, job)
    order = {"pretrain": 0, "search": 1, "final": 2}
    names = list(dict.fromkeys(job.recipe_name for job in jobs.values()))
    # one method after another, so that a table fills row by row
    return sorted(jobs.values(), key=lambda j: (j.seed, names.index(j.recipe_name), order[j.kind]))


def select(
    selection: Selection, evals: Evals, catalog: Catalog, suite: Suite
) -> dict[str, list[str]]:
    """The names of recipes in the order asked for, each with those of the protocols to run on it:
    those asked for, else those by which the paper judges it, as far as the suite has a scale for
    them. Raises ValueError where nothing is selected."""
    if selection.table:
        selected = _of_tables(selection, evals, catalog, suite)
    else:
        recipes = _recipes(selection.method, selection.epochs, catalog)
        selected = {r.name: cells.evaluations(r, evals.evals, catalog, suite) for r in recipes}
    if not selected:
        raise ValueError(_nothing_selected_message(selection, suite))
    return selected


def _recipes(methods: Sequence[str], epochs: Sequence[int], catalog: Catalog) -> list[Recipe]:
    """The recipes of methods. Raises ValueError where one has no recipe of these `epochs`, or
    several and none is chosen."""
    selected = []
    for method in methods:
        recipes = [catalog.recipes[name] for name in cells.recipe_names([method], catalog)]
        matching = [recipe for recipe in recipes if not epochs or recipe.epochs in epochs]
        known_epochs = ", ".join(str(recipe.epochs) for recipe in recipes)
        if {recipe.epochs for recipe in matching} < set(epochs) or not matching:
            raise ValueError(
                f"{method} has no recipe of {', '.join(map(str, epochs))} epochs. "
                f"Known: {known_epochs}. For another length, use the nearest and add "
                f"--set epochs=N"
            )
        if not epochs and method in catalog.families and len(matching) > 1:
            raise ValueError(f"{method} has recipes of {known_epochs} epochs: choose with --epochs")
        selected += matching
    return selected


def _of_tables(
    selection: Selection, evals: Evals, catalog: Catalog, suite: Suite
) -> dict[str, list[str]]:
    """The recipes of the selected cells, by name, each with the protocols to run on it."""
    lengths = sorted({recipe.epochs for recipe in catalog.recipes.values()})
    if unknown_lengths := [count for count in selection.epochs if count not in lengths]:
        shown = ", ".join(map(str, lengths))
        raise ValueError(f"no recipe has {unknown_lengths[0]} epochs. Known: {shown}")
    names = set(cells.recipe_names(selection.method, catalog)) if selection.method else None
    selected: dict[str, list[str]] = {}
    for table in cells.tables(selection.table):
        for row, column in table.cells():
            name, protocol = cells.recipe_name(row, column), row.protocols.get(column.eval)
            if name is None or (names is not None and name not in names):
                continue
            if selection.epochs and catalog.recipes[name].epochs not in selection.epochs:
                continue
            if protocol and not evals.evals and not cells.has_scale(suite, protocol):
                continue
            protocols = selected.setdefault(name, [])
            if protocol and protocol not in protocols:
                protocols.append(protocol)
    if evals.evals:
        recipes = (catalog.recipes[name] for name in selected)
        return {r.name: cells.protocol_names(r, evals.evals, catalog) for r in recipes}
    return selected


def _nothing_selected_message(selection: Selection, suite: Suite) -> str:
    if not selection.table:
        return (
            "nothing is selected: name a method (--method lewel_m --epochs 200) or a table "
            "(--table 1), and see `lewel-bench ls recipes`"
        )
    named = "table" if len(selection.table) == 1 else "tables"
    epochs = ", ".join(map(str, selection.epochs))
    lengths = f" at {epochs} epochs" if epochs else ""
    methods = f" of {', '.join(selection.method)}" if selection.method else ""
    scale = "" if suite.comparable else f" for which the suite {suite.name} has a scale"
    return (
        f"nothing is selected: {named} {', '.join(selection.table)}: no cell{methods}{lengths}"
        f"{scale}. To run a recipe that is in no table, leave out --table"
    )


def chain(
    recipe: Recipe,
    protocols: Iterable[Protocol],
    seed: int,
    suite: str,
    dataset: Callable[[str, str], Dataset],
) -> list[Job]:
    """The pre-training of `recipe` and everything that evaluates it, both as the suite has them."""
    first = pretraining(recipe, seed, suite, dataset)
    upstream = Upstream(first.key, first.recipe_name, seed)
    return [first, *evaluations(upstream, protocols, suite, dataset)]


def of_checkpoint(
    upstream: str,
    name: str,
    protocols: Sequence[Protocol],
    seeds: Iterable[int],
    suite: str,
    dataset: Callable[[str, str], Dataset],
) -> list[Job]:
    """The jobs that evaluate an imported checkpoint, in dependency order, each key once."""
    jobs: dict[str, Job] = {}
    for seed in seeds:
        for job in evaluations(Upstream(upstream, name, seed), protocols, suite, dataset):
            jobs.setdefault(job.key, job)
    return list(jobs.values())


def evaluations(
    upstream: Upstream,
    protocols: Iterable[Protocol],
    suite: str,
    dataset: Callable[[str, str], Dataset],
) -> list[Job]:
    """The jobs that evaluate a backbone by each of some protocols."""
    return [job for protocol in protocols for job in evaluation(protocol, upstream, suite, dataset)]


def pretraining(
    recipe: Recipe, seed: int, suite: str, dataset: Callable[[str, str], Dataset]
) -> Job:
    """The pre-training of `recipe`."""
    return _keyed(
        kind="pretrain",
        name=recipe.name,
        recipe_name=recipe.name,
        suite=suite,
        seed=seed,
        data=dataset(recipe.data, "pretrain"),
        recipe=recipe,
    )


def evaluation(
    protocol: Protocol, upstream: Upstream, suite: str, dataset: Callable[[str, str], Dataset]
) -> list[Job]:
    """The jobs that evaluate a backbone by a protocol."""
    data = dataset(protocol.data, protocol.runner)
    common: dict[str, Any] = {
        "recipe_name": upstream.name,
        "suite": suite,
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
