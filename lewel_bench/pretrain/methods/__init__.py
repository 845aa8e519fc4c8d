"""The pre-training methods by name, one file each; importing this does not import torch."""

import ast
import importlib
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError

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

GIVEN = ("ema", "seed", "images", "classes")  # what a constructor may ask for beside its arguments

_OF_A_TYPE = (
    *(ast.Expression, ast.Name, ast.Load, ast.Constant, ast.Subscript, ast.Tuple, ast.List),
    *(ast.BinOp, ast.BitOr, ast.UnaryOp, ast.USub),
)
_TYPES = {
    **{one.__name__: one for one in (bool, int, float, str)},
    "Positive": Positive,
    "Size": Size,
    "Rate": Rate,
    "Temperature": Temperature,
    "Weight": Weight,
    "Counts": Counts,
    "Literal": Literal,
}


TOGETHER = ("simclr", "swav")  # methods of ours whose views pass through the networks together
JOINT = ("barlow_twins", "simclr", "swav")  # methods of ours whose `joint` is True
BEGINS = {"pcl": "warmup", "swav": "queue_from"}  # the epoch from which they are what they are


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
    given = dict(zip(GIVEN, (recipe.ema, seed, images, classes), strict=True))
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


def settings(recipe: Recipe) -> dict[str, Any]:
    """The arguments of a recipe's method, with the defaults of those that it does not set."""
    known = arguments(recipe.method, recipe.own)
    return {name: default for name, (_, default) in known.items()} | recipe.args


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
        _fits(recipe.method, name, known[name][0], value)
    if recipe.ema is None and "ema" in _asked(recipe):
        raise ValueError(f"{recipe.method} has a momentum network: set ema.start")
    ours = _constructor(recipe.method, recipe.own)[1]
    if ours:  # else an argument of such a name means what its author says
        _check_ours(recipe, ours)


def begins(recipe: Recipe) -> int:
    """The epoch from which `recipe` has all its losses: PCL's prototypes, SwAV's queue."""
    name = BEGINS.get(_constructor(recipe.method, recipe.own)[1])
    found = settings(recipe)
    return int(found[name]) if name and found["queue"] else 0


