"""Which jobs cost alike: what estimates go by."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from lewel_bench.pretrain.methods import METHODS
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
        (("about", kind, of, backbone, *about), "similar"),
    )
    share = protocol.get("fraction", 1)  # an epoch is one of the labelled images
    return Shape(levels, float(protocol.get("epochs") or protocol.get("steps") or 1) * share)


def work(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """The arguments and views of a recipe, written the same way by a record and by a plan."""
    method, augment = recipe["method"], recipe["augment"]
    given = {**_defaults(method, recipe.get("own")), **recipe["args"]}
    views = _views(augment) if isinstance(augment, str) else json.dumps(augment)
    return str(sorted(given.items())), views


def _defaults(method: str, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """The default arguments of a method; empty where it is not known here, and for a user's own
    in a record, which has all arguments."""
    if own is not None:
        return dict(own.get("defaults", {}))
    return METHODS[method]().model_dump() if method in METHODS else {}


@cache
def _views(augment: str) -> str:
    views = AUGMENTS.get(augment, ())  # none of a spec.json that is not of this version
    return json.dumps([view.identity() for view in views])
