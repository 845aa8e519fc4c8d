"""Whether a measured number can be held against a published one: follows from its records.

A number is comparable where the images, the recipe, the backbone, the protocol and the engine are
those of the paper's cell. Every difference is a reason, in words, why it is not.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lewel_bench.results.record import Contents, Data, Record
from lewel_bench.value import Value

FILE = Path(__file__).with_name("datasets.toml")
LISTED = 6  # differences that one reason names
# The paper's engines, and the one that agrees with them on the same weights (tested)
ENGINES = ("native", "detectron2", "mmseg")
SPLITS = {"train": "train", "report": "val"}  # the split that has the images of a role


class Split(Value):
    """A split of a data set, as published."""

    images: int
    per_class: tuple[int, int] | None = None


class Published(Value):
    """A data set of the paper. `names` is the digest of its class names (empty: not compared)."""

    label: str
    classes: int
    names: Annotated[str, Field(pattern="^([0-9a-f]{12})?$")] = ""
    train: Split
    val: Split
    source: str

    def differs(self, measured: Contents, split: str) -> str:
        """What in a split is not as published, in words; empty where all is."""
        expected: Split = getattr(self, split)
        if (measured.images, measured.classes) != (expected.images, self.classes):
            return f"not {self.label}'s {expected.images:,} of {self.classes:,}"
        if self.names and measured.names != self.names:
            return f"with class names that differ from {self.label}'s"
        if expected.per_class and measured.per_class != expected.per_class:
            low, high = expected.per_class
            return f"not {low:,} to {high:,} images a class as in {self.label}"
        return ""


@dataclass(frozen=True)
class Expected:
    """What the paper's cell was measured by: the identities of its recipe (None: it has none) and
    protocol, and the names of their data sets, as `published` has them."""

    recipe: Mapping[str, Any] | None
    recipe_data: str
    protocol: Mapping[str, Any]
    protocol_data: str


def names_digest(names: Iterable[str]) -> str:
    """12 hexadecimal digits of class names, whatever their order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:12]


@cache
def published() -> dict[str, Published]:
    """The data sets of the paper, by name."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Published.model_validate(fields) for name, fields in content.items()}


def differences(record: Record, before: Record | None, expected: Expected) -> tuple[str, ...]:
    """Why the number of an evaluation cannot be compared with the paper's; empty where it can.
    `before` is the record of its backbone: of a pre-training, or of an imported checkpoint."""
    return (
        *_data(record, expected.protocol_data, {"train": "trained", "report": "tested"}),
        *_labelled(record, expected),
        *_protocol(record.spec.get("protocol", {}), expected.protocol),
        *_backbone(before, expected),
    )


def cost_differences(record: Record, recipe: Mapping[str, Any], data: str) -> tuple[str, ...]:
    """Why what a pre-training cost cannot be compared with the paper's `recipe` on the data set
    `data`; its length does not matter, as an epoch takes as long in a short one."""
    return tuple(_pretraining(record, recipe, data, {"epochs", "schedule"}))


def _data(record: Record, name: str, verbs: Mapping[str, str]) -> Iterator[str]:
    for role, verb in verbs.items():
        data = record.data.get(role)
        if data is None or data.whole is None:
            yield f"{verb} on images that its record does not describe"
        elif differs := published()[name].differs(data.whole, SPLITS[role]):
            yield f"{verb} on {described(data)}, {differs}"


def _labelled(record: Record, expected: Expected) -> Iterator[str]:
    # the id of a data set that has the published lists; a folder of one's own has none
    if "fraction" in expected.protocol and record.spec.get("data") != expected.protocol_data:
        yield "its labelled images were sampled locally, not taken from the published list"


def described(data: Data) -> str:
    """The images of one role in words: "40 images of 10 classes (tiny, fingerprint 3f2a9c…)"."""
    count = data.whole.images if data.whole else data.images
    classes = f" of {data.whole.classes:,} classes" if data.whole else ""
    return f"{count:,} images{classes} ({data.name}, fingerprint {data.fingerprint})"


def _protocol(measured: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    engine = measured.get("engine")
    if engine is not None and engine not in ENGINES:
        yield f"the engine {engine} has not been tested for agreement with the paper's"
    changed = _changed(measured, expected, {"engine"})
    if changed:
        yield f"the protocol has {_listed(changed)}"


def _backbone(before: Record | None, expected: Expected) -> Iterator[str]:
    if expected.recipe is None:
        return
    if before is None:
        yield "no record of the backbone's pre-training"
        return
    if before.kind == "import":
        usual = {"stride": "3x3", "mean": None}  # the same network otherwise
        backbone = {**before.spec.get("backbone", {}), **usual}
        if changed := _changed(backbone, {**expected.recipe["backbone"], **usual}, set()):
            yield f"the backbone has {_listed(changed)}"
        if before.warnings:
            yield f"the checkpoint failed its sanity check: {before.warnings[0]}"
        return
    yield from _pretraining(before, expected.recipe, expected.recipe_data, set())


def _pretraining(
    record: Record, recipe: Mapping[str, Any], data: str, but: set[str]
) -> Iterator[str]:
    yield from _data(record, data, {"train": "pre-trained"})
    if changed := _changed(record.spec.get("recipe", {}), recipe, but):
        yield f"the recipe has {_listed(changed)}"


def besides_method(
    of: Mapping[str, Any], over: Mapping[str, Any], paper: tuple[Mapping[str, Any], ...]
) -> str:
    """In what two recipes (identities) differ beyond what their methods add, in words; empty where
    in nothing. Arguments of the methods count where both have them and the `paper`'s own two
    recipes have one value: where theirs differ too, they are what is compared."""
    subject = {name for name, *_ in unequal(paper[0]["args"], paper[1]["args"])}
    differences = []
    for name, here, right in unequal(of, over):
        part, _, argument = name.partition(".")
        if part in ("method", "own", "revision") or (part == "args" and argument in subject):
            continue
        if part == "args" and None in (here, right):
            continue
        values = "" if name == "augment" else f" ({_text(here)}, {_text(right)})"
        differences.append(f"{name}{values}")
    return f"besides the method, they differ in {_listed(differences)}" if differences else ""


def _changed(measured: Mapping[str, Any], expected: Mapping[str, Any], but: set[str]) -> list[str]:
    """The fields that differ from the paper's, `but` some with all their parts: "epochs 1 (paper:
    90)"."""
    return [
        f"{name} "
        + ("other views" if name == "augment" else f"{_text(here)} (paper: {_text(paper)})")
        for name, here, paper in _unequal(json.dumps(measured), json.dumps(expected))
        if name.split(".")[0] not in but
    ]


