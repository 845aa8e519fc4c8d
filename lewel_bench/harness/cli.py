"""The command `lewel-bench`: parses, calls, prints. Nothing here imports torch before it must."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewel_bench import __version__

if TYPE_CHECKING:
    from lewel_bench.harness.tables import Board

SITUATION = 2  # exit code of a user's mistake
FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code: 0 done, 1 something failed, 2 a mistake in what was asked,
    128 + n stopped by signal n after saving."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.verb(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `lewel-bench ls recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"lewel-bench: {error}", file=sys.stderr)
        return SITUATION


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lewel-bench",
        description="Pre-train LEWEL and its baselines, evaluate them under the paper's protocols, "
        "and print the paper's tables with the measured numbers beside the published ones.",
        epilog="First steps without a GPU: lewel-bench run --suite shapes --method lewel_m "
        "--epochs 200, then lewel-bench table 1 --suite shapes",
    )
    parser.add_argument("--version", action="version", version=f"lewel-bench {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", dest="verb_name")
    _run_parser(verbs)
    _table_parser(verbs)
    explain = _verb(verbs, "explain", explain_cell, "From a table's cell to everything behind it.")
    explain.add_argument("cell", help="table:row:column, such as table1:lewel_m:200:top1")
    explain.add_argument("--format", choices=("text", "json"), default="text")
    _where(explain)
    status = _verb(verbs, "status", show_status, "What every job under the run root is doing.")
    status.add_argument("--format", choices=("rich", "json"), default="rich")
    status.add_argument("--state", action="append", default=[], help="only jobs in this state")
    status.add_argument("--root", help="run root (default: of the site file, else ./runs)")
    ls = _verb(verbs, "ls", show_list, "List what there is.")
    ls.add_argument("what", help="methods, recipes, protocols, tables, suites, conflicts or runs")
    ls.add_argument("--format", choices=("rich", "json"), default="rich")
    ls.add_argument("--root", help="run root, for runs")
    _data_parser(verbs)
    doctor = _verb(verbs, "doctor", run_doctor, "Check this installation, machine and site file.")
    doctor.add_argument("--root", help="run root (default: of the site file, else ./runs)")
    return parser


def _verb(
    verbs: Any, name: str, verb: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    parser.set_defaults(verb=verb)
    return parser


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="paper", help="scale (see `ls suites`; default: paper)")
    parser.add_argument("--root", help="run root (default: of the site file, else ./runs)")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[ROLE=]PATH",
        help="your own class folders (train/CLASS/*, val/CLASS/*) for all roles, or for one of "
        "pretrain, linear, semi, knn",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="change a field: of the recipe (optimizer.lr=0.1, args.h=1) or of a protocol "
        "(semi_1pct.epochs=20)",
    )

    parser.add_argument(
        "--refit",
        action="store_true",
        help="linear: train the chosen head once more, on the held-out images too",
    )


def _run_parser(verbs: Any) -> None:
    run = _verb(verbs, "run", run_jobs, "Pre-train and evaluate; does only what has no record yet.")
    run.add_argument("--method", action="append", default=[], help="method or recipe; repeatable")
    run.add_argument("--epochs", action="append", default=[], help="the paper's epochs, as 100,200")
    run.add_argument("--table", action="append", default=[], help="all that a table needs")
    run.add_argument("--evals", help="linear, semi, knn, none or protocols, as linear,semi_1pct")
    run.add_argument(
        "--seeds", default="1", help="how many (3: seeds 0, 1, 2), or which (0,2,5); default 1"
    )
    _where(run)
    run.add_argument("--dry-run", action="store_true", help="show the jobs and their cost, only")
    run.add_argument("--replace-corrupt", action="store_true", help="compute corrupt records again")
    run.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    run.add_argument("--processes", type=int, help="processes a job (default: one per GPU)")
    run.add_argument("--workers", type=int, help="loader processes of each")
    run.add_argument("--micro-batch", type=int, help="images of one forward pass of a process")
    run.add_argument("--compile", action="store_true", default=None, help="use torch.compile")
    run.add_argument("--save-every", type=float, metavar="SECONDS", help="between checkpoints")


def _table_parser(verbs: Any) -> None:
    table = _verb(
        verbs, "table", show_table, "Published, measured, difference and verdict of each cell."
    )
    table.add_argument("table", help="a table's number, or all")
    table.add_argument("--format", default="rich", help="rich, md, csv, latex or json")
    table.add_argument(
        "--missing", action="store_true", help="list empty cells and what fills them"
    )
    _where(table)


def _data_parser(verbs: Any) -> None:
    data = verbs.add_parser("data", help="Make or check data.", description="Make or check data.")
    actions = data.add_subparsers(required=True, metavar="ACTION", dest="action")
    make = _verb(
        actions,
        "make",
        make_data,
        "Write the generated data set of the shapes suite, or "
        "download the labelled subsets of ImageNet.",
    )
    make.add_argument("what", choices=("shapes", "subsets"))
    make.add_argument("--root", help="run root, under whose data/ it is written")
    check = _verb(actions, "check", check_data, "Check class folders before anything is queued.")
    check.add_argument("what", help="a folder, or a data set of the site file")
    check.add_argument("--full", action="store_true", help="decode every file")
    check.add_argument("--format", choices=("text", "json"), default="text")
    check.add_argument("--root", help="run root, for shapes")


class Context:
    """What the options --root, --suite, --data and --set come to."""

    def __init__(self, arguments: argparse.Namespace, *, needed: bool = False) -> None:
        from lewel_bench.harness import site, suites
        from lewel_bench.harness.datasets import Datasets

        self.site = site.load()
        root = getattr(arguments, "root", None)
        self.root = Path(root).expanduser().resolve() if root else self.site.resolve(self.site.runs)
        self.suite = suites.get(getattr(arguments, "suite", "paper"), self.site)
        self.settings = [_setting(text) for text in getattr(arguments, "settings", [])]
        self.refit = getattr(arguments, "refit", False)
        own = dict(_role(text) for text in getattr(arguments, "data", []))
        self.datasets = Datasets(self.site, self.root, self.suite, own, needed=needed)


def run_jobs(arguments: argparse.Namespace) -> int:
    """`lewel-bench run`."""
    from lewel_bench.harness.runs import run

    return run(Context(arguments, needed=True), arguments)


def show_table(arguments: argparse.Namespace) -> int:
    """`lewel-bench table`."""
    from lewel_bench.results import fill, render
    from lewel_bench.results.table import TABLES, load
    from lewel_bench.value import unknown

    formats = ["rich", *render.FORMATS]
    if arguments.format not in formats:
        raise ValueError(unknown("format", arguments.format, formats))
    names = TABLES if arguments.table == "all" else (load(arguments.table).id,)
    context = Context(arguments)
    board = _board(context)
    filled = [board.filled(name) for name in names]
    _warn_corrupt(board.store.bad)
    if arguments.missing:
        lacking = [one for table in filled for one in fill.missing(table)]
        return _show_missing(lacking, arguments.format)
    if arguments.format == "json" and len(filled) > 1:
        print(json.dumps([render.as_dict(one) for one in filled], indent=2, ensure_ascii=False))
    elif arguments.format == "rich":
        from lewel_bench.harness import view

        for one in filled:
            view.show_table(one)
    else:
        print("\n".join(render.render(one, arguments.format) for one in filled), end="")
    return 0


def _board(context: Context) -> "Board":
    from lewel_bench.evals.protocols import PROTOCOLS
    from lewel_bench.harness.plan import refit
    from lewel_bench.harness.tables import Board

    linear = [name for name in PROTOCOLS if name.startswith("linear")] if context.refit else []
    settings = [*context.settings, *refit(linear)]
    return Board(context.root, context.suite, context.datasets, settings)


def _show_missing(lacking: list[Any], form: str) -> int:
    if form == "json":
        cells = [
            {
                "cell": one.cell,
                "state": one.state,
                "needs": sorted({need for slot in one.slots for need in slot.needs}),
                "reasons": list(one.reasons),
                "commands": list(one.commands),
            }
            for one in lacking
        ]
        print(json.dumps(cells, indent=2))
        return 0
    if not lacking:
        print("no empty cells")
    for one in lacking:
        print(f"{one.cell}: {one.state} ({one.n} of {one.wanted} seeds)")
        for reason in one.reasons:
            print(f"    {reason}")
        for need in dict.fromkeys(need for slot in one.slots for need in slot.needs):
            print(f"    needs {need}")
        for command in one.commands:
            print(f"    fill with: {command}")
    return 0


def explain_cell(arguments: argparse.Namespace) -> int:
    """`lewel-bench explain`."""
    from lewel_bench.harness.tables import provenance

    context = Context(arguments)
    board = _board(context)
    found = provenance(board, arguments.cell)
    if arguments.format == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    _print_tree(found, 0)
    return 0


def _print_tree(value: Any, depth: int) -> None:
    pad = "  " * depth
    if isinstance(value, dict):
        for name, one in value.items():
            if isinstance(one, dict | list) and one:
                print(f"{pad}{name}:")
                _print_tree(one, depth + 1)
            else:
                print(f"{pad}{name}: {'–' if one in (None, '', [], {}) else one}")
    else:
        for one in value:
            if isinstance(one, dict):
                _print_tree(one, depth)
                print()
            else:
                print(f"{pad}{one}")


def show_status(arguments: argparse.Namespace) -> int:
    """`lewel-bench status`."""
    from dataclasses import asdict

    from lewel_bench.harness.status import ORDER, survey
    from lewel_bench.results.store import Store
    from lewel_bench.value import unknown

    for state in arguments.state:
        if state not in ORDER:
            raise ValueError(unknown("state", state, ORDER))
    context = Context(arguments)
    store = Store(context.root)
    states = list(survey(context.root, store).values())
    shown = [s for s in states if not arguments.state or s.state in arguments.state]
    shown.sort(key=lambda s: ORDER.index(s.state))
    _warn_corrupt(store.bad)
    if arguments.format == "json":
        print(json.dumps({"jobs": [asdict(s) for s in shown]}, indent=2))
        return 0
    from lewel_bench.harness import view

    counts = {state: sum(s.state == state for s in states) for state in ORDER}
    rows = [(s.state, s.key, s.kind, s.name, str(s.seed), s.suite, s.reason) for s in shown]
    view.show_list(("state", "key", "kind", "name", "seed", "suite", "why"), rows)
    print(
        f"{context.root}: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        if states
        else f"{context.root}: no jobs yet"
    )
    return 0


def show_list(arguments: argparse.Namespace) -> int:
    """`lewel-bench ls`."""
    from lewel_bench.harness import listing

    context = Context(arguments)
    columns, rows = listing.listing(arguments.what, context.site, context.root)
    if arguments.format == "json":
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
        return 0
    from lewel_bench.harness import view

    view.show_list(columns, rows)
    return 0


def make_data(arguments: argparse.Namespace) -> int:
    """`lewel-bench data make`."""
    from lewel_bench.harness import material

    return material.make(arguments.what, Context(arguments))


def check_data(arguments: argparse.Namespace) -> int:
    """`lewel-bench data check`."""
    from lewel_bench.harness import material

    return material.check(arguments, Context(arguments, needed=True))


def run_doctor(arguments: argparse.Namespace) -> int:
    """`lewel-bench doctor`."""
    from lewel_bench.harness.doctor import doctor

    return doctor(Context(arguments, needed=True))


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {text!r} is not KEY=VALUE, such as --set optimizer.lr=0.1")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a bare word


def _role(text: str) -> tuple[str, Path]:
    role, equals, path = text.partition("=")
    if not equals:
        return "", Path(text)
    roles = ("pretrain", "linear", "semi", "knn")
    if role not in roles:
        from lewel_bench.value import unknown

        raise ValueError(unknown("data role", role, roles))
    return role, Path(path)


def _warn_corrupt(bad: Sequence[Any]) -> None:
    for one in bad:
        print(
            f"warning: corrupt record {one}; run with --replace-corrupt to compute it again",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
