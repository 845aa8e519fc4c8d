"""The options of the command `lewel-bench`."""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lewel_bench import __version__


def parser() -> argparse.ArgumentParser:
    """The command line; `verb` of what it parses names the function of `cli` that answers."""
    top = argparse.ArgumentParser(
        prog="lewel-bench",
        description="Pre-train LEWEL and its baselines, evaluate them under the paper's protocols, "
        "and print the paper's tables with the measured numbers beside the published ones.",
        epilog="First steps without a GPU: lewel-bench run --suite shapes --method lewel_m "
        "--epochs 200, then lewel-bench table 1 --suite shapes",
    )
    top.add_argument("--version", action="version", version=f"lewel-bench {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB", dest="verb_name")
    _run_parser(verbs)
    _eval_parser(verbs)
    _table_parser(verbs)
    _claims_parser(verbs)
    _figure_parser(verbs)
    _report_parser(verbs)
    _bundle_parsers(verbs)
    _export_parser(verbs)
    explain = _verb(verbs, "explain", "explain", "From a table's cell to everything behind it.")
    explain.add_argument("cell", help="table:row:column, such as table1:lewel_m:200:top1")
    explain.add_argument("--format", choices=("text", "json"), default="text")
    _beside(explain)
    _where(explain)
    status = _verb(verbs, "status", "status", "What every job under the run root is doing.")
    status.add_argument("--format", choices=("text", "json"), default="text")
    status.add_argument("--state", action="append", default=[], help="only jobs in this state")
    status.add_argument("--root", help="run root (default: of the site file, else ./runs)")
    status.add_argument("--cluster", metavar="NAME", help="ask this cluster what lives")
    status.add_argument("--watch", action="store_true", help="again every 5 s, until Ctrl-C")
    _cluster_parsers(verbs)
    gc = _verb(verbs, "gc", "gc", "List checkpoints and weights that no cell needs; remove them.")
    gc.add_argument("--yes", action="store_true", help="remove them")
    gc.add_argument("--root", help="run root (default: of the site file, else ./runs)")
    ls = _verb(verbs, "ls", "ls", "List what there is.")
    ls.add_argument(
        "what",
        help="methods, recipes, protocols, tables, claims, suites, checkpoints, conflicts or runs",
    )
    ls.add_argument("--format", choices=("text", "json"), default="text")
    ls.add_argument("--root", help="run root, for runs")
    _data_parser(verbs)
    doctor = _verb(verbs, "doctor", "doctor", "Check this installation, machine and site file.")
    doctor.add_argument("--root", help="run root (default: of the site file, else ./runs)")
    doctor.add_argument("--cluster", metavar="NAME", help="check this cluster too, with a tiny job")
    return top


def refuse_empty(argv: Sequence[str]) -> None:
    """Raise ValueError for an option whose value is empty, such as "$BUDGET" where that is not set:
    taken for no restriction it would start everything."""
    for option, value in pairwise([*argv, "none"]):
        name, equals, own = option.partition("=")
        value = own if equals else value
        if name.startswith("--") and len(name) > 2 and not value.strip(" ,"):
            raise ValueError(f"{name} is empty: give it a value, or leave it out")


def _cluster_parsers(verbs: Any) -> None:
    cancel = _verb(verbs, "cancel", "cancel", "End jobs on a cluster; asks first.")
    retry = _verb(verbs, "retry", "retry", "Have the next run try failed jobs of a cluster again.")
    for one in (cancel, retry):
        one.add_argument("keys", nargs="*", metavar="KEY|CELL", help="keys or cells of a table")
        one.add_argument("--method", action="append", default=[], help="all of a method or recipe")
        one.add_argument(
            "--table", action="append", default=[], help="all that a table, or all, needs"
        )
        one.add_argument("--suite", default="", dest="only_suite", help="only this suite")
        one.add_argument("--state", action="append", default=[], help="only jobs in this state")
        one.add_argument("--root", help="run root (default: of the site file, else ./runs)")
    cancel.add_argument("--yes", action="store_true", help="do not ask")
    logs = _verb(verbs, "logs", "logs", "What the cluster's jobs of a key or a cell printed.")
    logs.add_argument("key", metavar="KEY|CELL", help="a key, or a cell: table1:lewel_m:200:top1")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it is written")
    logs.add_argument("--root", help="run root (default: of the site file, else ./runs)")


def _verb(verbs: Any, name: str, verb: str, summary: str) -> argparse.ArgumentParser:
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
        "pretrain, linear, semi, knn; voc=VOCDEVKIT and coco=COCO take data in those layouts",
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
        help="linear, detection, segmentation: train the chosen candidate once more, on the "
        "held-out images too",
    )
    parser.add_argument("--lrs", help="rates that detection and segmentation search, as 0.01,0.02")
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        help="what detection and segmentation run on: native (default), detectron2 or mmseg",
    )


