"""Data before anything is queued: made, downloaded, checked."""

import argparse
import hashlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lewel_bench.evals.dataset import Dataset
from lewel_bench.files import LARGEST_JSON, read_regular, write_atomically
from lewel_bench.harness.plan.datasets import LISTS, NAMED, shapes_id, stamp
from lewel_bench.harness.plan.plan import Job
from lewel_bench.harness.plan.site import Site
from lewel_bench.pretrain.problems import grouped
from lewel_bench.value import printable, unknown

if TYPE_CHECKING:
    from lewel_bench.harness.cli import Context

# google-research/simclr @383d414: the labelled 1 % and 10 % of ImageNet (12,811 and 128,116 files)
SUBSETS_URL = "https://raw.githubusercontent.com/google-research/simclr/383d4143/imagenet_subsets"
VOC_SETS = {"detection": "Main", "segmentation": "Segmentation"}  # the lists that a task reads
SUBSETS = {"1percent.txt": LISTS["semi_1pct"][1], "10percent.txt": LISTS["semi_10pct"][1]}


def prepare(todo: Sequence[Job], context: "Context") -> None:
    """Check the data of the jobs and the engines that they run on. Raises ValueError that names
    every problem found."""
    training = [j for j in todo if not j.is_selection]
    engines = {j.protocol.engine_name() for j in training if j.protocol}
    for engine in sorted(filter(None, engines - {"native"})):
        from lewel_bench.evals.engines import require

        require(engine, context.site.pythons)
    for job in {(j.data.root, _task(j)): j for j in todo}.values():
        if job.data.id != shapes_id():
            _check_once(job.data, _task(job), context.root)
        elif Path(job.data.root).exists():
            generated(job)


def generate(todo: Sequence[Job]) -> None:
    """Make the generated images that the jobs read and that are not there yet."""
    for job in {j.data.root: j for j in todo}.values():
        generated(job)


def generated(job: Job) -> None:
    """Make the images of a job where they are generated ones and not there yet."""
    if job.data.id == shapes_id():
        _make_shapes(Path(job.data.root).parent)


def _make_shapes(folder: Path) -> None:
    from lewel_bench.pretrain import shapes

    if not folder.exists():
        print(f"making the images of the shapes suite in {folder}, once", file=sys.stderr)
    shapes.make(folder)


def _task(job: Job) -> str:
    """What a job reads of its data."""
    return job.protocol.runner if job.protocol and job.data.layout != "folders" else "images"


def _check_once(data: Dataset, task: str, root: Path) -> None:
    """Check a data set, unless it was sound and has not changed since, and print the notes on it,
    such as which files are left out. Raises ValueError with its problems."""
    remembered = root / "data" / "checked.json"
    try:
        sound = json.loads(read_regular(remembered, LARGEST_JSON))
    except (OSError, ValueError):
        sound = {}
    now = stamp(Path(data.root))
    place = data.root if task == "images" else f"{data.root} {task}"
    if data.id in NAMED:  # which must hold more than a folder of one's own
        place += f" as {data.id}"
    known = sound.get(place)
    if isinstance(known, dict) and known["stamp"] == now:
        _print_notes(known["notes"], sys.stderr)
        return
    print(f"checking {data.name} at {data.root}", file=sys.stderr)
    problems, notes = _problems(data, task)
    if problems:
        listed = "\n".join(f"  {line}" for line in grouped(problems))
        raise ValueError(
            f"the data set {data.name} at {data.root} cannot be used as it is:\n{listed}\n"
            f"Correct or remove these files (`lewel-bench data check {data.root} --all` lists all)"
        )
    _print_notes(grouped(notes), sys.stderr)
    if root.is_dir():  # --dry-run makes none
        with suppress(OSError):  # another user's, or a full disk: it is checked again next time
            known = {"stamp": now, "notes": grouped(notes)}
            remembered.parent.mkdir(exist_ok=True)
            write_atomically(remembered, json.dumps({**sound, place: known}))


def _problems(data: Dataset, task: str) -> tuple[list[str], list[str]]:
    """Problems and notes of what a task reads of a data set."""
    root = Path(data.root)
    if data.layout == "folders":
        from lewel_bench.pretrain.check import check

        report = check(root, classes=Path(data.classes) if data.classes else None)
        problems, notes = report.problems, report.notes
    else:
        problems, notes = _annotations(root, data.layout, [task])
    return problems or _unlike_published(data, task), notes


def _print_notes(notes: Sequence[str], stream: TextIO) -> None:
    for note in notes:
        print(f"note: {note}", file=stream)


def _unlike_published(data: Dataset, task: str) -> list[str]:
    from lewel_bench.harness.plan.contents import unlike_published

    return unlike_published(data, task)


