"""`lewel-bench data`: make or check data sets."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from lewel_bench.harness.request import FORM_HELP, Form, Root, Where

if TYPE_CHECKING:
    from lewel_bench.evals.dataset import Dataset
    from lewel_bench.harness.plan.site import Site

# google-research/simclr @383d414: the labelled 1 % and 10 % of ImageNet (12,811 and 128,116 files)
SUBSETS_URL = "https://raw.githubusercontent.com/google-research/simclr/383d4143/imagenet_subsets"

command = App(name="data", help="Make or check data sets.")


@command.command
def make(
    what: Annotated[Literal["shapes", "subsets"], Parameter(help="shapes or subsets.")],
    /,
    *,
    root: Root = None,
) -> int:
    """Generate the images of the shapes suite, or download ImageNet's labelled subsets.

    Both are written to the folder `data` of the run root.

    For example:
      lewel-bench data make shapes
    """
    from lewel_bench.harness.plan import data_check
    from lewel_bench.harness.plan.datasets import LISTS
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(Where(root=root))
    if what == "shapes":
        images = Path(workspace.datasets("shapes", "").root).parent
        data_check.make_shapes(images)
        print(f"the shapes data set is at {images}")
        return 0
    folder = workspace.root / "data"
    folder.mkdir(parents=True, exist_ok=True)
    digests = {"1percent.txt": LISTS["semi_1pct"][1], "10percent.txt": LISTS["semi_10pct"][1]}
    for name, digest in digests.items():
        download(f"{SUBSETS_URL}/{name}", folder / name, digest)
    print(
        "Add to lewel-bench.toml:\n[data]\n"
        f'imagenet_1pct = "{folder / "1percent.txt"}"\n'
        f'imagenet_10pct = "{folder / "10percent.txt"}"'
    )
    return 0


def download(url: str, path: Path, sha256: str) -> None:
    """Write the file at `url` to `path`. Raises ValueError if it cannot be read or has another
    hash; then nothing is written."""
    import hashlib
    import urllib.error
    import urllib.request

    from lewel_bench.files import write_atomically

    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise ValueError(
            f"cannot download {url}: {error}. Fetch it on a machine that can, check that its "
            f"sha256 is {sha256}, and name it in the site file"
        ) from None
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise ValueError(f"{url} has sha256 {actual}, but {sha256} was published: not written")
    write_atomically(path, content)


@command.command
def check(
    what: Annotated[
        str,
        Parameter(
            help="A folder with class folders, VOC or COCO data, or a data set of the site file "
            "(voc, imagenet)."
        ),
    ],
    /,
    *,
    full: Annotated[bool, Parameter(help="Decode every file.")] = False,
    all: Annotated[bool, Parameter(help="List every problem, not one line per kind.")] = False,
    format: Annotated[Form, Parameter(help=FORM_HELP)] = "text",
    root: Root = None,
) -> int:
    """Check class folders, VOC or COCO data before anything is queued.

    Exit code 2: there are problems.

    For example:
      lewel-bench data check imagenet
      lewel-bench data check my_images --full --all
    """
    from dataclasses import asdict

    from lewel_bench.harness.plan import data_check
    from lewel_bench.harness.plan.datasets import NAMED
    from lewel_bench.harness.plan.workspace import open_workspace
    from lewel_bench.pretrain.check import check as check_folder
    from lewel_bench.value import printable, unknown

    workspace = open_workspace(Where(root=root), needs_data=True)
    folder, classes, data = Path(what).expanduser(), None, None
    known = (*NAMED, *workspace.site.data)
    if not folder.is_dir() and what not in known:
        raise ValueError(unknown("folder or data set", what, known))
    if name := _configured(what, workspace.site) or (not folder.is_dir() and what):
        data = workspace.datasets(name, "")
        folder, classes = Path(data.root), Path(data.classes) if data.classes else None
        if data.name == "shapes":
            data_check.make_shapes(folder.parent)
    if layout := _layout(folder):
        return check_annotations(folder, layout, data, full=full, all=all, format=format)
    report = check_folder(folder, classes=classes, full=full)
    if data and not report.problems:
        report.problems.extend(data_check.unlike_published(data, "images"))
    if format == "json":
        print(json.dumps(asdict(report), indent=2, default=str))
        return 2 if report.problems else 0
    for split_name, split in report.splits.items():
        fewest, most = min(split.per_class.values()), max(split.per_class.values())
        print(
            f"{split_name}: {split.images:,} images of {len(split.per_class)} classes ({fewest:,} "
            f"to {most:,} per class), {split.decoded:,} decoded, fingerprint {split.fingerprint}"
        )
    return _print_result(printable(folder), report.notes, report.problems, all)


def check_annotations(
    root: Path,
    layout: str,
    data: "Dataset | None" = None,
    *,
    full: bool = False,
    all: bool = False,
    format: Form = "text",
) -> int:
    """Check the annotations of VOC or COCO data and print the result; the exit code."""
    from lewel_bench.harness.plan import data_check
    from lewel_bench.value import printable

    tasks = data_check.annotated_tasks(root, layout)
    problems, notes = data_check.annotation_problems(root, layout, tasks, full)
    if data and not problems:
        problems = [text for task in tasks for text in data_check.unlike_published(data, task)]
    if format == "json":
        print(
            json.dumps({"root": str(root), "layout": layout, "problems": problems, "notes": notes})
        )
        return 2 if problems else 0
    what = f"{printable(root)} ({layout}, {' and '.join(tasks)})"
    return _print_result(what, notes, problems, all)


def _configured(what: str, site: "Site") -> str:
    """The data set of the site file that a name or a folder stands for; empty: none."""
    from lewel_bench.harness.plan.datasets import NAMED

    if what in site.data:
        return what
    folder = Path(what).expanduser().resolve()
    return next((n for n in NAMED if n in site.data and site.resolve(site.data[n]) == folder), "")


def _layout(root: Path) -> str | None:
    """voc or coco where a folder looks like it; None for class folders."""
    if any(root.glob("VOC[0-9][0-9][0-9][0-9]")):
        return "voc"
    return "coco" if (root / "annotations").is_dir() else None


def _print_result(what: str, notes: Sequence[str], problems: Sequence[str], all: bool) -> int:
    """Print the notes and the problems of a data set, grouped unless `all`; the exit code."""
    from lewel_bench.pretrain.problems import grouped

    for note in notes if all else grouped(notes):
        print(f"note: {note}")
    for problem in problems if all else grouped(problems):
        print(f"problem: {problem}", file=sys.stderr)
    count = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''}" if problems else "sound"
    print(f"{what}: {count}")
    if not all and any(len(texts) > len(grouped(texts)) for texts in (notes, problems)):
        print("--all lists every problem")
    return 2 if problems else 0
