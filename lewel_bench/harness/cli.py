"""The command `lewel-bench`: parses, calls, prints. Nothing here imports torch before it must."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench import terminal
from lewel_bench.files import described, follow_group
from lewel_bench.harness import options

if TYPE_CHECKING:
    from lewel_bench.harness.board.board import Board
    from lewel_bench.harness.plan.catalog import ScaledCatalog
    from lewel_bench.harness.progress import Share
    from lewel_bench.harness.status import JobState
    from lewel_bench.results.store import Store

MISTAKE = 2  # exit code of what a user can mend


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code: 0 done, 1 something failed, 2 a mistake in what was asked,
    128 + n stopped by signal n after saving."""
    if argv is None:
        terminal.prepare()
    arguments = options.parser().parse_args(argv)
    with terminal.escaped():
        return _run(arguments, sys.argv[1:] if argv is None else argv)


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    try:
        options.refuse_empty(words)
        code = VERBS[arguments.verb](arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `lewel-bench ls recipes | head`
        terminal.discard(sys.stdout)
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"lewel-bench: {described(error)}", file=sys.stderr)
        return MISTAKE


class Context:
    """What the options --root, --suite, --data and --set come to."""

    def __init__(self, arguments: argparse.Namespace, *, needed: bool = False) -> None:
        from lewel_bench.harness.plan import plugins as own
        from lewel_bench.harness.plan import site, suites
        from lewel_bench.harness.plan.datasets import Datasets

        self.site = site.load()
        root = getattr(arguments, "root", None)
        self.root = Path(root).expanduser().resolve() if root else self.site.resolve(self.site.runs)
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"the run root {self.root} is a file: name a folder with --root")
        follow_group(self.root)
        self.catalog = own.load(self.root)
        self.suite = suites.get(getattr(arguments, "suite", "paper"), self.site)
        self.settings = [_setting(text) for text in getattr(arguments, "settings", [])]
        self.refit = getattr(arguments, "refit", False)
        self.lrs = _rates(getattr(arguments, "lrs", None))
        self.beside = [n for text in getattr(arguments, "beside", []) for n in text.split(",")]
        self.engines = list(dict.fromkeys(getattr(arguments, "engine", [])))
        data = dict(_role(text) for text in getattr(arguments, "data", []))
        self.datasets = Datasets(self.site, self.root, self.suite, data, needed=needed)

    def choices(self, protocols: Iterable[str]) -> list[tuple[str, Any]]:
        """What --refit, --lrs and --engine mean for these protocols."""
        from lewel_bench.harness.plan.catalog import chosen_settings

        known = [self.catalog.protocols[name] for name in protocols]
        return chosen_settings(known, refit=self.refit, lrs=self.lrs, engines=self.engines)

    def scaled(self, protocols: Iterable[str]) -> "ScaledCatalog":
        """The catalogue at the suite's scale, with --set, --refit, --lrs and --engine applied for
        these protocols."""
        from lewel_bench.harness.plan.catalog import ScaledCatalog

        settings = [*self.settings, *self.choices(protocols)]
        return ScaledCatalog(self.catalog, self.suite, settings)


def run_jobs(arguments: argparse.Namespace) -> int:
    """`lewel-bench run`."""
    from lewel_bench.harness.verbs.run import run

    return run(Context(arguments, needed=True), arguments)


def evaluate_checkpoint(arguments: argparse.Namespace) -> int:
    """`lewel-bench eval`."""
    from lewel_bench.harness.verbs.eval import run

    return run(Context(arguments, needed=True), arguments)


def show_table(arguments: argparse.Namespace) -> int:
    """`lewel-bench table`."""
    from lewel_bench.harness.plan import cells
    from lewel_bench.results import render
    from lewel_bench.value import unknown

    formats = ["text", *render.FORMATS]
    if arguments.format not in formats:
        raise ValueError(unknown("format", arguments.format, formats))
    if arguments.missing and arguments.format not in ("text", "json"):
        raise ValueError(f"--missing --format {arguments.format}: that list is text or json")
    names = [one.id for one in cells.tables([arguments.table])]
    context = Context(arguments)
    board = _board(context)
    filled = [board.filled(name) for name in names]
    _warn(board.store)
    if arguments.missing:
        from lewel_bench.harness.board.missing import show

        show(board, filled, arguments.format)
        return 0
    if arguments.format == "text":
        from lewel_bench.harness import view

        for one in filled:
            view.show_table(one)
    else:
        print(render.render(filled, arguments.format), end="")
    return 0


