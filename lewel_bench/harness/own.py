"""Methods and protocols of the user's own: from a Python file, or from an installed distribution.

    lewel-bench run --method ./my_method.py:recipe

runs the file once, takes the `Recipe` of that name, and keeps both under the run root, in
`.methods/`: a copy of the file by its hash, which is what every job runs and what the key of its
number is made of, and the recipe by its name, so that every later command knows it without running
anything. A distribution offers recipes (or a sequence of them) in the entry-point group
`lewel_bench.methods`, by the name of their family, and protocols in `lewel_bench.protocols`.
"""

import re
import traceback
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lewel_bench.evals.protocols import PROTOCOLS
from lewel_bench.pretrain import methods
from lewel_bench.pretrain.files import write_atomically
from lewel_bench.pretrain.recipe import Own, Recipe
from lewel_bench.pretrain.recipes import FAMILIES, RECIPES, family
from lewel_bench.value import explain, unknown

FOLDER = ".methods"
METHODS_GROUP, PROTOCOLS_GROUP = "lewel_bench.methods", "lewel_bench.protocols"
_NAMED: dict[str, str] = {}  # what a command line asked for -> the recipe's name
NAME = re.compile(r"[a-z][a-z0-9_]*_(\d+)ep")


def remember(root: Path) -> list[str]:
    """Make the recipes known that were run under `root` before; their names. Nothing is run."""
    names = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            recipe = Recipe.model_validate_json(path.read_bytes())
        except ValueError:
            raise ValueError(f"{path} is damaged: remove it, and run the method again") from None
        _register(recipe)
        names.append(recipe.name)
    return names


def of_methods(texts: Sequence[str], root: Path) -> tuple[str, ...]:
    """The methods of a command line as names that are known; those of files and distributions are
    made known, and kept under `root`.

    Raises ValueError where a file is missing, fails, or has no such recipe, and where a recipe
    cannot be used.
    """
    names: list[str] = []
    for text in texts:
        if ".py" in text:
            _NAMED[text] = _keep(*_of_file(text), root)
            names.append(_NAMED[text])
        elif text in FAMILIES or text in RECIPES or not (point := _offered(METHODS_GROUP, text)):
            names.append(text)
        else:
            several = _recipes_of(point)
            kept = [_keep(recipe, own, root) for recipe, own in several]
            names += [text] if text in FAMILIES else [name for name in kept if name == text]
    return tuple(names)


def named(word: str) -> str:
    """A word of this command line with the names of recipes in place of the files that they are
    from: what is run later must not read a file again that may have changed since."""
    for text, name in _NAMED.items():
        word = word.replace(text, name)
    return word


def of_protocols(texts: Sequence[str]) -> None:
    """Make known the protocols among these names that a distribution offers. Raises ValueError."""
    from lewel_bench.evals.protocol import Knn, Linear, Semi
    from lewel_bench.harness.plan import Dense

    for text in texts:
        point = None if text in PROTOCOLS else _offered(PROTOCOLS_GROUP, text)
        if point is None:
            continue
        found = _load(point)
        if not isinstance(found, Linear | Semi | Knn | Dense) or found.name != text:
            raise ValueError(f"{_said(point)} is no protocol called {text}")
        PROTOCOLS[text] = found


def offered(group: str) -> list[EntryPoint]:
    """What installed distributions offer, by name; nothing of it is loaded."""
    return sorted(entry_points(group=group), key=lambda point: point.name)


def _offered(group: str, text: str) -> EntryPoint | None:
    names = (text, family(text)) if "_" in text else (text,)
    found = [point for point in offered(group) if point.name in names]
    if len(found) > 1:
        raise ValueError(f"{text} is offered twice: by {' and by '.join(map(_said, found))}")
    return found[0] if found else None


def _said(point: EntryPoint) -> str:
    whose = point.dist.name if point.dist else "a distribution"
    return f"{whose} ({point.value})"


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise ValueError(f"{_said(point)} cannot be loaded: {_line(error, '')}") from None


def _recipes_of(point: EntryPoint) -> list[tuple[Recipe, Own | None]]:
    found = _load(point)
    several = [found] if isinstance(found, Recipe) else list(found)
    made: list[tuple[Recipe, Own | None]] = []
    for recipe in several:
        if not isinstance(recipe, Recipe) or family(recipe.name) != point.name:
            raise ValueError(
                f"{_said(point)}: {recipe!r:.80} is no recipe of a family {point.name}"
            )
        own = None
        if recipe.method not in methods.METHODS:
            import importlib

            path = Path(str(importlib.import_module(point.module).__file__))
            own = Own(code=_hash(path), file=str(path), module=point.module)
        made.append((recipe, own))
    return made


def _of_file(text: str) -> tuple[Recipe, Own | None]:
    path_text, colon, name = text.rpartition(":")
    path = Path(path_text if colon else text).expanduser()
    if not path.is_file():
        raise ValueError(f"--method {text}: there is no file {path}")
    own = Own(code=_hash(path), file=str(path.resolve()))
    try:
        module = methods.load_own(own)
    except Exception as error:
        raise ValueError(f"--method {text}: {_line(error, own.file)}") from None
    known = sorted(k for k, v in vars(module).items() if isinstance(v, Recipe))
    if not colon or name not in known:
        given = ", ".join(f"{path}:{one}" for one in known) or "none: see docs/own_method.md"
        if not colon:
            raise ValueError(f"--method {text}: name a recipe in it. It has {given}")
        raise ValueError(f"--method {text}: {unknown('recipe', name, known)}. It has {given}")
    recipe = getattr(module, name)
    return recipe, None if recipe.method in methods.METHODS else own


def _keep(recipe: Recipe, own: Own | None, root: Path) -> str:
    """Check a recipe, keep it and its file under `root`, and make it known; its name."""
    found = NAME.fullmatch(recipe.name)
    if not found or int(found[1]) != recipe.epochs:
        raise ValueError(
            f"recipe {recipe.name!r}: name it by its family and its epochs, as "
            f"my_method_{recipe.epochs}ep"
        )
    if family(recipe.name) in _PAPER:
        raise ValueError(
            f"recipe {recipe.name!r}: the paper's recipes have a family {family(recipe.name)}: "
            "choose another name"
        )
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if own:
        methods.own_class(own, recipe.method)
        source = Path(own.file)
        copy = folder / f"{own.code[:12]}-{source.name}"
        if not copy.exists():
            write_atomically(copy, source.read_bytes())
        recipe = recipe.model_copy(update={"own": own.model_copy(update={"file": str(copy)})})
    methods.check(recipe)
    write_atomically(folder / f"{recipe.name}.json", recipe.model_dump_json(indent=1))
    _register(recipe)
    return recipe.name


_PAPER = frozenset(FAMILIES)


def _register(recipe: Recipe) -> None:
    RECIPES[recipe.name] = recipe
    names = FAMILIES.setdefault(family(recipe.name), [])
    if recipe.name not in names:
        names.append(recipe.name)


def own_recipes() -> list[str]:
    """The names of the recipes that are known here and not the paper's."""
    return [name for name in RECIPES if family(name) not in _PAPER]


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _line(error: Exception, file: str) -> str:
    """What went wrong and in which line of the user's file, or of any."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if not file or frame.filename == file]
    where = f"{here[-1].filename}, line {here[-1].lineno}: " if here else ""
    said = explain(error) if isinstance(error, ValidationError) else str(error)
    return f"{where}{type(error).__name__}: {said}"
