"""Data before anything is queued: made, downloaded, checked."""

import argparse
import hashlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lewel_bench.harness.datasets import stamp
from lewel_bench.harness.plan import Dataset, Job
from lewel_bench.pretrain.files import write_atomically

if TYPE_CHECKING:
    from lewel_bench.harness.cli import Context

# google-research/simclr @383d414: the labelled 1 % and 10 % of ImageNet (12,811 and 128,116 files)
SUBSETS_URL = "https://raw.githubusercontent.com/google-research/simclr/383d4143/imagenet_subsets"
SUBSETS = {
    "1percent.txt": "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    "10percent.txt": "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
}


def prepare(todo: Sequence[Job], context: "Context") -> None:
    """Make or check the data of the jobs. Raises ValueError that names every problem found."""
    for data in {job.data.root: job.data for job in todo}.values():
        if data.name == "shapes":
            _make_shapes(Path(data.root).parent)
        else:
            _check_once(data, context.root)
    # one job of each kind: seeds and candidates ask for the same images
    for job in {
        (j.data.root, j.recipe_name, j.protocol and j.protocol.name): j for j in todo
    }.values():
        _fits(job, job.data)


def _make_shapes(folder: Path) -> None:
    from lewel_bench.pretrain import shapes

    shapes.make(folder)


def _check_once(data: Dataset, root: Path) -> None:
    """Check a data set, unless it was found sound and has not changed since."""
    from lewel_bench.pretrain.check import check

    remembered = root / "data" / "checked.json"
    try:
        sound = json.loads(remembered.read_text())
    except (OSError, ValueError):
        sound = {}
    now = stamp(Path(data.root))
    if sound.get(data.root) == now:
        return
    print(f"checking {data.name} at {data.root}", file=sys.stderr)
    report = check(Path(data.root))
    if report.problems:
        listed = "\n".join(f"  {one}" for one in report.problems)
        raise ValueError(
            f"the data set {data.name} at {data.root} has {len(report.problems)} problems:\n"
            f"{listed}\nCorrect or remove these files (`lewel-bench data check` lists them again)"
        )
    remembered.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(remembered, json.dumps({**sound, data.root: now}))


def _fits(job: Job, data: Dataset) -> None:
    """Raise ValueError where a job asks for more images than there are."""
    from lewel_bench.harness.job import read, split

    if job.recipe:
        count = len(read(data, "train"))
        if count < job.recipe.batch:
            raise ValueError(
                f"{job.name}: batch {job.recipe.batch} is more than the {count} training images of "
                f"{data.name}: set a smaller one, such as --set batch={max(1, count // 4)}"
            )
    else:
        split(job).check()


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

    path = Path(arguments.what).expanduser()
    if path.is_dir():
        root = path
    else:
        data = context.datasets(arguments.what, "")
        root = Path(data.root)
        if data.name == "shapes":
            _make_shapes(root.parent)
    report = check_folder(root, full=arguments.full)
    if arguments.format == "json":
        print(json.dumps(asdict(report), indent=2, default=str))
    else:
        print(report)
    return 2 if report.problems else 0
