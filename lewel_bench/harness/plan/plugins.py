"""Methods and protocols of the user's own: from a Python file, or from an installed distribution.

    lewel-bench run --method ./my_method.py:recipe

runs the file once, takes the `Recipe` of that name, and keeps both under the run root, in
`.methods/`: a copy of the file by its hash, which is what the key of its number is made of, and the
recipe by its name, so that every later command knows it without running anything. A job has a copy
in its folder, and runs that. A distribution offers recipes (or a list of them) in the entry-point
group `lewel_bench.methods`, by the name of their family, and protocols in `lewel_bench.protocols`.
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

from pydantic import ValidationError

from lewel_bench.evals.protocols import is_protocol
from lewel_bench.files import LARGEST_JSON, read_regular, write_atomically
from lewel_bench.harness.plan.catalog import PACKAGED, Catalog, is_packaged
from lewel_bench.pretrain import methods
from lewel_bench.pretrain.recipe import Own, Recipe
from lewel_bench.pretrain.recipes import family
from lewel_bench.value import explain, unknown

FOLDER = ".methods"
METHODS_GROUP, PROTOCOLS_GROUP = "lewel_bench.methods", "lewel_bench.protocols"
_NAMED: dict[str, str] = {}  # what a command line asked for -> the same of the copy that was kept
NAME = re.compile(r"[a-z][a-z0-9_]*_(\d+)ep")


def load(root: Path) -> Catalog:
    """The packaged catalogue with the recipes that were run under `root` before; runs nothing."""
    catalog = PACKAGED
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            recipe = Recipe.model_validate_json(read_regular(path, LARGEST_JSON))
        except (ValueError, OSError):
            raise ValueError(f"{path} is damaged: remove it, and run the method again") from None
        if is_packaged(family(recipe.name)):
            raise ValueError(
                f"{path}: lewel-bench has a family {family(recipe.name)} of its own now: remove "
                "the file"
            )
        if recipe.own:  # the run root may have been moved
            file = str(path.with_name(Path(recipe.own.file).name))
            recipe = recipe.model_copy(update={"own": recipe.own.model_copy(update={"file": file})})
        catalog = catalog.with_recipe(recipe)
    return catalog


def with_methods(
    texts: Sequence[str], root: Path, catalog: Catalog, *, keep: bool = True
) -> tuple[tuple[str, ...], Catalog]:
    """The methods of a command line by name, and the catalogue with those of files and of
    distributions; with `keep` later commands under `root` know them too.

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
                kept = _checked(recipe, own, root if keep else None, catalog)
                catalog = catalog.with_recipe(kept)
        names.append(text)  # also of what was run here before
    return tuple(names), catalog


def named(word: str) -> str:
    """A word of this command line with the copies that were kept in place of the files: what is run
    later must not read a file that may have changed since."""
    option, equals, texts = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + ",".join(_NAMED.get(t.strip(), t) for t in texts.split(","))


def origin(recipe: Recipe) -> str:
    """Where a recipe that is not ours is from; empty for ours."""
    if is_packaged(family(recipe.name)):
        return ""
    if not recipe.own:
        return "your own"
    code = f"sha256 {recipe.own.code[:12]}"
    if recipe.own.module:
        return f"your own, module {recipe.own.module} of {recipe.own.release}, {code}"
    return f"your own, {recipe.own.file}, {code}"


def with_protocols(texts: Sequence[str], catalog: Catalog) -> Catalog:
    """The catalogue with the protocols among these names that a distribution offers. Raises
    ValueError."""
    for text in texts:
        point = None if text in catalog.protocols else _offered(PROTOCOLS_GROUP, text)
        if point is None:
            continue
        offering = _load(point)
        if not is_protocol(offering) or offering.name != text:
            raise ValueError(f"{_said(point)} is no protocol called {text}")
        catalog = catalog.with_protocol(offering)
    return catalog


def offered(group: str) -> list[EntryPoint]:
    """What installed distributions offer, by name; nothing of it is loaded."""
    return sorted(entry_points(group=group), key=lambda point: point.name)


def _offered(group: str, name: str) -> EntryPoint | None:
    found = [point for point in offered(group) if point.name == name]
    if len(found) > 1:
        raise ValueError(f"{name} is offered twice: by {' and by '.join(map(_said, found))}")
    return found[0] if found else None


def _said(point: EntryPoint) -> str:
    whose = point.dist.name if point.dist else "a distribution"
    return f"{whose} ({point.value})"


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{_said(point)} cannot be loaded: {_line(error, '')}") from None


def _recipes_of(point: EntryPoint) -> list[tuple[Recipe, Own | None]]:
    found = _load(point)
    several = found if isinstance(found, list | tuple) and found else [found]
    made: list[tuple[Recipe, Own | None]] = []
    for recipe in several:
        if not isinstance(recipe, Recipe) or family(recipe.name) != point.name:
            raise ValueError(
                f"{_said(point)}: {recipe!r:.80} is no recipe of a family {point.name}"
            )
        module = importlib.import_module(point.module)
        made.append((recipe, _own_of(recipe, module, point)))
    return made


