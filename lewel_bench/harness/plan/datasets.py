"""Where data sets are, what stands for them in a key, and what to say when one is missing."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from lewel_bench.evals.dataset import Dataset, Layout
from lewel_bench.files import LARGEST_JSON, open_regular, read_regular, write_atomically
from lewel_bench.harness.plan.site import FILE, Site
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.pretrain.shapes_revision import REVISION
from lewel_bench.value import printable, unknown

READER = 2  # raised when other files of a folder are read, so that none is remembered as it was
NAMED = ("imagenet", "imagenet100", "cifar10", "shapes", "voc", "coco")
LAYOUTS: dict[str, Layout] = {
    "voc": "voc",
    "coco": "coco",
    "shapes_voc": "voc",
    "shapes_coco": "coco",
}
# Labelled subsets of google-research/simclr @383d414 imagenet_subsets, with their sha256
LISTS = {
    "semi_1pct": (
        "imagenet_1pct",
        "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    ),
    "semi_10pct": (
        "imagenet_10pct",
        "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
    ),
}
# What a site file may name in [data]: data sets, class lists of them, labelled subsets
CONFIGURED = (*NAMED, *(f"{name}_classes" for name in NAMED), *(name for name, _ in LISTS.values()))
READ = re.compile(  # the folders of the layouts, in which links are followed
    r"train\w*|val\w*|test|VOC\d{4}|JPEGImages|[Aa]nnotations|ImageSets|Main|Segmentation\w*"
)
IN100_MD5 = "9974508e5d4cc0098b70e8b6a0fe6067"  # of HobbitLong/CMC @7b227be imagenet100.txt
SHAPES: dict[Layout, str] = {"folders": "imagenet", "voc": "VOCdevkit", "coco": "coco"}
HOW = """\
  in lewel-bench.toml (here or in a parent folder):
      [data]
      {name} = "/path/to/{name}"      # holds {holds}
  or on the command line:  --data {option}/path/to/{name}
  or try the CPU-sized suite, which makes its own images:  --suite shapes"""
HOLDS = {
    "folders": "train/CLASS/*.JPEG and val/CLASS/*.JPEG",
    "voc": "VOC2007 and VOC2012, each with JPEGImages, Annotations, ImageSets",
    "coco": "annotations, train2017, val2017",
}


class MissingData(ValueError):
    """A data set that a command needs is not configured or not there."""


class NotConfigured(MissingData):
    """A data set that no site file names."""


class Datasets:
    """The data sets of one command: the site's, replaced by those of the command line.

    `own` maps a role ("pretrain", "linear", "semi", "knn", or "" for all four) to a user's class
    folders, "voc" and "coco" to a user's data in those layouts; such a data set is known by the
    fingerprint of its files.
    """

    def __init__(
        self,
        site: Site,
        root: Path,
        suite: Suite,
        own: Mapping[str, Path] | None = None,
        *,
        needed: bool = True,
    ) -> None:
        for name in site.data:
            if needed and name not in CONFIGURED:
                what = unknown("data set", name, CONFIGURED)
                raise ValueError(f"site file {site.path}, section [data]: {what}")
        self.site, self.root, self.suite, self.own = site, root, suite, dict(own or {})
        self.needed = needed  # False: only keys are asked for, as tables do
        self.known: dict[tuple[str, str], Dataset] = {}
        self.used: set[str] = set()  # roles and layouts of `own`

    def __call__(self, name: str, role: str) -> Dataset:
        """The data set `name` for a role. Raises MissingData with what to configure."""
        if (name, role) not in self.known:
            self.known[name, role] = self._find(name, role)
        return self.known[name, role]

    def unused(self) -> list[str]:
        """What was given on the command line and never asked for, as it was given. Raises
        MissingData where it is not there."""
        left = {role: path for role, path in self.own.items() if role not in self.used}
        for role, path in left.items():
            _resolved(path, LAYOUTS.get(role, "folders"))
        return [f"{role}={path}" if role else str(path) for role, path in left.items()]

    def _find(self, name: str, role: str) -> Dataset:
        layout = LAYOUTS.get(name, "folders")
        mine = layout if layout != "folders" else role if role in self.own else ""
        if mine in self.own:
            self.used.add(mine)
            return self._folder(self.own[mine], layout)
        if name.startswith("folder:"):  # a suite of the site file
            return self._folder(Path(name.removeprefix("folder:")))
        if name.startswith("shapes"):
            root = (
                self.site.resolve(self.site.data["shapes"]) if "shapes" in self.site.data else None
            )
            folder = (root or self.root / "data" / shapes_id()) / SHAPES[layout]
            return Dataset(name=name, id=shapes_id(), root=str(folder), layout=layout)
        if not self.needed:
            return Dataset(name=name, id=name, root="", layout=layout)
        return self._named(name, role)

    def _named(self, name: str, role: str) -> Dataset:
        configured = self.site.data
        classes = configured.get(f"{name}_classes")
        root = configured.get(name) or (configured.get("imagenet") if classes else None)
        if root is None:
            what = f"suite {self.suite.name} needs the data set {name}, which is not configured:\n"
            more = ""
            if name == "imagenet100":
                more = '\n  (or imagenet together with imagenet100_classes = "imagenet100.txt")'
            if name in LAYOUTS:
                more = "\n  or leave detection and segmentation out:  --evals linear,semi"
            raise NotConfigured(what + _how(name) + more)
        folder = self.site.resolve(root)
        if not folder.is_dir():
            raise MissingData(
                f"the data set {name} is not at {folder}: correct the path\n{_how(name)}"
            )
        return Dataset(
            name=name,
            id=name,
            root=str(folder),
            layout=LAYOUTS.get(name, "folders"),
            classes=str(self._listed(classes, IN100_MD5, "md5")) if classes else None,
            lists=self._lists(name, role),
        )

    def _lists(self, name: str, role: str) -> dict[str, str]:
        """The published labelled subsets of ImageNet; nothing else stands for its 1 % and 10 %."""
        if name != "imagenet" or role != "semi":
            return {}
        contents = {}
        for protocol, (key, digest) in LISTS.items():
            if key not in self.site.data:
                raise MissingData(
                    f"the 1 % and 10 % subsets of ImageNet are published lists: name {key} in "
                    f"{FILE}, section [data] (`lewel-bench data make subsets` downloads them)"
                )
            contents[protocol] = str(self._listed(self.site.data[key], digest, "sha256"))
        return contents

    def _listed(self, text: str, digest: str, kind: str) -> Path:
        """The path of a published list, whose content is checked: a key relies on it."""
        path = self.site.resolve(text)
        try:
            content = read_regular(path, LARGEST_JSON).replace(b"\r\n", b"\n")
        except OSError as error:
            raise MissingData(f"cannot read the list {path}: {error.strerror}") from None
        actual = hashlib.new(kind, content).hexdigest()
        if actual != digest:
            raise MissingData(
                f"{path} is not the published list ({kind} {actual}, published {digest}). To use a "
                "list of your own, make class folders from it and pass them with --data"
            )
        return path

    def _folder(self, path: Path, layout: Layout = "folders") -> Dataset:
        folder = _resolved(path, layout)
        mark = self._fingerprint(folder, layout)
        return Dataset(name=folder.name, id=f"folder-{mark}", root=str(folder), layout=layout)

    def _fingerprint(self, folder: Path, layout: Layout) -> str:
        """Of the names and sizes of all files, remembered until a class folder changes, where there
        is a run root that can be written."""
        remembered = self.root / "data" / "fingerprints.json"
        try:
            known = json.loads(read_regular(remembered, LARGEST_JSON))
        except (OSError, ValueError):
            known = {}
        now = stamp(folder)
        entry = known.get(str(folder))
        if entry and entry["stamp"] == now:
            return str(entry["fingerprint"])
        known[str(folder)] = {"stamp": now, "fingerprint": _measure(folder, layout)}
        if self.root.is_dir():  # a look makes none
            with suppress(OSError):
                remembered.parent.mkdir(exist_ok=True)
                write_atomically(remembered, json.dumps(known, indent=1))
        return str(known[str(folder)]["fingerprint"])


def _how(name: str) -> str:
    layout = LAYOUTS.get(name, "folders")
    option = "" if layout == "folders" else f"{layout}="
    return HOW.format(name=name, holds=HOLDS[layout], option=option)


def _measure(folder: Path, layout: Layout) -> str:
    if layout == "folders":
        from lewel_bench.pretrain.check import fingerprint
        from lewel_bench.pretrain.folder import read_folder

        both = [fingerprint(read_folder(folder, split)) for split in ("train", "val")]
        return "".join(mark[:6] for mark in both)
    digest = hashlib.sha256()
    for place, _, files in sorted(_walk(folder)):
        for file in sorted(files):
            path = Path(place, file)
            line = f"{path.relative_to(folder)}\0{_time(path)[1]}\n"
            digest.update(line.encode(errors="surrogateescape"))
            if _annotates(file):
                # what cannot be read (a pipe, a dangling link) is refused by name before any work
                with suppress(OSError), open_regular(path) as content:
                    while part := content.read(2**20):
                        digest.update(part)
    return digest.hexdigest()[:12]


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, in order, and through links to the folders that a layout reads (another may lead
    to the root of the disk): each folder once, as links may form a loop."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        links = {name for name in folders if Path(place, name).is_symlink()}
        folders[:] = sorted(n for n in folders if n not in links or READ.fullmatch(n))
        yield place, folders, files


def _resolved(path: Path, layout: Layout) -> Path:
    folder = path.expanduser().resolve()
    if not folder.is_dir():
        raise MissingData(
            f"there is no folder {folder}: --data takes a folder that holds {HOLDS[layout]}"
        )
    if printable(folder) != str(folder):
        raise ValueError(
            f"--data {printable(folder)}: the path has control characters or is not UTF-8: "
            "rename the folder"
        )
    return folder


def shapes_id() -> str:
    """What stands for the generated images in keys: they follow from the generator's revision."""
    return f"shapes-r{REVISION}"


def stamp(folder: Path) -> list[int]:
    """Changes when a file is added to, or removed from, a class folder, or an annotation is edited.

    Of class folders, which hold a million files, only the folders are looked at.
    """
    times: list[int] = []
    for place, folders, files in _walk(folder):
        times.append(_time(Path(place))[0])
        if Path(place).parent == folder and Path(place).name in ("train", "val"):
            times += [_time(Path(place, name))[0] for name in folders]
            folders.clear()
        times += [part for name in files if _annotates(name) for part in _time(Path(place, name))]
    return [READER, len(times), max(times, default=0), sum(t % 1_000_003 for t in times)]


def _time(path: Path) -> tuple[int, int]:
    """When a file was changed, and its size; zeros for a link that leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _annotates(name: str) -> bool:
    return name.endswith((".xml", ".json", ".txt"))