def _annotations(
    root: Path, layout: str, tasks: Sequence[str], full: bool = False
) -> tuple[list[str], list[str]]:
    """Problems and notes of every annotation that detection, and mask that segmentation reads."""
    from lewel_bench.evals.detection import check as boxes
    from lewel_bench.evals.segmentation import check as masks

    problems: list[str] = []
    notes: list[str] = []
    for task in tasks:
        if task == "segmentation":
            found = masks.problems(root)
        else:
            found = boxes.problems(root, "coco" if layout == "coco" else "voc", full)
            if layout == "voc" and not found[0]:
                from lewel_bench.harness.plan.contents import voc_without_2007

                problems += voc_without_2007(root)
        problems += found[0]
        notes += found[1]
    return problems, notes


def make(what: str, context: "Context") -> int:
    """`lewel-bench data make shapes|subsets`."""
    if what == "shapes":
        data = context.datasets("shapes", "")
        _make_shapes(Path(data.root).parent)
        print(f"the shapes data set is at {Path(data.root).parent}")
        return 0
    folder = context.root / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in SUBSETS.items():
        _download(f"{SUBSETS_URL}/{name}", folder / name, digest)
    print(
        "Add to lewel-bench.toml:\n[data]\n"
        f'imagenet_1pct = "{folder / "1percent.txt"}"\n'
        f'imagenet_10pct = "{folder / "10percent.txt"}"'
    )
    return 0


def _download(url: str, path: Path, digest: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise ValueError(
            f"cannot download {url}: {error}. Fetch it on a machine that can, check that its "
            f"sha256 is {digest}, and name it in the site file"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(f"{url} has sha256 {found}, but {digest} was published: not written")
    write_atomically(path, content)


def check(arguments: argparse.Namespace, context: "Context") -> int:
    """`lewel-bench data check`: exit code 2 when there are problems."""
    from lewel_bench.pretrain.check import check as check_folder

    root, classes, data = Path(arguments.what).expanduser(), None, None
    named = (*NAMED, *context.site.data)
    if not root.is_dir() and arguments.what not in named:
        raise ValueError(unknown("folder or data set", arguments.what, named))
    if name := _configured(arguments.what, context.site) or (not root.is_dir() and arguments.what):
        data = context.datasets(name, "")
        root, classes = Path(data.root), Path(data.classes) if data.classes else None
        if data.name == "shapes":
            _make_shapes(root.parent)
    if layout := _layout(root):
        return _check_annotations(root, layout, arguments, data)
    report = check_folder(root, classes=classes, full=arguments.full)
    if data and not report.problems:
        report.problems.extend(_unlike_published(data, "images"))
    if arguments.format == "json":
        print(json.dumps(asdict(report), indent=2, default=str))
        return 2 if report.problems else 0
    for name, split in report.splits.items():
        fewest, most = min(split.per_class.values()), max(split.per_class.values())
        print(
            f"{name}: {split.images:,} images of {len(split.per_class)} classes ({fewest:,} to "
            f"{most:,} a class), {split.decoded:,} decoded, fingerprint {split.fingerprint}"
        )
    return _print(printable(root), report.notes, report.problems, arguments.all)


def _configured(what: str, site: Site) -> str:
    """The data set of the site file that a name or a folder stands for; empty: none of it."""
    if what in site.data:
        return what
    folder = Path(what).expanduser().resolve()
    return next((n for n in NAMED if n in site.data and site.resolve(site.data[n]) == folder), "")


def _layout(root: Path) -> str | None:
    """voc or coco where a folder looks like it; None for class folders."""
    if any(root.glob("VOC[0-9][0-9][0-9][0-9]")):
        return "voc"
    return "coco" if (root / "annotations").is_dir() else None


def _check_annotations(
    root: Path, layout: str, arguments: argparse.Namespace, data: Dataset | None = None
) -> int:
    tasks = ["detection"]
    if layout == "voc":
        listed = [t for t, sets in VOC_SETS.items() if any(root.glob(f"VOC*/ImageSets/{sets}"))]
        tasks = listed or list(VOC_SETS)
    problems, notes = _annotations(root, layout, tasks, arguments.full)
    if data and not problems:
        problems = [text for task in tasks for text in _unlike_published(data, task)]
    if arguments.format == "json":
        print(
            json.dumps({"root": str(root), "layout": layout, "problems": problems, "notes": notes})
        )
        return 2 if problems else 0
    what = f"{printable(root)} ({layout}, {' and '.join(tasks)})"
    return _print(what, notes, problems, arguments.all)


def _print(what: str, notes: Sequence[str], problems: Sequence[str], every: bool) -> int:
    """Print the notes and the problems of a data set, grouped unless `every`; the exit code."""
    _print_notes(notes if every else grouped(notes), sys.stdout)
    for problem in problems if every else grouped(problems):
        print(f"problem: {problem}", file=sys.stderr)
    count = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''}" if problems else "sound"
    print(f"{what}: {count}")
    if not every and any(len(x) > len(grouped(x)) for x in (notes, problems)):
        print("--all lists every place")
    return 2 if problems else 0
