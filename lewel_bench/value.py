"""The frozen base of every type, and what to say about a name or a value that cannot be."""

import difflib
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

_LISTED = 40  # names that a message lists in full
_NEAREST = 8
DEEPEST = 32  # levels of a TOML file; ours have at most 5
LARGEST_TOML = 2**20  # bytes


class Value(BaseModel):
    """A frozen value; an unknown field is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for field in data:
                if field not in cls.model_fields:
                    raise ValueError(unknown(f"{cls.__name__} field", field, cls.model_fields))
        return data

    @classmethod
    def of_toml(cls, file: Path) -> Self:
        """The value in `file`. Raises ValueError naming the file and what is wrong with it."""
        content = parse_toml(file.read_bytes(), str(file))
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ValueError(f"{file}: {explain(error)}") from None


def parse_toml(text: bytes, where: str) -> dict[str, Any]:
    """The content of a TOML file. Raises ValueError naming `where` if it is not valid TOML, is
    nested deeper than DEEPEST or larger than LARGEST_TOML."""
    if len(text) > LARGEST_TOML:
        raise ValueError(
            f"{where}: larger than {LARGEST_TOML >> 20} MiB, too large for a TOML file"
        )
    try:
        content = tomllib.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid TOML: {error}") from None
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        tables = [
            container.values() if isinstance(container, dict) else container for container in level
        ]
        level = [v for table in tables for v in table if isinstance(v, dict | list)]
        if not level:
            return content
    raise ValueError(f"{where}: nested deeper than {DEEPEST} levels")


def unique(what: str, names: Iterable[str]) -> None:
    """Raise ValueError where a name stands twice; `what` as in "claims have the same id"."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"two {what}: {', '.join(twice)}")


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """The message for a name that does not exist: nearest known name, then all of them, or the
    nearest of very many."""
    names = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if len(names) > _LISTED:
        nearest = difflib.get_close_matches(str(name), names, n=_NEAREST, cutoff=0)
        return f"unknown {what} {str(name)!r}.{hint} Nearest of {len(names)}: {', '.join(nearest)}"
    return f"unknown {what} {str(name)!r}.{hint} Known: {', '.join(names)}"


def printable(value: object, keep: str = "") -> str:
    """`value` as text on one line in which every character can be seen: control characters,
    direction marks and bytes that are not UTF-8 as escapes, but for those in `keep`."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if character == "\n" or ord(character) > 0xFF:
        return ascii(character)[1:-1]
    return f"\\x{ord(character):02x}"


def format_bytes(count: int) -> str:
    """Bytes as a person reads them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"


def json_text(content: object, *, indent: int = 2, allow_nan: bool = True) -> str:
    """`content` as readable JSON, with what `printable` would escape in JSON's own way."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def explain(error: ValidationError) -> str:
    """A pydantic error as one line a person can act on; long inputs are cut at 80 characters."""
    lines = []
    errors = error.errors()
    for detail in errors:
        inside = {
            e["loc"][: len(detail["loc"])] for e in errors if len(e["loc"]) > len(detail["loc"])
        }
        if detail["loc"] in inside:
            continue  # a list that is too short without its wrong items
        where = ".".join(map(str, detail["loc"]))
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "tuple_type":
            message = "Input should be a list, such as [0.1, 0.2]"
        got = repr(detail["input"])
        got = got if len(got) <= 80 else got[:77] + "..."
        lines.append(f"{where}: {message} (got {got})" if where else message)
    return "; ".join(lines)