def _check_ours(recipe: Recipe, ours: str) -> None:
    """The same for what the types of the arguments of `ours` do not say."""
    found = settings(recipe)
    if recipe.bn_group and ours in TOGETHER:
        raise ValueError(
            f"bn_group of {recipe.method}: its views pass together, and a group would be of other "
            "images on another number of devices; leave bn_group out: the whole batch is one group"
        )
    if (first := begins(recipe)) >= recipe.epochs:
        name = BEGINS[ours]
        raise ValueError(
            f"argument {name} of {recipe.method}: from epoch {first} on leaves nothing "
            f"of {recipe.epochs} epochs; set args.{name} below epochs"
        )
    pushed = recipe.batch * (2 if found.get("symmetric") else 1)
    if found.get("queue") and found["queue"] < pushed:
        raise ValueError(
            f"argument queue of {recipe.method}: {found['queue']} is smaller than the batch "
            f"{recipe.batch}; set args.queue to at least {pushed}"
        )
    if found.get("semantic") is False and found["c"] not in (None, found["d"]):
        raise ValueError(
            f"argument c of {recipe.method}: without a semantic projector it must be d"
        )
    if "h" in found:
        h, d = found["h"], found["d"]
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
        made = (k for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, Method))
        listed = ", ".join(sorted({*made} - {"Method"})) or "none"
        raise ValueError(
            f"{own.file}: {name} is no class made from lewel_bench's Method (it has {listed})"
        )
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
    source = path.read_bytes() if path.is_file() else b""
    if sha256(source).hexdigest() != own.code:
        raise ValueError(
            f"{path} is not the file that was planned with: plan again by `lewel-bench run "
            f"--method` {'its name' if own.module else 'FILE:RECIPE'}"
        )
    if own.module:
        return module
    name = own_name(own)
    if name not in sys.modules:
        # not by an import, which would trust byte code of the same second and size as the file
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        try:
            exec(compile(source, path, "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def own_name(own: Own) -> str:
    """The name of the module of a user's own method."""
    return own.module or f"lewel_bench_own_{own.code[:12]}"


@cache
def arguments(method: str, own: Own | None = None) -> dict[str, tuple[Any, Any]]:
    """The arguments that a recipe may give `method`: name -> (type, default)."""
    found = {}
    given, _ = _constructor(method, own)
    if own and len(given.args) != 3:
        raise ValueError(f"{method}.__init__: write (self, backbone, norm, *, ...)")
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        if argument.annotation is not None and default is not None:
            found[argument.arg] = _argument(method, argument.arg, argument.annotation, default)
        elif own and argument.arg not in GIVEN:
            raise ValueError(
                f"argument {argument.arg} of {method}: give it a type and a default, as "
                "dim: int = 128"
            )
    if own:
        for name, (known, default) in found.items():
            _fits(method, name, known, default)
    return found


def _fits(method: str, name: str, known: Any, value: Any) -> None:
    """Raise ValueError where a value is not of the type of an argument."""
    try:
        TypeAdapter(known).validate_python(value, strict=True)
    except (PydanticUserError, AssertionError):
        raise ValueError(f"argument {name} of {method}: its type is none of a setting") from None
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"argument {name} of {method}: {message} (got {value!r})") from None


def _argument(method: str, name: str, annotation: ast.expr, default: ast.expr) -> tuple[Any, Any]:
    """Type and default of one argument, from the source."""
    text, where = ast.unparse(annotation), f"argument {name} of {method}"
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        text = annotation.value  # a type in quotes
    try:
        tree = ast.parse(text.strip(), mode="eval")
        # no attribute and no call: a file that came with a run root must not be run by a look at it
        if not all(isinstance(node, _OF_A_TYPE) for node in ast.walk(tree)):
            raise TypeError(text)
        known = eval(compile(tree, "<type>", "eval"), {"__builtins__": {}, **_TYPES})
    except (NameError, AttributeError, TypeError, SyntaxError):
        names = ", ".join(_TYPES)
        raise ValueError(f"{where}: its type {text} is none of {names}") from None
    try:
        value = ast.literal_eval(default)
    except ValueError:
        raise ValueError(
            f"{where}: its default {ast.unparse(default)} is no plain number, text, True or False"
        ) from None
    return known, value


def _asked(recipe: Recipe) -> set[str]:
    return {argument.arg for argument in _constructor(recipe.method, recipe.own)[0].kwonlyargs}


@cache
def _constructor(method: str, own: Own | None) -> tuple[ast.arguments, str]:
    """The parameters of a method's constructor, from its source, and the method of ours that it is
    the constructor of. A class of the user's own that has none has that of a class that it is made
    from, here or in the same file; the second is empty for one of the user's own."""
    name = method if own else METHODS[method].split(":")[0]
    path = Path(own.file) if own else Path(__file__).parent / f"{method}.py"
    tree = ast.parse(path.read_bytes())
    classes = {x.name: x for x in tree.body if isinstance(x, ast.ClassDef)}
    if name not in classes:
        raise ValueError(f"{path} has no class {name}, which its recipe names as its method")
    ours = {summary.split(":")[0]: one for one, summary in METHODS.items()}

    def found(name: str) -> tuple[ast.arguments, str] | None:
        if name not in classes:
            return _constructor(ours[name], None) if name in ours else None
        one = classes.pop(name)
        for x in one.body:
            if isinstance(x, ast.FunctionDef) and x.name == "__init__":
                if own and x.args.kwarg:
                    raise ValueError(
                        f"{path}: {method}.__init__ takes **{x.args.kwarg.arg}, which hides what a "
                        "recipe may set: write each argument with its type and default"
                    )
                return x.args, "" if own else method
        bases = (found(ast.unparse(base).rpartition(".")[2]) for base in one.bases)
        return next(filter(None, bases), None)

    given = found(name)
    if given is None:
        raise ValueError(f"{path}: {method} has no __init__(self, backbone, norm, *, ...)")
    return given
