"""Is a detection data set fit for training? Everything wrong with it, before a job is queued."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lewel_bench.evals.detection import coco, voc
from lewel_bench.evals.detection.exif import STORED, is_turned, upright_size
from lewel_bench.pretrain.decode import decode, unreadable
from lewel_bench.pretrain.problems import Problem

Layout = Literal["voc", "coco"]
SAMPLE = 2000  # images of a split that are decoded at least, unless all are
SHOWN = 30  # class names in a message
_Expected = tuple[str, int, int]  # the annotation's name for errors, height, width


@dataclass
class Report:
    """`problems` stop a run; `notes` say what was left out. `images` and `objects` were looked at;
    `classes` are of the training split."""

    root: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)  # split -> count
    objects: dict[str, int] = field(default_factory=dict)  # split -> sound ones
    classes: tuple[str, ...] = ()


def problems(root: Path, layout: Layout, full: bool = False) -> tuple[list[str], list[str]]:
    """What stops a run on this data set, and notes; a sentence each, naming file and object.

    With `full` every image is decoded, else at least SAMPLE of each split.
    """
    report = check(root, layout, full)
    return report.problems, report.notes


def check(root: Path, layout: Layout, full: bool = False) -> Report:
    """What is in a VOCdevkit or a COCO folder and what is wrong with it.

    Every annotation is parsed and the size of every image compared. Nothing is raised: a folder
    that cannot be read at all is a problem too.
    """
    report = Report(Path(root))
    (_voc if layout == "voc" else _coco)(report, full)
    for split, count in report.objects.items():
        if not count and report.images.get(split) and not report.problems:
            report.problems.append(
                f"{root}: no image of {split} has an object: there is nothing to learn or measure"
            )
    return report


def _voc(report: Report, full: bool) -> None:
    root = report.root
    try:
        train, test = voc.splits(root)
    except ValueError as error:
        report.problems.append(str(error))
        return
    classes: set[str] | None = None
    seen: dict[tuple[int, str], str] = {}
    for sets in (train, test):
        split = "+".join(f"{year} {name}" for year, name in sets)
        annotations, expected = _voc_split(report, sets, split, seen)
        if classes is None:
            own = voc.classes(root, train)
            classes = set(own or (n for a in annotations for n in a.names))
            report.classes = tuple(sorted(classes))
            report.notes += _alike(root, classes)
        for annotation in annotations:
            report.problems += annotation.problems
            known = ", ".join(report.classes[:SHOWN]) + (", …" if report.classes[SHOWN:] else "")
            report.problems += [
                Problem(
                    annotation.path,
                    f"an object has an unknown class: known classes are {known}",
                    f"object {number} has the unknown class {name!r}: known classes are {known}",
                )
                for number, name in zip(annotation.numbers, annotation.names, strict=True)
                if name not in classes
            ]
        report.images[split] = len(annotations)
        report.objects[split] = sum(len(a.names) for a in annotations)
        if sets == test and report.objects[split] == sum(sum(a.difficult) for a in annotations) > 0:
            reason = f"every object of {split} is marked difficult, so there is no AP to measure"
            report.notes.append(Problem(root, reason))
        report.problems += _images(expected, full)


def _voc_split(
    report: Report, sets: voc.Sets, split: str, seen: dict[tuple[int, str], str]
) -> tuple[list[voc.Annotation], dict[Path, _Expected]]:
    names = []
    for year, name in sets:
        listed, problems = voc.listed(report.root, year, name)
        report.problems += problems
        names += [(year, image) for image in listed]
    both = [key for key in names if key in seen]
    if both:
        report.problems.append(
            f"{report.root}: {len(both)} images of {split} are in {seen[both[0]]} too, first "
            f"{both[0][1]!r}: an image belongs to one split"
        )
    seen.update(dict.fromkeys(names, split))
    annotations = voc.parse_all(report.root, names)
    files = {
        report.root / file: (str(annotation.path), annotation.height, annotation.width)
        for file, annotation in zip(voc.image_files(report.root, names), annotations, strict=True)
    }
    return annotations, files


def _alike(root: Path, classes: Iterable[str]) -> list[str]:
    """A note on class names that differ in case only."""
    same: dict[str, list[str]] = {}
    for name in sorted(classes):
        same.setdefault(name.casefold(), []).append(name)
    return [
        Problem(root, f"the classes {' and '.join(names)} differ in case only: they are learned "
                "and measured apart")
        for names in same.values()
        if len(names) > 1
    ]  # fmt: skip


def _coco(report: Report, full: bool) -> None:
    for split in ("train2017", "val2017"):
        annotations = coco.parse(report.root, split)
        report.problems += annotations.problems
        report.notes += annotations.notes
        report.images[split] = len(annotations.images)
        report.objects[split] = sum(
            not record.get("iscrowd")
            for records in annotations.objects.values()
            for record in records
        )
        names = tuple(category["name"] for category in annotations.categories)
        if split == "train2017":
            report.classes = names
        elif names and report.classes and names != report.classes:
            other = sorted(set(names) ^ set(report.classes))
            which = f"first {other[0]!r}" if other else "in another order of their ids"
            reason = f"has other categories than the training split, {which}: give both the same"
            report.problems.append(Problem(annotations.path, reason))
        expected = {
            report.root / coco.image_file(split, image): (
                f"{annotations.path}: image {image['id']}",
                image["height"],
                image["width"],
            )
            for image in annotations.images
        }
        report.problems += _images(expected, full)


def _images(expected: dict[Path, _Expected], full: bool) -> list[str]:
    """Images that are missing, unreadable, of another size than expected, or cannot be decoded."""
    every = 1 if full else max(1, len(expected) // SAMPLE)
    decoded = set(list(expected)[::every])

    def look(entry: tuple[Path, _Expected]) -> str | None:
        path, (where, height, width) = entry
        try:
            size = upright_size(path)
            if height and size != (height, width):
                return _size_problem(path, size, where, height, width)
        except FileNotFoundError:
            advice = "add the file or remove the entry"
            return Problem(
                path,
                f"missing, but annotated: {advice}",
                f"missing, but {where} describes it: {advice}",
            )
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, …
        except Exception as error:
            reason = getattr(error, "strerror", None) or unreadable(error)
            return Problem(
                path,
                "is not a readable image: replace the file",
                f"is not a readable image ({reason}): replace the file",
            )
        if path in decoded:
            try:
                decode(path)
            except ValueError as error:
                return Problem.of(error)
        return None

    with ThreadPoolExecutor(8) as pool:
        return [problem for problem in pool.map(look, expected.items()) if problem]


def _size_problem(
    path: Path, size: tuple[int, int], where: str, height: int, width: int
) -> Problem:
    """An image of `size` (height, width), that is annotated with another one."""
    if size == (width, height) and is_turned(path):
        sizes = f"is shown as {size[1]}x{size[0]} px, but {where} gives {width}x{height}"
        return Problem(path, STORED, f"{STORED} (it {sizes})")
    advice = "correct the annotation or replace the image"
    return Problem(
        path,
        f"differs in size from its annotation: {advice}",
        f"the image is {size[1]}x{size[0]} px, but {where} gives {width}x{height}: {advice}",
    )
