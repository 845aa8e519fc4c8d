"""Methods and protocols of users: from a Python file, or from an installed distribution.

    lewel-bench run --method ./my_method.py:recipe

runs the file once, takes the `Recipe` of that name, and stores both under the run root, in
`.methods/`: a copy of the file by its hash, which is part of its numbers' keys, and the recipe by
its name, with the defaults of the method's settings, so that every later command knows it without
running the file. A job has a copy in its folder, and runs that. A distribution offers recipes (or a
list of them) in the entry-point group `lewel_bench.methods`, by the name of their family, and
protocols in `lewel_bench.protocols`.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import PydanticUserError, ValidationError

from lewel_bench.evals.protocols import is_protocol
from lewel_bench.files import LARGEST_JSON, read_regular, write_atomically
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog, is_packaged
from lewel_bench.pretrain.methods import METHODS, settings_of
from lewel_bench.pretrain.recipe import Own, Recipe
from lewel_bench.pretrain.recipes import family
from lewel_bench.value import explain, unknown

FOLDER = ".methods"
METHODS_GROUP, PROTOCOLS_GROUP = "lewel_bench.methods", "lewel_bench.protocols"
NAME = re.compile(r"[a-z][a-z0-9_]*_(\d+)ep")
DOCS = "see docs/own_method.md"
_COPIES: dict[str, str] = {}  # FILE:RECIPE of this command line -> the same of the stored copy


def load(root: Path) -> Catalog:
    """The packaged catalogue and the recipes that were run under `root` before. No file is run."""
    catalog = PACKAGED
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            recipe = Recipe.model_validate_json(read_regular(path, LARGEST_JSON))
        except (ValueError, OSError):
            raise ValueError(f"{path} is damaged: remove it, and run the method again") from None
        if is_packaged(family(recipe.name)):
            raise ValueError(f"{path}: {family(recipe.name)} is a built-in family now: remove it")
        if recipe.own:  # the run root may have been moved
            file = str(path.with_name(Path(recipe.own.file).name))
            recipe = recipe.model_copy(update={"own": recipe.own.model_copy(update={"file": file})})
        catalog = catalog.with_recipe(recipe)
    return catalog


def with_methods(
    texts: Sequence[str], root: Path, catalog: Catalog, *, keep: bool = True
) -> tuple[tuple[str, ...], Catalog]:
    """The methods of a command line by name, and the catalogue with the recipes of files and
    distributions, which are run once; with `keep` they are stored under `root` for later commands.

    Raises ValueError where a file is missing, fails, or has no such recipe, and where a recipe
    cannot be used.
    """
    names: list[str] = []
    for text in texts:
        if ".py" in text:
            recipe = _of_file(text, root, catalog, keep)
            catalog = catalog.with_recipe(recipe)
            names.append(recipe.name)
            continue
        name = family(text) if NAME.fullmatch(text) else text
        if not is_packaged(name) and (point := _offered(METHODS_GROUP, name)):
            for recipe, own in _recipes_of(point):
                checked = _checked(recipe, own, root if keep else None, catalog)
                catalog = catalog.with_recipe(checked)
        names.append(text)  # it may also name a recipe that was stored before
    return tuple(names), catalog


def with_copies(word: str) -> str:
    """A word of this command line with the stored copies in place of the user's files, which may
    have changed by the time that a later process reads them."""
    option, equals, texts = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + ",".join(_COPIES.get(t.strip(), t) for t in texts.split(","))


def with_protocols(texts: Sequence[str], catalog: Catalog) -> Catalog:
    """The catalogue with the protocols among these names that a distribution offers. Raises
    ValueError."""
    for text in texts:
        point = None if text in catalog.protocols else _offered(PROTOCOLS_GROUP, text)
        if point is None:
            continue
        offering = _load(point)
        if not is_protocol(offering) or offering.name != text:
            raise ValueError(f"{_described(point)} is not a protocol called {text}")
        catalog = catalog.with_protocol(offering)
    return catalog


def origin(recipe: Recipe) -> str:
    """Where a user's recipe is from; empty for a built-in one."""
    if is_packaged(family(recipe.name)):
        return ""
    if not recipe.own:
        return "your own"
    code = f"sha256 {recipe.own.code[:12]}"
    if recipe.own.module:
        return f"your own, module {recipe.own.module} of {recipe.own.release}, {code}"
    return f"your own, {recipe.own.file}, {code}"


def offered(group: str) -> list[EntryPoint]:
    """The entry points of installed distributions, by name; none is loaded."""
    return sorted(entry_points(group=group), key=lambda point: point.name)


def _offered(group: str, name: str) -> EntryPoint | None:
    points = [point for point in offered(group) if point.name == name]
    if len(points) > 1:
        raise ValueError(f"{name} is provided twice: by {' and by '.join(map(_described, points))}")
    return points[0] if points else None


def _described(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'a distribution'} ({point.value})"


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{_described(point)} cannot be loaded: {_line(error, '')}") from None


