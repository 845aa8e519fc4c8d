"""The pre-training methods by name, one file each; importing this does not import torch."""

import ast
import importlib
import importlib.util
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from lewel_bench.pretrain.recipe import Own, Positive, Rate, Recipe
from lewel_bench.pretrain.views import AUGMENTS
from lewel_bench.value import unknown

if TYPE_CHECKING:
    from lewel_bench.pretrain.method import Method

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, le=1)]
Counts = Annotated[str, Field(pattern=r"^[1-9]\d*(,[1-9]\d*)*$")]  # "10,20"

METHODS: dict[str, str] = {
    "barlow_twins": "BarlowTwins: make the cross-correlation of two views' embeddings the identity",
    "byol": "BYOL: predict the momentum network's embedding of the other view",
    "densecl": "DenseCL: MoCo v2, and the same for every position of the feature map",
    "instdisc": "InstDisc: tell an image from all others in a memory bank",
    "lewel_b": "LewelB: LEWEL on BYOL, aligned embeddings without negatives",
    "lewel_m": "LewelM: LEWEL on MoCo v2, aligned embeddings with InfoNCE",
    "moco_v2": "MoCoV2: momentum contrast with a queue of negatives",
    "pcl": "PCL: MoCo, and the same with prototypes from clustering",
    "pixpro": "PixPro: pixels agree with their surroundings in the other view",
    "resim": "ReSim: MoCo v2, and the same for regions that both views show",
    "simclr": "SimCLR: contrast with both views of all other images of a large batch",
    "simsiam": "SimSiam: predict the other view's embedding, without a momentum network",
    "supervised": "Supervised: cross-entropy over the labels",
    "swav": "SwAV: predict the other view's assignment to prototypes, with multi-crop",
}

# Arguments that came when keys had been written without them: no part of a key at these values.
LATER: dict[str, dict[str, Any]] = {
    "lewel_m": {"maps": "coupled", "semantic": True},
    "moco_v2": {"symmetric": False},
}

_TYPES = {
    "Positive": Positive,
    "Size": Size,
    "Rate": Rate,
    "Temperature": Temperature,
    "Weight": Weight,
    "Counts": Counts,
    "Literal": Literal,
}


def build(recipe: Recipe, seed: int, *, images: int = 0, classes: int = 0) -> "Method":
    """The method of `recipe`, initialised from `seed` alone (the same on every rank).

    `images` and `classes` are the numbers of the training set, for methods that keep something for
    each. Raises ValueError as `check` does.
    """
    import inspect

    import torch

    from lewel_bench.pretrain import backbone
    from lewel_bench.pretrain.norm import BatchNorm, TokenNorm

    check(recipe)
    if recipe.own:
        method_class = own_class(recipe.own, recipe.method)
    else:
        module = importlib.import_module(f"{__name__}.{recipe.method}")
        method_class = getattr(module, METHODS[recipe.method].split(":")[0])
    group = recipe.bn_group
    given = {"ema": recipe.ema, "seed": seed, "images": images, "classes": classes}
    asked = inspect.signature(method_class).parameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method: Method = method_class(
            lambda: backbone.build(recipe.backbone, lambda n: BatchNorm(n, group)),
            lambda n: TokenNorm(n, group),
            **{name: value for name, value in given.items() if name in asked},
            **recipe.args,
        )
    return method


def check(recipe: Recipe) -> None:
    """Raise ValueError where `recipe` asks for a method, an argument or a value that cannot be.

    Reads the method's source and not its module, so that planning stays quick.
    """
    if recipe.own is None and recipe.method not in METHODS:
        raise ValueError(unknown("method", recipe.method, METHODS))
    if recipe.augment not in AUGMENTS:
        raise ValueError(unknown("augment", recipe.augment, AUGMENTS))
    known = arguments(recipe.method, recipe.own)
    for name, value in recipe.args.items():
        if name not in known:
            raise ValueError(unknown(f"argument of {recipe.method}", name, known))
        try:
            TypeAdapter(known[name][0]).validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            where = f"argument {name} of {recipe.method}"
            raise ValueError(f"{where}: {message} (got {value!r})") from None
    if recipe.ema is None and "ema" in _asked(recipe):
        raise ValueError(f"{recipe.method} has a momentum network: set ema.start")
    settings = {name: default for name, (_, default) in known.items()} | recipe.args
    pushed = recipe.batch * (2 if settings.get("symmetric") else 1)
    if settings.get("queue") and settings["queue"] < pushed:
        raise ValueError(
            f"argument queue of {recipe.method}: {settings['queue']} is smaller than the batch "
            f"{recipe.batch}; set args.queue to at least {pushed}"
        )
    if settings.get("semantic") is False and settings["c"] not in (None, settings["d"]):
        raise ValueError(
            f"argument c of {recipe.method}: without a semantic projector it must be d"
        )
    if "h" in settings:
        h, d = settings["h"], settings["d"]
        spec = recipe.backbone
        channels = spec.width * (8 if spec.arch in ("resnet18", "resnet34") else 32)
        if d % h or channels % h:
            raise ValueError(
                f"argument h of {recipe.method}: {h} must divide d {d} and the {channels} "
                f"channels of {spec.arch}"
            )


def own_class(own: Own, name: str) -> "type[Method]":
    """A class of the user's own, from its copied file or its installed module.

    Raises ValueError where the file is not the one that was planned, or has no such method.
    """
    import inspect

    from lewel_bench.pretrain.method import Method

    module = load_own(own)
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise ValueError(f"{own.file}: {name} is no class made from lewel_bench's Method")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise ValueError(f"{own.file}: {name} does not define {lacking}")
    return found


def load_own(own: Own) -> ModuleType:
    """The module of a user's own method. Raises ValueError where its file has changed."""
    if own.module:
        module = importlib.import_module(own.module)
        path = Path(str(module.__file__))
    else:
        path = Path(own.file)
    if not path.is_file() or sha256(path.read_bytes()).hexdigest() != own.code:
        raise ValueError(f"{path} is not the file that was planned with: run it again by its name")
    if own.module:
        return module
    name = f"lewel_bench_own_{own.code[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@cache
def arguments(method: str, own: Own | None = None) -> dict[str, tuple[Any, Any]]:
    """The arguments that a recipe may give `method`: name -> (type, default)."""
    found = {}
    given = _constructor(method, own)
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        if argument.annotation is not None and default is not None:
            text = ast.unparse(argument.annotation)
            try:
                annotation = eval(text, dict(_TYPES))
            except NameError:
                known = ", ".join(("bool", "int", "float", "str", *_TYPES))
                raise ValueError(
                    f"argument {argument.arg} of {method}: its type {text} is none of {known}"
                ) from None
            found[argument.arg] = (annotation, ast.literal_eval(default))
    return found


def _asked(recipe: Recipe) -> set[str]:
    return {argument.arg for argument in _constructor(recipe.method, recipe.own).kwonlyargs}


@cache
def _constructor(method: str, own: Own | None) -> ast.arguments:
    """The parameters of a method's constructor, from its source."""
    name = method if own else METHODS[method].split(":")[0]
    path = Path(own.file) if own else Path(__file__).parent / f"{method}.py"
    tree = ast.parse(path.read_text("utf-8"))
    classes = [x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == name]
    if not classes:
        raise ValueError(f"{path} has no class {name}, which its recipe names as its method")
    functions = (x for x in classes[-1].body if isinstance(x, ast.FunctionDef))
    inits = [x.args for x in functions if x.name == "__init__"]
    if not inits:
        raise ValueError(f"{path}: {name} has no __init__(self, backbone, norm, *, ...)")
    return inits[-1]