def _board(context: Context) -> "Board":
    from lewel_bench.harness.board.board import Board

    catalog = context.catalog
    settings = [*context.settings, *context.choices(catalog.protocols)]
    return Board(context.root, context.suite, context.datasets, settings, context.beside, catalog)


def explain_cell(arguments: argparse.Namespace) -> int:
    """`lewel-bench explain`."""
    from lewel_bench.harness.verbs.explain import explained, show
    from lewel_bench.value import json_text

    context = Context(arguments)
    board = _board(context)
    found = explained(board, arguments.cell)
    _warn(board.store)
    if arguments.format == "json":
        print(json_text(found))
        return 0
    show(found)
    return 0


def judge_claims(arguments: argparse.Namespace) -> int:
    """`lewel-bench claims`; the exit code says whether all are supported."""
    from lewel_bench.harness.verbs.claims import judged
    from lewel_bench.results.claims import judge
    from lewel_bench.results.claims.output import as_json, markdown, missing_tables, text
    from lewel_bench.value import unknown

    writers = {"text": text, "md": markdown, "json": as_json}
    if arguments.format not in writers:
        raise ValueError(unknown("format", arguments.format, writers))
    board = _board(Context(arguments))
    found = judged(board, arguments.claims)
    _warn(board.store)
    print(writers[arguments.format](found, board.suite.name))
    for name in missing_tables(found) if arguments.format == "text" else ():
        words = ["lewel-bench", "table", name, *board.options(), "--missing"]
        print(f"what is missing: {shlex.join(words)}")
    return judge.exit_code(found)


def draw_figure(arguments: argparse.Namespace) -> int:
    """`lewel-bench figure`."""
    from lewel_bench.harness.verbs.figure import make

    context = Context(arguments)

    def board() -> "Board":
        made = _board(context)
        _warn(made.store)
        return made

    print(make(arguments, context, board))
    return 0


def write_report(arguments: argparse.Namespace) -> int:
    """`lewel-bench report`."""
    from lewel_bench.harness.verbs.report import write

    board = _board(Context(arguments))
    write(board, Path(arguments.out), force=arguments.force)
    _warn(board.store)
    print(arguments.out)
    return 0


def write_bundle(arguments: argparse.Namespace) -> int:
    """`lewel-bench bundle`."""
    from lewel_bench.harness.bundles import bundle
    from lewel_bench.harness.verbs.gc import size

    path = Path(arguments.file)
    if arguments.verify:
        if given := [f"--{name}" for name in ("weights", "force", "root") if vars(arguments)[name]]:
            raise ValueError(f"--verify only reads {path}: leave out {', '.join(given)}")
        found = bundle.verify(path)
    else:
        root, force = Context(arguments).root, arguments.force
        found = bundle.write(root, path, weights=arguments.weights, force=force)
    for text in found.left_out:
        print(f"warning: left out: {text}", file=sys.stderr)
    total = size(sum(file.size for file in found.files.values()))
    print(
        f"{path}: {len(found.keys)} records, {len(found.files)} files, {total}"
        f"{', all as they were written' if arguments.verify else ''}; sha256 {found.digest}"
    )
    return 0


def merge_bundle(arguments: argparse.Namespace) -> int:
    """`lewel-bench merge`."""
    from lewel_bench.harness.bundles import bundle
    from lewel_bench.harness.verbs.merge import differences, merge
    from lewel_bench.results.store import Store

    root = Context(arguments).root
    found = merge(bundle.verify(Path(arguments.bundle)), root)
    for text in differences(Store(root)):
        print(text)
    for key, why in found.apart.items():
        print(f"{key} is kept beside ours and in no table: {why}", file=sys.stderr)
    for key, why in found.held.items():
        print(f"{key} was left out: {why}", file=sys.stderr)
    print(
        f"{root}: {len(found.new)} records came, {len(found.there)} were there, "
        f"{len(found.other)} have another number and are kept beside ours"
        + (f", as are {len(found.apart)} of another network" if found.apart else "")
    )
    return 1 if found.held else 0


def export_backbone(arguments: argparse.Namespace) -> int:
    """`lewel-bench export`."""
    from lewel_bench.harness.verbs import export as exports

    for path in exports.write(arguments, Context(arguments)):
        print(path)
    return 0


