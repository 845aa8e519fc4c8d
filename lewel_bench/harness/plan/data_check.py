"""The data of planned jobs, before anything is queued: checked, or generated."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lewel_bench.evals.dataset import Dataset
from lewel_bench.files import LARGEST_JSON, read_regular, write_atomically
from lewel_bench.harness.plan.datasets import NAMED, shapes_id, stamp
from lewel_bench.harness.plan.plan import Job
from lewel_bench.pretrain.problems import grouped

if TYPE_CHECKING:
    from lewel_bench.harness.plan.workspace import Workspace

VOC_SETS = {"detection": "Main", "segmentation": "Segmentation"}  # the lists that a task reads


def prepare(todo: Sequence[Job], workspace: "Workspace") -> None:
    """Check the data of the jobs and the engines that they run on. Raises ValueError that names
    every problem found."""
    training = [j for j in todo if not j.is_selection]
    engines = {j.protocol.engine_name() for j in training if j.protocol}
    for engine in sorted(filter(None, engines - {"native"})):
        from lewel_bench.evals.engines import require

        require(engine, workspace.site.pythons)
    for job in {(j.data.root, _task(j)): j for j in todo}.values():
        if job.data.id != shapes_id():
            _check_once(job.data, _task(job), workspace.root)
        elif Path(job.data.root).exists():
            generated(job)


def generate(todo: Sequence[Job]) -> None:
    """Make the generated images that the jobs read and that are not there yet."""
    for job in {j.data.root: j for j in todo}.values():
        generated(job)


def generated(job: Job) -> None:
    """Make the images of a job where they are generated ones and not there yet."""
    if job.data.id == shapes_id():
        make_shapes(Path(job.data.root).parent)


def make_shapes(folder: Path) -> None:
    """Generate the images of the shapes suite unless they exist."""
    from lewel_bench.pretrain import shapes

    if not folder.exists():
        print(f"generating the images of the shapes suite in {folder} (once)", file=sys.stderr)
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
            f"the data set {data.name} at {data.root} has problems:\n{listed}\n"
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
        problems, notes = annotation_problems(root, data.layout, [task])
    return problems or unlike_published(data, task), notes


def _print_notes(notes: Sequence[str], stream: TextIO) -> None:
    for note in notes:
        print(f"note: {note}", file=stream)


def unlike_published(data: Dataset, task: str) -> list[str]:
    """How a published data set differs from what was published."""
    from lewel_bench.harness.plan.contents import unlike_published

    return unlike_published(data, task)


def annotated_tasks(root: Path, layout: str) -> list[str]:
    """The tasks that VOC or COCO data at `root` has annotations for; of VOC at least one."""
    if layout != "voc":
        return ["detection"]
    listed = [t for t, sets in VOC_SETS.items() if any(root.glob(f"VOC*/ImageSets/{sets}"))]
    return listed or list(VOC_SETS)


def annotation_problems(
    root: Path, layout: str, tasks: Sequence[str], full: bool = False
) -> tuple[list[str], list[str]]:
    """Problems and notes of every annotation that detection, and mask that segmentation reads."""
    from lewel_bench.evals.detection import annotation_check as boxes
    from lewel_bench.evals.segmentation import mask_check as masks

    problems: list[str] = []
    notes: list[str] = []
    for task in tasks:
        if task == "segmentation":
            result = masks.problems(root)
        else:
            result = boxes.problems(root, "coco" if layout == "coco" else "voc", full)
            if layout == "voc" and not result[0]:
                from lewel_bench.harness.plan.contents import voc_without_2007

                problems += voc_without_2007(root)
        problems += result[0]
        notes += result[1]
    return problems, notes
