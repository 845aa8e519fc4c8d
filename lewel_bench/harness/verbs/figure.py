"""`lewel-bench figure`: figures of the paper, a learning-rate search, or curves of runs."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from lewel_bench.harness.request import CELL_HELP, Root, Rows, Where

if TYPE_CHECKING:
    from lewel_bench.harness.board.board import Board

KEYS_IN_NAME = 3  # of the runs whose curves a file shows

Out = Annotated[
    Path | None,
    Parameter(metavar="FILE", help="A .png or .svg file (default: figure-….svg)."),
]

command = App(
    name="figure",
    help="Draw a figure of the paper, a learning-rate search or the curves of runs as PNG or SVG.",
)


@command.command(name="3a")
def figure_3a(*, out: Out = None, where: Where = Where()) -> int:
    """Figure 3a: the loss weight β.

    For example:
      lewel-bench figure 3a --suite shapes
    """
    return _draw_ablation("3a", out, where)


@command.command(name="3b")
def figure_3b(*, out: Out = None, where: Where = Where()) -> int:
    """Figure 3b: the dimension c of the aligned embeddings.

    For example:
      lewel-bench figure 3b --suite shapes
    """
    return _draw_ablation("3b", out, where)


@command.command(name="5")
def figure_5(
    run: Annotated[
        str,
        Parameter(
            help="Key or folder of a pre-training, a checkpoint in it, or a checkpoint that the "
            "authors of LEWEL, EMAN (BYOL) or MoCo v2 published."
        ),
    ],
    /,
    *,
    images: Annotated[
        Path | None,
        Parameter(
            metavar="FOLDER",
            help="Any folder of images (default: the validation images of the run's data).",
        ),
    ] = None,
    count: Annotated[int | None, Parameter(help="Number of images (default: 4).")] = None,
    channels: Annotated[
        str | None,
        Parameter(
            metavar="N,N",
            help="Numbers of the maps to show: 0,17,31 (default: those that vary most over "
            "positions).",
        ),
    ] = None,
    maps: Annotated[int | None, Parameter(help="Number of maps (default: 6).")] = None,
    seed: Annotated[int, Parameter(help="Seed for images and views (default: 0).")] = 0,
    out: Out = None,
    root: Root = None,
) -> int:
    """Figure 5: images, two views of each, and the alignment maps of a pre-training.

    For example:
      lewel-bench figure 5 KEY --images photos --count 3
    """
    from lewel_bench.harness.figures import maps as alignment
    from lewel_bench.harness.plan.workspace import open_workspace
    from lewel_bench.results.figures import draw

    path = _file("5", run, out)
    content = alignment.figure(
        open_workspace(Where(root=root)).root,
        run,
        draw.format_of(path),
        folder=images,
        count=count,
        channels=channels,
        map_count=maps,
        seed=seed,
    )
    return _write(path, content)


@command.command(name="lr")
def learning_rates(
    cell: Annotated[str, Parameter(help=CELL_HELP)],
    /,
    *,
    out: Out = None,
    rows: Rows = Rows(),
    where: Where = Where(),
) -> int:
    """The learning-rate search behind a cell: its metric against the learning rate.

    For example:
      lewel-bench figure lr table1:lewel_m:200:top1 --suite shapes
    """
    from lewel_bench.harness.figures.lr_search import search
    from lewel_bench.results.figures import draw

    path = _file("lr", cell, out)
    format = draw.format_of(path)
    return _write(path, draw.draw(search(_board(where, rows), cell), format))


@command.command(name="curves")
def curves(
    *keys: Annotated[
        str, Parameter(metavar="KEY", help="Keys of jobs, as `status` shows them.", required=True)
    ],
    out: Out = None,
    root: Root = None,
) -> int:
    """Losses and metrics of runs over time.

    For example:
      lewel-bench figure curves KEY KEY --out curves.png
    """
    from lewel_bench.harness.figures.curves import curves as drawn
    from lewel_bench.results.figures import draw

    more = [f"{len(keys) - KEYS_IN_NAME}-more"] if len(keys) > KEYS_IN_NAME else []
    path = _file("curves", "-".join([*keys[:KEYS_IN_NAME], *more]), out)
    format = draw.format_of(path)
    return _write(path, draw.draw(drawn(_board(Where(root=root)), keys), format))


def _draw_ablation(name: str, out: Path | None, where: Where) -> int:
    from lewel_bench.harness.figures.ablation import ablation
    from lewel_bench.results.figures import draw

    path = _file(name, "", out)
    format = draw.format_of(path)
    chart, missing = ablation(_board(where), name)
    content = draw.draw(chart, format)
    if missing:
        print(f"not every point is measured; fill with: {missing}", file=sys.stderr)
    return _write(path, content)


def _board(where: Where, rows: Rows = Rows()) -> "Board":
    from lewel_bench.harness.board.reader import open_board, warn

    board = open_board(where, rows)
    warn(board.store)
    return board


def _file(name: str, subject: str, out: Path | None) -> Path:
    """The file of a figure: as requested, else named for what it shows."""
    safe = re.sub(r"[^\w.-]+", "-", Path(subject).name)
    return out or Path(f"figure-{name}{'-' if safe else ''}{safe}.svg")


def _write(path: Path, content: bytes) -> int:
    from lewel_bench.files import write_atomically

    write_atomically(path, content)
    print(path)
    return 0