@lru_cache(maxsize=1024)
def _unequal(measured: str, expected: str) -> tuple[tuple[str, Any, Any], ...]:
    # Texts, which can be remembered: thousands of seeds have one recipe.
    return tuple(unequal(json.loads(measured), json.loads(expected)))


def unequal(
    measured: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The fields, dotted, whose values differ, with both; None for one that is missing."""
    for name in dict.fromkeys((*measured, *expected)):
        here, right = measured.get(name), expected.get(name)
        if here == right:
            continue
        if isinstance(here, Mapping) and isinstance(right, Mapping):
            yield from unequal(here, right, f"{prefix}{name}.")
        elif _plain(here) != _plain(right):
            yield f"{prefix}{name}", here, right


def _plain(value: Any) -> Any:
    """A value as a record read from disk has it: JSON has no tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(element) for element in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _listed(changed: list[str]) -> str:
    more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
    return ", ".join(changed[:LISTED]) + more


def measured_on(record: Record, before: Record | None, name: str) -> str:
    """On what a number was measured, for a title: "ImageNet-1K, ResNet-50". `name` is the paper's
    data set for it; a pre-training is its own `before`."""
    role = "report" if "report" in record.data else "train"
    data, known = record.data.get(role), published().get(name)
    id = str(record.spec.get("data", "unknown data"))
    if data and data.whole and known and not known.differs(data.whole, SPLITS[role]):
        where = known.label
    elif id.startswith(
        "shapes-r"
    ):  # the id of the generator's revision: any folder may be "shapes"
        where = "generated scenes"
    elif data:
        where = f"{data.name} ({data.images:,} images)"
    else:
        where = id
    spec = (before.spec if before else {}) or {}
    net = spec.get("backbone") or spec.get("recipe", {}).get("backbone")
    return f"{where}, {_network(net)}" if net else where


def _network(backbone: Mapping[str, Any]) -> str:
    name = str(backbone.get("arch", "")).replace("resnet", "ResNet-")
    width = backbone.get("width", 64)
    return name if width == 64 else f"{name} of width {width}"