def show_status(arguments: argparse.Namespace) -> int:
    """`lewel-bench status`."""
    from lewel_bench.harness.progress import shares
    from lewel_bench.harness.status import ORDER
    from lewel_bench.results.store import Store
    from lewel_bench.value import unknown

    for state in arguments.state:
        if state not in ORDER:
            raise ValueError(unknown("state", state, ORDER))
    context = Context(arguments)
    if arguments.watch:
        from lewel_bench.harness.cluster import watch

        arguments.watch = False
        return watch(lambda: show_status(arguments))
    store = Store(context.root)
    notes: list[str] = []
    states = list(_states(context, store, arguments.cluster, notes).values())
    shown = [s for s in states if not arguments.state or s.state in arguments.state]
    shown.sort(key=lambda s: ORDER.index(s.state))
    _warn(store)
    methods, tables = shares(states)
    if arguments.format == "json":
        found: dict[str, Sequence[Any]] = {"jobs": shown, "methods": methods, "tables": tables}
        lists = {name: [vars(one) for one in several] for name, several in found.items()}
        print(_lines({**lists, "cluster": [{"note": note} for note in notes]}))
        return 0
    from lewel_bench.harness import view

    counts = {state: sum(s.state == state for s in states) for state in ORDER}
    rows = [(s.state, s.key, s.kind, s.name, str(s.seed), s.suite, s.reason) for s in shown]
    view.show_list(("state", "key", "kind", "name", "seed", "suite", "why"), rows)
    if methods:
        columns = ("", "suite", "done", "planned", "device-hours", "to go")
        print()
        view.show_list(columns, [_share(one) for one in (*methods, *tables)])
        print()
    print(
        f"{context.root}: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        if states
        else f"{context.root}: no jobs yet"
    )
    for note in notes:
        print(note)
    return 0


def _lines(lists: dict[str, list[dict[str, Any]]]) -> str:
    """JSON with a line for each entry: ten thousands of jobs are written and read as fast."""
    parts = (
        f"{json.dumps(name)}: [\n"
        + ",\n".join(json.dumps(e, default=vars) for e in several)
        + "\n]"
        for name, several in lists.items()
    )
    return "{" + ", ".join(parts) + "}"


def _share(one: "Share") -> tuple[str, ...]:
    left = f"{one.hours_to_go:.3g}" + (f", {one.unknown} jobs unknown" if one.unknown else "")
    counts = (str(one.done), str(one.jobs))
    return (one.name, one.suite, *counts, f"{one.spent_hours:.3g}", left)


def _states(
    context: Context, store: Any, cluster: str | None = None, notes: list[str] | None = None
) -> "dict[str, JobState]":
    from lewel_bench.harness.cost.estimate import Estimator
    from lewel_bench.harness.status import survey

    costs = Estimator(store.records, context.root)
    states = survey(context.root, store, costs, context.catalog)
    if cluster is None and not (context.root / ".slurm").exists():
        return states
    from lewel_bench.harness import cluster as clusters

    if cluster:
        clusters.profile(context.site, cluster)
    return clusters.live(context.root, states, cluster, notes)


def cancel_jobs(arguments: argparse.Namespace) -> int:
    """`lewel-bench cancel`."""
    from lewel_bench.harness import cluster

    context = Context(arguments)
    return cluster.cancel(context.root, _chosen(context, arguments), arguments.yes)


def retry_jobs(arguments: argparse.Namespace) -> int:
    """`lewel-bench retry`."""
    from lewel_bench.harness import cluster

    context = Context(arguments)
    return cluster.again(context.root, _chosen(context, arguments))


def _chosen(context: Context, arguments: argparse.Namespace) -> list[str]:
    """The keys that a command line names, one by one or by what they have in common."""
    from lewel_bench.harness import cluster
    from lewel_bench.harness.board import extra_rows as extras
    from lewel_bench.harness.status import ORDER
    from lewel_bench.results.store import Store
    from lewel_bench.value import unknown

    for state in arguments.state:
        if state not in ORDER:
            raise ValueError(unknown("state", state, ORDER))
    store = Store(context.root)
    states, beside = _states(context, store), extras.beside(store, context.catalog)
    named = {key for text in arguments.keys for key in cluster.named(states, text, beside)}
    if not (arguments.keys or arguments.method or arguments.table or arguments.state):
        raise ValueError("name keys or cells, or --method, --table or --state: see status")
    wanted = named or set(states)
    if arguments.method or arguments.table:
        names = cluster.recipes(arguments.method, arguments.table, context.catalog)
        wanted &= {key for key, one in states.items() if one.recipe in names}
    return [
        key
        for key, one in states.items()
        if key in wanted
        and (not arguments.only_suite or one.suite == arguments.only_suite)
        and (not arguments.state or one.state in arguments.state)
    ]