def _run_parser(verbs: Any) -> None:
    run = _verb(verbs, "run", "run", "Pre-train and evaluate; does only what has no record yet.")
    run.add_argument(
        "--method",
        action="append",
        default=[],
        help="method or recipe, or a recipe in a file of your own, as ./my_method.py:recipe; "
        "repeatable",
    )
    run.add_argument("--epochs", action="append", default=[], help="the paper's epochs, as 100,200")
    run.add_argument("--table", action="append", default=[], help="all that a table, or all, needs")
    _evaluations(run)
    _where(run)
    _computing(run)
    run.add_argument(
        "--budget",
        metavar="500gpuh",
        help="only the cells that fit into so many device-hours, as estimated: short schedules "
        "first, then what shares their pre-training; the same command goes on with the same cells",
    )
    run.add_argument(
        "--probe",
        type=int,
        metavar="STEPS",
        help="time so many steps of each kind of job that none here is like, for the estimates",
    )


def _evaluations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--evals",
        help="linear, semi, voc, coco, knn, none or protocols, as linear,semi_1pct (default: those "
        "of the paper's tables)",
    )
    parser.add_argument(
        "--seeds", default="1", help="how many (3: seeds 0, 1, 2), or which (0,2,5); default 1"
    )


def _computing(parser: argparse.ArgumentParser) -> None:
    """What says where and how jobs run."""
    parser.add_argument("--dry-run", action="store_true", help="show the jobs and their cost, only")
    parser.add_argument(
        "--replace-corrupt", action="store_true", help="compute corrupt records again"
    )
    parser.add_argument("--cluster", metavar="NAME", help="submit to this SLURM cluster and return")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--jobs", type=int, help="jobs at once on a CPU, whose cores they share")
    parser.add_argument("--processes", type=int, help="processes a job here (default: one per GPU)")
    parser.add_argument("--workers", type=int, help="loader processes of each")
    parser.add_argument("--micro-batch", type=int, help="images of one forward pass of a process")
    parser.add_argument("--compile", action="store_true", default=None, help="use torch.compile")
    parser.add_argument("--save-every", type=float, metavar="SECONDS", help="between checkpoints")


def _eval_parser(verbs: Any) -> None:
    summary = "Evaluate a checkpoint that somebody else trained; does only what has no record yet."
    one = _verb(verbs, "eval", "eval", summary)
    one.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a checkpoint of PyTorch, safetensors or .pkl; nothing in it is executed. May be left "
        "out for a NAME that is here already",
    )
    one.add_argument("--name", required=True, help="what to call it; see ls checkpoints")
    one.add_argument(
        "--format",
        help="whose layout it has (default: recognised): moco, lewel, swav, torchvision, …, or a "
        "TOML file that describes your own",
    )
    one.add_argument(
        "--network",
        help="which network of the file: query or key, online or target, student or teacher "
        "(default: the one that the project evaluates)",
    )
    one.add_argument(
        "--as",
        dest="stands_for",
        metavar="RECIPE",
        help="the recipe that it was trained by, beside whose published values its own shall "
        "stand: moco_v2_200ep",
    )
    one.add_argument("--epochs", type=int, help="the length of its pre-training, without --as")
    one.add_argument(
        "--force", action="store_true", help="go on although the proof speaks against it"
    )
    _evaluations(one)
    _where(one)
    _computing(one)
    one.set_defaults(probe=None, budget=None)


def _beside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with",
        dest="beside",
        action="append",
        default=[],
        metavar="NAME",
        help="a row for this imported checkpoint (see eval) or recipe of your own too; repeatable",
    )


def _table_parser(verbs: Any) -> None:
    table = _verb(
        verbs, "table", "table", "Published, measured, difference and verdict of each cell."
    )
    table.add_argument("table", help="a table's number, or all")
    table.add_argument("--format", default="text", help="text, md, csv, latex, html or json")
    table.add_argument(
        "--missing", action="store_true", help="list empty cells and what fills them"
    )
    _beside(table)
    _where(table)


def _claims_parser(verbs: Any) -> None:
    summary = "Which of the paper's claims the measured numbers support."
    claims = verbs.add_parser(
        "claims",
        help=summary,
        description=f"{summary} Exit code 0: all that were asked for are supported; 1: one is "
        "contradicted; 2: neither, as some are inconclusive or missing.",
    )
    claims.set_defaults(verb="claims")
    claims.add_argument("claims", nargs="*", metavar="CLAIM", help="see ls claims (default: all)")
    claims.add_argument("--format", default="text", help="text, md or json")
    _where(claims)


def _report_parser(verbs: Any) -> None:
    report = _verb(
        verbs,
        "report",
        "report",
        "Write tables, claims, figures, coverage and cost as one HTML file.",
    )
    report.add_argument("out", metavar="OUT.html", help="where to; an older report is replaced")
    report.add_argument("--force", action="store_true", help="replace any file")
    _beside(report)
    _where(report)