def _recipes_of(point: EntryPoint) -> list[tuple[Recipe, Own | None]]:
    """The recipes that a distribution offers, each with the module that defines its method."""
    content = _load(point)
    recipes: list[tuple[Recipe, Own | None]] = []
    for recipe in content if isinstance(content, list | tuple) and content else [content]:
        if not isinstance(recipe, Recipe) or family(recipe.name) != point.name:
            raise ValueError(
                f"{_described(point)}: {recipe!r:.80} is not a recipe of a family {point.name}"
            )
        module = importlib.import_module(point.module)
        class_ = getattr(module, recipe.method, None)
        own = None
        if not _is_of_a_known_method(recipe, module):
            module = importlib.import_module(getattr(class_, "__module__", module.__name__))
            path = Path(str(module.__file__))
            release = f"{point.dist.name} {point.dist.version}" if point.dist else ""
            own = Own(code=_hash(path), file=str(path), module=module.__name__, release=release)
        recipes.append((recipe, own))
    return recipes


def _of_file(text: str, root: Path, catalog: Catalog, keep: bool) -> Recipe:
    """The recipe of `text`, whose file is run once."""
    from lewel_bench.pretrain import own_method

    path_text, colon, name = text.rpartition(":")
    path = Path(path_text if colon else text).expanduser()
    if not path.is_file():
        raise ValueError(f"--method {text}: there is no file {path}")
    own = Own(code=_hash(path), file=str(path.resolve()))
    try:
        module = own_method.load_module(own)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--method {text}: {_line(error, own.file)}") from None
    recipe = getattr(module, name, None)
    if not colon or not isinstance(recipe, Recipe):
        raise ValueError(f"--method {text}: {_no_recipe_message(module, path, name, colon)}")
    folder = (root / FOLDER).resolve()
    is_copy = Path(own.file).parent == folder  # a planner that wakes later names the copy
    used = None if _is_of_a_known_method(recipe, module) else own
    if keep and not is_copy:
        checked = _checked(recipe, used, root, catalog)
        _COPIES[text] = f"{_copied(own, folder).file}:{name}"
        return checked
    return _checked(recipe, used, None, catalog)


def _no_recipe_message(module: ModuleType, path: Path, name: str, colon: str) -> str:
    known = sorted(k for k, v in vars(module).items() if isinstance(v, Recipe))
    if not known and name not in vars(module):
        return f"it contains no Recipe: {DOCS}"
    listed = ", ".join(f"{path}:{recipe}" for recipe in known) or f"none: {DOCS}"
    if not colon:
        return f"name a recipe in it. It has {listed}"
    if name in vars(module):
        return f"{name} is not a Recipe. It has {listed}"
    return f"{unknown('recipe', name, known)}. It has {listed}"


def _is_of_a_known_method(recipe: Recipe, module: ModuleType) -> bool:
    """Whether a user's recipe only configures a built-in method, and so has no class of its own."""
    return recipe.method in METHODS and not inspect.isclass(vars(module).get(recipe.method))


def _checked(recipe: Recipe, own: Own | None, root: Path | None, catalog: Catalog) -> Recipe:
    """A recipe with all its settings checked; stored with its file under a `root`."""
    _check_name(recipe)
    if own:
        from lewel_bench.pretrain import own_method

        if recipe.method in METHODS:
            raise ValueError(
                f"{own.file}: the class {recipe.method} has the name of a built-in method: choose "
                "another"
            )
        defaults = own_method.load_settings(own, recipe.method)().model_dump()
        own = own.model_copy(update={"defaults": defaults})
    recipe = recipe.model_copy(update={"own": own})
    settings_of(recipe)
    if root:
        recipe = _stored(recipe, (root / FOLDER).resolve(), catalog)
    return recipe


def _stored(recipe: Recipe, folder: Path, catalog: Catalog) -> Recipe:
    """`recipe` as it is stored in `folder`, with a copy of its file; prints a note where it
    replaces another version."""
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.own:
        recipe = recipe.model_copy(update={"own": _copied(recipe.own, folder)})
    before = catalog.recipes.get(recipe.name)
    if before and before.own and before.own != recipe.own:
        print(
            f"note: {recipe.name} was {origin(before)}; tables show the new version from now on. "
            "Give it another name to see both",
            file=sys.stderr,
        )
    write_atomically(folder / f"{recipe.name}.json", recipe.model_dump_json(indent=1))
    return recipe


def _copied(own: Own, folder: Path) -> Own:
    """`own` with a copy of its file in `folder`, by its hash."""
    copy = folder / f"{own.code[:12]}-{Path(own.file).name}"
    if not copy.exists() or _hash(copy) != own.code:
        write_atomically(copy, Path(own.file).read_bytes())
    return own.model_copy(update={"file": str(copy)})


def _check_name(recipe: Recipe) -> None:
    match = NAME.fullmatch(recipe.name)
    if not match or int(match[1]) != recipe.epochs:
        raise ValueError(
            f"recipe {recipe.name!r}: name it by its family and its epochs, as "
            f"my_method_{recipe.epochs}ep"
        )
    if is_packaged(family(recipe.name)):
        raise ValueError(
            f"recipe {recipe.name!r}: {family(recipe.name)} is a built-in family: choose another "
            "name"
        )


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _line(error: BaseException, file: str) -> str:
    """The error, and the line of the user's file (or of any) that it came from."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if not file or frame.filename == file]
    where = f"{inside[-1].filename}, line {inside[-1].lineno}: " if inside else ""
    if isinstance(error, ValidationError):
        return f"{where}{type(error).__name__}: {explain(error)}"
    message = error.message if isinstance(error, PydanticUserError) else str(error)
    return f"{where}{type(error).__name__}: {message}"
