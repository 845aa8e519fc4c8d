"""The class and the settings of a user's own method, from its copied file or installed module.

Everything here runs the user's file; only `lewel-bench run` and the jobs that it starts do so.
"""

import importlib
import inspect
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from lewel_bench.pretrain.method import Method
from lewel_bench.pretrain.methods.settings import OFFERED, Settings
from lewel_bench.pretrain.recipe import Own
from lewel_bench.value import explain


def load_class(own: Own, name: str) -> type[Method]:
    """The class `name` of a user's file or module. Raises ValueError where the file is not the
    planned version, or has no such method."""
    module = load_module(own)
    class_ = getattr(module, name, None)
    if not (inspect.isclass(class_) and issubclass(class_, Method)):
        known = (k for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, Method))
        listed = ", ".join(sorted({*known} - {"Method"})) or "none"
        problem = f"{name} is not a subclass of" if class_ else f"no class {name} that subclasses"
        raise ValueError(f"{own.file}: {problem} lewel_bench's Method. Classes that do: {listed}")
    if inspect.isabstract(class_):
        missing = ", ".join(sorted(class_.__abstractmethods__))
        raise ValueError(f"{own.file}: {name} does not define {missing}")
    return class_


def load_settings(own: Own, name: str) -> type[Settings]:
    """The settings class of a user's method: the type of its constructor's first parameter.

    Raises ValueError where that is no `Settings`, or has a field without a usable default.
    """
    parameters = _parameters(own, name)
    first, others = parameters[:3], parameters[3:]
    class_ = first[0].annotation if first else None
    is_usual = len(first) == 3 and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in first)
    is_given = all(p.name in OFFERED or p.default is not p.empty for p in others)
    if not (inspect.isclass(class_) and issubclass(class_, Settings) and is_usual and is_given):
        raise ValueError(
            f"{own.file}: write {name}.__init__(self, settings: {name}Settings, backbone, norm, "
            f"*, ...), with a subclass of Settings, and of {', '.join(OFFERED)} those that it needs"
        )
    for field, info in class_.model_fields.items():
        if info.is_required():
            raise ValueError(
                f"{own.file}: {class_.__name__}.{field} has no default: write {field}: int = 128"
            )
        if not isinstance(info.default, bool | int | float | str | None):
            raise ValueError(
                f"{own.file}: {class_.__name__}.{field}: its default {info.default!r} is not a "
                "number, text, True, False or None"
            )
    try:
        class_.model_validate(class_().model_dump(), strict=True)
    except ValidationError as error:
        raise ValueError(f"{own.file}: {class_.__name__}.{explain(error)}") from None
    return class_


def takes_ema(own: Own, name: str) -> bool:
    """Whether the constructor of a user's method asks for the momentum network's settings."""
    return any(p.name == "ema" for p in _parameters(own, name))


def load_module(own: Own) -> ModuleType:
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
            f"--method {'its name' if own.module else 'FILE:RECIPE'}`"
        )
    if own.module:
        return module
    name = module_name(own)
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


def module_name(own: Own) -> str:
    """The name of the module of a user's own method."""
    return own.module or f"lewel_bench_own_{own.code[:12]}"


def _parameters(own: Own, name: str) -> list[inspect.Parameter]:
    """The parameters of a class's constructor, with the types that they are annotated with."""
    class_ = load_class(own, name)
    try:
        signature = inspect.signature(class_, eval_str=True)
    except NameError as error:
        raise ValueError(f"{own.file}: {name}.__init__: {error}") from None
    return list(signature.parameters.values())
