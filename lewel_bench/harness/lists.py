"""Methods, recipes, protocols and the like as columns and rows."""

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

from lewel_bench.harness.plan import cells, suites
from lewel_bench.harness.plan.catalog import Catalog, is_packaged
from lewel_bench.harness.plan.plugins import (
    METHODS_GROUP,
    PROTOCOLS_GROUP,
    offered,
    origin,
)
from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.status import survey
from lewel_bench.pretrain.methods import METHODS
from lewel_bench.pretrain.recipes import family
from lewel_bench.results import checkpoints, conflicts, table
from lewel_bench.results.store import Store
from lewel_bench.value import unknown

Listing = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


def listing(what: str, site: Site, root: Path, catalog: Catalog) -> Listing:
    """Columns and rows of one list. Raises ValueError naming the nearest list."""
    lists: dict[str, Callable[[], Listing]] = {
        "methods": lambda: _methods(catalog),
        "recipes": lambda: _recipes(catalog),
        "protocols": lambda: _protocols(catalog),
        "tables": _tables,
        "claims": _claims,
        "suites": lambda: _suites(site),
        "checkpoints": _checkpoints,
        "conflicts": _conflicts,
        "runs": lambda: _runs(root, catalog),
    }
    if what not in lists:
        raise ValueError(unknown("list", what, list(lists)))
    return lists[what]()


def _methods(catalog: Catalog) -> Listing:
    rows = []
    for name, settings in METHODS.items():
        families = [
            family
            for family, names in catalog.families.items()
            if catalog.recipes[names[0]].method == name
        ]
        rows.append((name, settings.summary, ", ".join(families)))
    own = {(r.method, r.own.file): r for r in catalog.own_recipes() if r.own}
    for (name, _), recipe in own.items():
        rows.append((name, origin(recipe), family(recipe.name)))
    for point in offered(METHODS_GROUP):
        rows.append((point.name, _offer(point, is_packaged(point.name)), point.name))
    return ("method", "what it is", "recipes (families)"), rows


def _offer(point: EntryPoint, is_taken: bool) -> str:
    """What a distribution offers, without loading it."""
    taken = ", not used: the name is built in" if is_taken else ""
    return f"offered by {point.dist.name if point.dist else point.value}{taken}"


def _recipes(catalog: Catalog) -> Listing:
    rows = []
    for r in catalog.recipes.values():
        norm = f"{r.bn_group} images" if r.bn_group else "whole batch"
        rate = f"{r.optimizer.name} {r.optimizer.lr:g}"
        source = "; ".join(filter(None, (r.source, origin(r))))
        rows.append((r.name, r.label, r.data, str(r.epochs), str(r.batch), rate, norm, source))
    return (
        "recipe",
        "label",
        "data",
        "epochs",
        "batch",
        "optimizer, lr",
        "BN over",
        "source",
    ), rows


def _protocols(catalog: Catalog) -> Listing:
    rows = []
    for p in catalog.protocols.values():
        words = p.describe()
        rows.append((p.name, p.label, words.setting, words.searched, words.chosen_on, p.source))
    for point in offered(PROTOCOLS_GROUP):
        rows.append(
            (point.name, "–", "–", "–", "–", _offer(point, point.name in catalog.protocols))
        )
    return ("protocol", "label", "setting", "searched", "chosen on", "source"), rows


def _tables() -> Listing:
    rows = []
    for name in table.TABLES:
        quoted = table.load(name)
        cells = len(list(quoted.cells()))
        rows.append((name, quoted.title, f"{cells} cells can be measured", quoted.source))
    return ("table", "title", "cells", "source"), rows


def _claims() -> Listing:
    from lewel_bench.results.claims import claim

    rows = []
    for entry in claim.load():
        how = f"{claim.HOLDS[entry.holds]}: {claim.floors(entry)}"
        cells = str(len(list(entry.comparisons())))
        source, flaw = claim.noise_sources(entry), entry.flaw or "–"
        rows.append((entry.id, entry.says, entry.where, cells, how, source, flaw))
    columns = ("claim", "the paper", "where", "comparisons", "holds where", "noise floor from")
    return (*columns, "its own tables"), rows


def _suites(site: Site) -> Listing:
    names = [*suites.SUITES, *site.suites]
    known = [suites.get(name, site) for name in names]
    return ("suite", "scale", "source"), [(s.name, s.label, s.source) for s in known]


def _conflicts() -> Listing:
    rows = []
    for conflict in conflicts.load():
        sides = [
            f"{name}: {side}" for name, side in {**conflict.recipes, **conflict.protocols}.items()
        ]
        rows.append(
            (
                conflict.id,
                conflict.paper,
                f"{conflict.code} [{conflict.where}]",
                conflict.default,
                conflict.why,
                "; ".join(sides),
            )
        )
    return ("conflict", "the paper", "the code", "default here", "why", "by name"), rows


def _checkpoints() -> Listing:
    rows = []
    for checkpoint in checkpoints.load():
        reported = ", ".join(f"{what} {value:g}" for what, value in checkpoint.reported.items())
        epochs = str(checkpoint.epochs) if checkpoint.epochs else "not stated"
        stands = (checkpoint.recipe or "–", fills(checkpoint.recipe) or "–")
        file = checkpoint.file or "see the link"
        facts = (checkpoint.licence, checkpoint.note, checkpoint.url, checkpoint.source)
        rows.append((checkpoint.name, checkpoint.label, epochs, file, reported, *stands, *facts))
    return (
        *("checkpoint", "method", "epochs", "file", "its authors report", "--as", "fills cells of"),
        *("licence", "note", "from", "source"),
    ), rows


def fills(recipe: str) -> str:
    """The tables that have cells of a recipe, with how many."""
    counts = Counter(
        quoted.id
        for quoted in map(table.load, table.TABLES)
        for row, column in quoted.cells()
        if column.eval != table.PRETRAIN and cells.recipe_name(row, column) == recipe
    )
    return ", ".join(f"Table {id} ({count})" for id, count in counts.items())


def _runs(root: Path, catalog: Catalog) -> Listing:
    store = Store(root)
    rows = []
    for state in survey(root, store, catalog=catalog).values():
        record = store.records.get(state.key)
        metrics = record.metrics if record else {}
        shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        rows.append((state.key, state.kind, state.name, str(state.seed), state.state, shown))
    return ("key", "kind", "name", "seed", "state", "metrics"), rows
