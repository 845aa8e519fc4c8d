"""What a record of another lab, and its spec.json, must hold: all that is read of them here."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lewel_bench.pretrain.recipe import Backbone
from lewel_bench.results.record import Record
from lewel_bench.value import explain

Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
REQUIRED = {"linear": ("refit",)}  # by runner: it may train twice in one job, which costs more


class _Read(BaseModel):
    # what is not read here may be there: another version has other fields
    model_config = ConfigDict(extra="ignore", strict=True)


class _Recipe(_Read):
    method: str
    backbone: dict[str, Any]
    image_size: Count
    batch: Count
    epochs: Count
    precision: str
    augment: str | list[Any]
    args: dict[str, Any]


class _Pretrain(_Read):
    recipe: _Recipe
    data: str


class _Import(_Read):
    tensors: str
    network: str
    backbone: Backbone


class _Protocol(_Read):
    runner: str
    refit: bool = False
    epochs: Above0 | None = None
    steps: Above0 | None = None
    fraction: Above0 = 1.0

    @model_validator(mode="after")
    def _says_how_often_it_trains(self) -> Self:
        for field in REQUIRED.get(self.runner, ()):
            if field not in self.model_fields_set:
                raise ValueError(
                    f"{field}: a {self.runner} evaluation says whether it trains twice"
                )
        return self


class _Evaluation(_Read):
    upstream: str
    protocol: _Protocol
    data: str


class _Attempt(_Read):
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    processes: Count


class _Outcome(_Read):
    attempts: list[_Attempt] = []


class _Pixels(_Read):
    order: str
    mean: list[float]
    std: list[float]


class _Imported(_Read):
    format: str
    file: str
    file_sha256: str
    pixels: _Pixels


class _Extra(_Read):
    select: dict[str, float | None]


class _Searched(_Outcome):
    chosen: dict[str, float]
    extra: _Extra


class _Environment(_Read):
    processes: Annotated[str, Field(pattern="^[1-9][0-9]{0,6}$")] = "1"


class _Named(_Read):
    name: str
    revision: int = 1
    own: dict[str, Any] | None = None


class _Spec(_Read):
    kind: str
    name: str
    seed: int
    suite: str = ""
    recipe_name: str = ""
    recipe: _Named | None = None
    protocol: _Named | None = None
    stands_for: Annotated[str, Field(alias="as")] = ""
    epochs: Count | None = None


SPECS: dict[str, type[_Read]] = {
    "pretrain": _Pretrain,
    "import": _Import,
    "search": _Evaluation,
    "final": _Evaluation,
}
OUTCOMES: dict[str, type[_Read]] = {"search": _Searched, "import": _Imported}


def check(record: Record, path: Path) -> None:
    """Raise ValueError naming the field of a record, which is that of `path`, that is not what is
    read of its kind."""
    spec = record.spec
    if (spec.get("kind"), spec.get("seed", 0)) != (record.kind, record.seed):
        raise ValueError(f"{path}: its kind or seed is not that of its spec")
    _holds(SPECS[record.kind], spec, f"{path}: spec")
    _holds(OUTCOMES.get(record.kind, _Outcome), record.outcome, f"{path}: outcome")
    _holds(_Environment, record.environment, f"{path}: environment")
    if record.kind in ("pretrain", "import") and record.checkpoint is None:
        raise ValueError(f"{path}: checkpoint: no backbone is named")


def is_job(content: dict[str, Any]) -> bool:
    """Whether `content`, that of a spec.json, holds all that is read of a job of ours."""
    try:
        spec = _Spec.model_validate(content)
        if "data" in content:
            SPECS[spec.kind].model_validate({**content, "data": content["data"]["id"]})
    except (ValidationError, KeyError, TypeError):
        return False
    return True


def check_spec(text: bytes, record: Record, path: Path) -> None:
    """Raise ValueError where `text`, which is that of the spec.json `path`, is not a record's."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    _holds(_Spec, content, str(path))
    if (content["kind"], content["seed"]) != (record.kind, record.seed):
        raise ValueError(f"{path}: its kind or seed is not that of its record")


def _holds(type: type[_Read], content: Any, where: str) -> None:
    try:
        type.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error)}") from None
