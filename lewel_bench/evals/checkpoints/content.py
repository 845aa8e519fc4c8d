"""What a file holds, whatever kind of file it is: tensors by dotted name.

This runs in the child process (see `child`), which has neither torch nor NumPy: a tensor is where
its numbers lie and how they make one.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lewel_bench.evals.checkpoints import pickles
from lewel_bench.evals.checkpoints.pickles import Bounded
from lewel_bench.evals.checkpoints.plain import Array, Refused, Storage, Strided

NAMED = 200_000  # entries of dictionaries
TENSORS = 20_000
LONGEST = 500  # characters of a name
DEPTH = 16
TEXTS = {"arch", "__author__", "backbone"}  # the texts at the top of a file that are read
LONGEST_TEXT = 10_000


@dataclass(frozen=True)
class Content:
    """`tensors` by name, the names at the top (`tops`) and some texts there, and the foreign
    `globals` that were passed over; `numbers` gives the bytes of a storage, and raises ValueError
    where the file does not hold what it says."""

    tensors: Mapping[str, Strided | Array]
    tops: frozenset[str]
    texts: Mapping[str, str]
    globals: frozenset[str]
    numbers: Callable[[Storage], bytes]


@dataclass(frozen=True)
class Source:
    """Where the numbers of a pickle's storages lie: `check` raises ValueError for one that is not
    there or of another size, `get` gives its bytes."""

    check: Callable[[Storage], None]
    get: Callable[[Storage], bytes]


def loaded(
    source: Bounded,
    allowed: Collection[str] = (),
    globals_: set[str] | None = None,
    storages: dict[str, Storage] | None = None,
) -> Any:
    """The next pickle. Raises ValueError."""
    try:
        return pickles.load(source, allowed, globals_, storages)
    except Refused:
        raise
    except ValueError as error:
        raise ValueError(
            "is no checkpoint of PyTorch, no safetensors and no pickle, or is cut off or broken "
            f"({why(error)})"
        ) from None


def why(error: Exception) -> str:
    """The first line of what an error says."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def of_tree(tree: Any, globals_: Collection[str], source: Source) -> Content:
    """Dictionaries within dictionaries as dotted names. Raises ValueError for anything else."""
    if not isinstance(tree, dict):
        called = {Strided: "single tensor", Array: "single array"}
        raise ValueError(
            f"holds a {called.get(type(tree), type(tree).__name__)} instead of weights by name"
        )
    tensors, texts = _flat(tree)
    for tensor in tensors.values():
        if isinstance(tensor, Strided):
            source.check(tensor.storage)
    return Content(
        tensors=tensors,
        tops=frozenset(str(key) for key in tree),
        texts=usable(texts),
        globals=frozenset(globals_),
        numbers=source.get,
    )


def _flat(tree: dict[Any, Any]) -> tuple[dict[str, Strided | Array], dict[str, str]]:
    tensors: dict[str, Strided | Array] = {}
    texts: dict[str, str] = {}
    left = NAMED
    todo: list[tuple[str, Any, int]] = [("", tree, 0)]
    while todo:
        prefix, value, depth = todo.pop()
        left -= 1
        if isinstance(value, dict):
            left -= len(value)
            begin = f"{prefix}." if prefix else ""
            inside = [(begin + _word(key), inner, depth + 1) for key, inner in value.items()]
            todo += reversed(inside)
        elif isinstance(value, Strided) or (isinstance(value, Array) and value.is_number):
            if prefix in tensors:
                raise ValueError(f"two tensors have the name {prefix[:80]}")
            tensors[prefix] = value
        elif isinstance(value, str) and depth == 1:
            texts[prefix] = value
        if left < 0 or depth > DEPTH or len(prefix) > LONGEST:
            raise ValueError(
                "its dictionaries are too many, too deep or named too long for a checkpoint"
            )
    nameable(tensors)
    return tensors, texts


def _word(key: Any) -> str:
    if isinstance(key, str | int | float):
        if len(word := str(key)) <= LONGEST:
            return word
        raise ValueError(f"a name in it has {len(word):,} characters")
    return type(key).__name__  # of what is no weight


def nameable(names: Collection[str]) -> None:
    """Raise ValueError for names that no checkpoint has: too many, or not for a terminal."""
    if len(names) > TENSORS:
        raise ValueError(f"it has {len(names):,} tensors: a checkpoint has some thousand")
    if odd := next((name for name in names if not name.isprintable()), None):
        raise ValueError(f"a tensor has the name {ascii(odd)[:80]}")


def usable(texts: Mapping[str, str]) -> dict[str, str]:
    """Those of the texts that are read. Raises ValueError for one that is too long."""
    for name in TEXTS & texts.keys():
        if len(texts[name]) > LONGEST_TEXT:
            raise ValueError(f"its text {name} has {len(texts[name]):,} characters")
    return {name: texts[name] for name in sorted(TEXTS & texts.keys())}