def _own_of(recipe: Recipe, module: ModuleType, point: EntryPoint) -> Own | None:
    """The module that defines the class of a recipe's method; None where the method is ours."""
    found = getattr(module, recipe.method, None)
    if recipe.method in methods.METHODS and not inspect.isclass(found):
        return None
    defining = importlib.import_module(getattr(found, "__module__", module.__name__))
    path = Path(str(defining.__file__))
    release = f"{point.dist.name} {point.dist.version}" if point.dist else ""
    code = _hash(path.read_bytes())
    return Own(code=code, file=str(path), module=defining.__name__, release=release)


def _of_file(text: str, root: Path, catalog: Catalog, keep: bool) -> Recipe:
    """The recipe of `text`, whose file is run once."""
    path_text, colon, name = text.rpartition(":")
    path = Path(path_text if colon else text).expanduser()
    if not path.is_file():
        raise ValueError(f"--method {text}: there is no file {path}")
    source = path.read_bytes()
    own = Own(code=_hash(source), file=str(path.resolve()))
    try:
        module = methods.load_own(own)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--method {text}: {_line(error, own.file)}") from None
    known = sorted(k for k, v in vars(module).items() if isinstance(v, Recipe))
    if not known and name not in vars(module):
        raise ValueError(f"--method {text}: there is no Recipe in it: see docs/own_method.md")
    if not colon or name not in known:
        given = ", ".join(f"{path}:{one}" for one in known) or "none: see docs/own_method.md"
        if not colon:
            raise ValueError(f"--method {text}: name a recipe in it. It has {given}")
        if name in vars(module):
            raise ValueError(f"--method {text}: {name} is no Recipe. It has {given}")
        raise ValueError(f"--method {text}: {unknown('recipe', name, known)}. It has {given}")
    recipe = getattr(module, name)
    ours = recipe.method in methods.METHODS and not inspect.isclass(vars(module).get(recipe.method))
    folder = (root / FOLDER).resolve()
    if Path(own.file).parent == folder or not keep:  # a copy: what is run later names it
        return _checked(recipe, None if ours else own, None, catalog)
    kept = _checked(recipe, None if ours else own, root, catalog)
    _NAMED[text] = f"{_copied(own, folder).file}:{name}"
    return kept


def _checked(recipe: Recipe, own: Own | None, root: Path | None, catalog: Catalog) -> Recipe:
    """A recipe that was checked, with its module; kept with its file under a `root`."""
    _check_name(recipe)
    if own and recipe.method in methods.METHODS:
        raise ValueError(
            f"{own.file}: the class {recipe.method} has the name of one of our methods: choose "
            "another"
        )
    recipe = recipe.model_copy(update={"own": own})
    if own:
        methods.own_class(own, recipe.method)
    methods.check(recipe)
    if root:
        recipe = _kept(recipe, (root / FOLDER).resolve(), catalog)
    return recipe


def _kept(recipe: Recipe, folder: Path, catalog: Catalog) -> Recipe:
    """`recipe` as it is kept in `folder`, with a copy of its file; says where it was another."""
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.own:
        recipe = recipe.model_copy(update={"own": _copied(recipe.own, folder)})
    before = catalog.recipes.get(recipe.name)
    if before and before.own and before.own != recipe.own:
        print(
            f"note: {recipe.name} was {origin(before)}; tables show this one from now on. Another "
            "name keeps both in sight",
            file=sys.stderr,
        )
    write_atomically(folder / f"{recipe.name}.json", recipe.model_dump_json(indent=1))
    return recipe


def _copied(own: Own, folder: Path) -> Own:
    """`own` with a copy of its file in `folder`, by its hash."""
    copy = folder / f"{own.code[:12]}-{Path(own.file).name}"
    if not copy.exists() or _hash(copy.read_bytes()) != own.code:
        write_atomically(copy, Path(own.file).read_bytes())
    return own.model_copy(update={"file": str(copy)})


def _check_name(recipe: Recipe) -> None:
    found = NAME.fullmatch(recipe.name)
    if not found or int(found[1]) != recipe.epochs:
        raise ValueError(
            f"recipe {recipe.name!r}: name it by its family and its epochs, as "
            f"my_method_{recipe.epochs}ep"
        )
    if is_packaged(family(recipe.name)):
        raise ValueError(
            f"recipe {recipe.name!r}: the paper's recipes have a family {family(recipe.name)}: "
            "choose another name"
        )


def _hash(source: bytes) -> str:
    return sha256(source).hexdigest()


def _line(error: BaseException, file: str) -> str:
    """What went wrong and in which line of the user's file, or of any."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if not file or frame.filename == file]
    where = f"{here[-1].filename}, line {here[-1].lineno}: " if here else ""
    said = explain(error) if isinstance(error, ValidationError) else str(error)
    return f"{where}{type(error).__name__}: {said}"
