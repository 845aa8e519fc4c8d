"""Which jobs cost alike: what estimates go by."""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from lewel_bench.harness.rundir import MERGED_CODE, has_sha256
from lewel_bench.pretrain.methods import arguments
from lewel_bench.pretrain.recipe import Own
from lewel_bench.pretrain.views import AUGMENTS

# Fields of a protocol that its cost an epoch or a step depends on
ALIKE = (
    *("runner", "optimizer", "fraction", "image_size", "engine", "model", "masks", "metric"),
    *("min_sizes", "scale", "crop", "batch", "rois"),
)
UNLIKE = ("optimizer", "fraction", "batch")  # but not by much


class Shape(NamedTuple):
    """What a job shares with those that cost alike, the nearest first, each with how it is said;
    and the units (epochs, steps) that its cost is proportional to."""

    levels: tuple[tuple[Any, str], ...]
    units: float

    @property
    def exact(self) -> Any:
        """What jobs of the same cost share."""
        return self.levels[0][0]


def shape(kind: str, spec: Mapping[str, Any], data: str, backbone: str | None) -> Shape:
    """The shape of a job: `spec` is its identity, or the content of its spec.json; `backbone` is
    what an evaluation is of, None where that is not known."""
    if recipe := spec.get("recipe"):
        wide = (kind, data, str(recipe["backbone"]), recipe["image_size"])
        code = (recipe.get("own") or {}).get("code")
        near = (*wide, recipe["method"], code, recipe["batch"], recipe["precision"])
        of_it = (*near, *work(recipe)), "like it"
        others = (near, "of its method"), (wide, "of other methods")
        return Shape((of_it, *others), float(recipe["epochs"]))
    protocol = spec["protocol"]
    # a dense search and the training after it take the same steps, whatever the data
    kind, of = ("dense", None) if "steps" in protocol else (kind, data)
    # a linear probe trains twice with `refit`; a dense one refits in another job
    twice = bool(protocol.get("refit")) and "steps" not in protocol
    about = (twice, *(str(protocol.get(field)) for field in ALIKE if field not in UNLIKE))
    exact = (twice, *(str(protocol.get(field)) for field in ALIKE))
    levels: tuple[tuple[Any, str], ...] = (
        (("exact", kind, data, backbone, *exact), "like it"),
        (("about", kind, of, backbone, *about), "about like it"),
    )
    share = protocol.get("fraction", 1)  # an epoch is one of the labelled images
    return Shape(levels, float(protocol.get("epochs") or protocol.get("steps") or 1) * share)


def work(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """The arguments and views of a recipe, written the same way by a record and by a plan."""
    method, augment = recipe["method"], recipe["augment"]
    given = {**_defaults(method, json.dumps(recipe.get("own"))), **recipe["args"]}
    views = _views(augment) if isinstance(augment, str) else json.dumps(augment)
    return str(sorted(given.items())), views


@cache
def _defaults(method: str, own: str) -> dict[str, Any]:
    """What a method takes where nothing is written; nothing where its file is not at hand: a record
    has all arguments written."""
    with suppress(OSError, ValueError, KeyError, SyntaxError):
        where = TypeAdapter(Own | None).validate_json(own)
        # as it was planned, and no other lab's, which nobody reads here
        if where is None or (
            not where.file.endswith(MERGED_CODE) and has_sha256(Path(where.file), where.code)
        ):
            return {name: default for name, (_, default) in arguments(method, where).items()}
    return {}


@cache
def _views(augment: str) -> str:
    views = AUGMENTS.get(augment, ())  # none of a spec.json that is not of this version
    return json.dumps([view.identity() for view in views])