def show_logs(arguments: argparse.Namespace) -> int:
    """`lewel-bench logs`."""
    from lewel_bench.harness import cluster
    from lewel_bench.harness.board import extra_rows as extras
    from lewel_bench.results.store import Store

    context = Context(arguments)
    store = Store(context.root)
    keys = cluster.named(
        _states(context, store), arguments.key, extras.beside(store, context.catalog)
    )
    return cluster.logs(context.root, keys, arguments.key, arguments.follow)


def collect_garbage(arguments: argparse.Namespace) -> int:
    """`lewel-bench gc`."""
    from lewel_bench.harness.verbs import gc
    from lewel_bench.results.store import Store

    context = Context(arguments)
    found = gc.waste(context.root, _states(context, Store(context.root)))
    if not found:
        print(f"{context.root}: nothing to remove")
        return 0
    if arguments.yes:
        print(f"{len(found)} files removed, {gc.size(gc.clear(found))} freed")
        return 0
    gc.show(found, context.root)
    print(f"{len(found)} files, {gc.size(sum(one.size for one in found))}: remove them with --yes")
    return 0


def show_list(arguments: argparse.Namespace) -> int:
    """`lewel-bench ls`."""
    from lewel_bench.harness.verbs import ls as listing

    context = Context(arguments)
    columns, rows = listing.listing(arguments.what, context.site, context.root, context.catalog)
    if arguments.format == "json":
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
        return 0
    from lewel_bench.harness import view

    view.show_list(columns, rows)
    return 0


def make_data(arguments: argparse.Namespace) -> int:
    """`lewel-bench data make`."""
    from lewel_bench.harness.plan import data_check as material

    return material.make(arguments.what, Context(arguments))


def check_data(arguments: argparse.Namespace) -> int:
    """`lewel-bench data check`."""
    from lewel_bench.harness.plan import data_check as material

    return material.check(arguments, Context(arguments, needed=True))


def run_doctor(arguments: argparse.Namespace) -> int:
    """`lewel-bench doctor`."""
    from lewel_bench.harness.verbs.doctor import doctor

    return doctor(Context(arguments, needed=True), arguments.cluster)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {text!r} is not KEY=VALUE, such as --set optimizer.lr=0.1")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a bare word


def _rates(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        rates = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        rates = []
    if not rates:
        raise ValueError(f"--lrs {text!r}: write learning rates with commas, as 0.01,0.02")
    return rates


def _role(text: str) -> tuple[str, Path]:
    role, equals, path = text.partition("=")
    if equals and not path and role and "/" not in role:
        raise ValueError(f"--data {text} is empty: name a folder, as {text}FOLDER")
    if not equals or "/" in role:  # a path may have the sign too
        return "", Path(text)
    roles = ("pretrain", "linear", "semi", "knn", "voc", "coco")
    if role not in roles:
        from lewel_bench.value import unknown

        raise ValueError(unknown("data role", role, roles))
    return role, Path(path)


def _warn(store: "Store") -> None:
    from lewel_bench.harness.verbs.merge import differences

    if not store.root.is_dir():
        print(f"note: there is no run root {store.root} yet", file=sys.stderr)
    for one in store.bad:
        print(
            f"warning: corrupt record {one}; run with --replace-corrupt to compute it again",
            file=sys.stderr,
        )
    for one in store.bad_others:
        print(f"warning: corrupt record {one}; merge its bundle again", file=sys.stderr)
    for text in differences(store):
        print(f"warning: {text}", file=sys.stderr)


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run_jobs,
    "eval": evaluate_checkpoint,
    "table": show_table,
    "claims": judge_claims,
    "figure": draw_figure,
    "report": write_report,
    "bundle": write_bundle,
    "merge": merge_bundle,
    "export": export_backbone,
    "explain": explain_cell,
    "status": show_status,
    "cancel": cancel_jobs,
    "retry": retry_jobs,
    "logs": show_logs,
    "gc": collect_garbage,
    "ls": show_list,
    "data make": make_data,
    "data check": check_data,
    "doctor": run_doctor,
}

if __name__ == "__main__":
    sys.exit(main())