def _bundle_parsers(verbs: Any) -> None:
    bundle = _verb(
        verbs, "bundle", "bundle", "Pack records, specs, logs and predictions, with their hashes."
    )
    bundle.add_argument("file", metavar="OUT.zip", help="where to; with --verify what to check")
    bundle.add_argument("--verify", action="store_true", help="check a bundle, byte by byte")
    bundle.add_argument("--weights", action="store_true", help="pack the trained weights too")
    bundle.add_argument("--force", action="store_true", help="replace a file that exists")
    merge = _verb(
        verbs, "merge", "merge", "Bring another lab's records in; what is here never changes."
    )
    merge.add_argument("bundle", metavar="BUNDLE.zip")
    for one in (bundle, merge):
        one.add_argument("--root", help="run root (default: of the site file, else ./runs)")


def _export_parser(verbs: Any) -> None:
    export = _verb(
        verbs, "export", "export", "Write a backbone as another tool's file, with a model card."
    )
    export.add_argument("run", metavar="KEY|NAME", help="a pre-training's key, as status shows it")
    export.add_argument("out", metavar="OUT", help="the file; the card is OUT.md")
    export.add_argument(
        "--to", required=True, help="torchvision, safetensors, timm, detectron2 or mmseg"
    )
    export.add_argument("--licence", help="what the card says about it (default: not stated)")
    export.add_argument("--force", action="store_true", help="replace files that exist")
    export.add_argument("--root", help="run root (default: of the site file, else ./runs)")


def _figure_parser(verbs: Any) -> None:
    summary = "Draw a figure of the paper, a search or a run's curves, as PNG or SVG."
    figure = verbs.add_parser("figure", help=summary, description=summary)
    kinds = figure.add_subparsers(required=True, metavar="FIGURE", dest="figure")
    beta = _verb(kinds, "3a", "figure", "Figure 3a: the loss weight β.")
    width = _verb(kinds, "3b", "figure", "Figure 3b: the dimension c of aligned embeddings.")
    maps = _verb(
        kinds,
        "5",
        "figure",
        "Figure 5: images, two views of each, and the alignment maps of a pre-training.",
    )
    maps.add_argument(
        "run",
        metavar="RUN",
        help="key or folder of a pre-training, a checkpoint in it, or one that the authors of "
        "LEWEL, EMAN (BYOL) or MoCo v2 publish",
    )
    maps.add_argument(
        "--images",
        metavar="FOLDER",
        help="any folder of images (default: the validation images of the run's data)",
    )
    maps.add_argument("--count", type=int, help="how many images (default: 4, or all of fewer)")
    maps.add_argument(
        "--channels",
        help="which maps, as 0,17,31 (default: the --maps that vary most over positions)",
    )
    maps.add_argument("--maps", type=int, help="how many maps (default: 6, or all of fewer)")
    maps.add_argument("--seed", type=int, default=0, help="of the choice of images and views")
    rates = _verb(kinds, "lr", "figure", "The search behind a cell: its metric against the rate.")
    rates.add_argument("cell", help="table:row:column, such as table1:lewel_m:200:top1")
    _beside(rates)
    curves = _verb(kinds, "curves", "figure", "Losses and metrics of runs over time.")
    curves.add_argument("keys", nargs="+", metavar="KEY", help="keys, as status shows them")
    for one in (beta, width, maps, rates, curves):
        one.add_argument("--out", metavar="FILE", help="a .png or .svg (default: figure-….svg)")
        if one in (maps, curves):  # a run is what it is
            one.add_argument("--root", help="run root (default: of the site file, else ./runs)")
        else:
            _where(one)


def _data_parser(verbs: Any) -> None:
    data = verbs.add_parser("data", help="Make or check data.", description="Make or check data.")
    actions = data.add_subparsers(required=True, metavar="ACTION", dest="action")
    make = _verb(
        actions,
        "make",
        "data make",
        "Write the generated data set of the shapes suite, or "
        "download the labelled subsets of ImageNet.",
    )
    make.add_argument("what", choices=("shapes", "subsets"))
    make.add_argument("--root", help="run root, under whose data/ it is written")
    check = _verb(
        actions,
        "check",
        "data check",
        "Check class folders, VOC or COCO data before anything is queued.",
    )
    check.add_argument(
        "what", help="a folder in any of the three layouts, or a name (voc, imagenet)"
    )
    check.add_argument("--full", action="store_true", help="decode every file")
    check.add_argument(
        "--all", action="store_true", help="list every problem, not one line per kind"
    )
    check.add_argument("--format", choices=("text", "json"), default="text")
    check.add_argument("--root", help="run root, for shapes")
