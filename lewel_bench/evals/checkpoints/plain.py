"""The plain data that a pickle may hold, and how it is made of what the pickle says."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DIMENSIONS = 32
# the same dtype by the name of PyTorch's storage, and bytes an element
STORAGES = {
    "Float": ("float32", 4),
    "Double": ("float64", 8),
    "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2),
    "Long": ("int64", 8),
    "Int": ("int32", 4),
    "Short": ("int16", 2),
    "Char": ("int8", 1),
    "Byte": ("uint8", 1),
    "Bool": ("bool", 1),
}
# what is never built, but is in a file of plain data: classes of dtypes, devices, paths, scalars
INERT = frozenset(
    {
        "torch.device",
        "torch.Size",
        "argparse.Namespace",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib.Path",
        "pathlib._local.PosixPath",
        "numpy.ndarray",
        "collections.Counter",
        *(f"builtins.{name}" for name in ("complex", "int", "float", "str", "bool", "slice")),
        *(
            f"torch.{name}"
            for name in ("float32", "float16", "float64", "bfloat16", "int64", "int32", "bool")
        ),
        *(f"torch.{name}" for name in ("int8", "uint8", "int16", "contiguous_format", "strided")),
        *(
            f"numpy.{name}"
            for name in ("float32", "float64", "int64", "int32", "bool_", "core.multiarray.ndarray")
        ),
        *(
            f"numpy.random.{name}"  # the state of a generator
            for name in (
                *("_pickle.__generator_ctor", "_pickle.__bit_generator_ctor", "_pcg64.PCG64"),
                *("_pickle.__randomstate_ctor", "_mt19937.MT19937", "_philox.Philox"),
                *("_sfc64.SFC64", "bit_generator.SeedSequence"),
                "bit_generator.__pyx_unpickle_SeedSequence",
            )
        ),
        # a configuration of omegaconf's
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
        *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "UnionNode")),
        *(
            f"omegaconf.nodes.{name}Node"
            for name in ("Any", "Integer", "Float", "String", "Boolean", "Bytes", "Path", "Enum")
        ),
        "omegaconf.nodes.InterpolationResultNode",
        *(f"typing.{name}" for name in ("Any", "Union", "Optional", "List", "Dict")),
    }
)
WHOLE = (
    "the file holds Python objects instead of weights by name. In the software that wrote it, save "
    "model.state_dict(), and give that file"
)
BYOL = (
    "files of JAX and Haiku, as DeepMind's BYOL publishes them, are not read here: that network "
    "pads its convolutions on one side, so its weights in a ResNet of torchvision's are another "
    "network. The way round: BYOL of EMAN or of solo-learn, see lewel-bench ls checkpoints"
)
WHY = {
    "torch.nn.": WHOLE,
    "torchvision.": WHOLE,
    "timm.": WHOLE,
    "haiku.": BYOL,
    "jax": BYOL,
    "dill.": BYOL,
    "optax.": BYOL,
    "byol": BYOL,
    "torch.storage._load_from_bytes": "a tensor pickled outside torch.save: save it with that",
}
ALONE = (
    "save the weights alone in the software that wrote it, torch.save(model.state_dict(), FILE), "
    "and give that file"
)


class Refused(ValueError):
    """What a pickle holds that is no plain data."""


@dataclass(eq=False)
class Global:
    """The name of something that is not imported."""

    name: str


@dataclass(eq=False)
class Inert:
    """What would be an object of a class that is not imported."""

    name: str
    items: dict[Any, Any] = field(default_factory=dict, repr=False)
    state: Any = field(default=None, repr=False)  # what is in it may take for ever to print


@dataclass(eq=False)
class Storage:
    """Numbers that lie elsewhere in the file."""

    dtype: str
    itemsize: int
    key: str
    count: int


@dataclass(eq=False)
class Strided:
    """A tensor: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class Array:
    """A NumPy array, as its dtype such as "<f4", shape, order and bytes; of one whose dtype is none
    of a weight's, such as a text, nothing is kept."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: bytes = b""

    @property
    def is_number(self) -> bool:
        return self.dtype[1:] in ITEMS


@dataclass(eq=False)
class Dtype:
    """A NumPy dtype."""

    code: str
    order: str = "<"


def foreign(name: str) -> str:
    why = next((text for begin, text in WHY.items() if name.startswith(begin)), ALONE)
    return f"it needs {name}, which is no plain data and is not run: {why}"


def is_storage(name: str) -> bool:
    return name.startswith("torch.") and name.endswith("Storage") and _kind(name) in STORAGES


def _kind(name: str) -> str:
    """The part of a storage's name that STORAGES has."""
    return name.removeprefix("torch.").removeprefix("cuda.").removesuffix("Storage")


def plain_key(key: Any, depth: int = 2) -> Any:
    """A dictionary's key; nested ones could take for ever to hash."""
    if isinstance(key, str | int | float | bytes | Global | Inert) or key is None:
        return key
    if isinstance(key, tuple) and depth and len(key) < 64:
        return tuple(plain_key(part, depth - 1) for part in key)
    raise Refused(f"its pickle has a {type(key).__name__} as the key of a dictionary")


def _text(data: Any) -> bool:
    if not isinstance(data, str | bytes | bytearray):
        raise Refused("an array's content is no bytes: arrays of objects are not read")
    return isinstance(data, str)


def _whole(values: Any) -> tuple[int, ...]:
    if (
        not isinstance(values, tuple | list)
        or len(values) > DIMENSIONS
        or not all(
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60
            for value in values
        )
    ):
        raise ValueError(f"a tensor's shape is broken: it is a {type(values).__name__}")
    return tuple(values)


def storage(kind: Any, key: Any, count: Any) -> Storage:
    """A storage as PyTorch refers to it. Raises Refused for an unknown kind."""
    if not isinstance(kind, Global) or not is_storage(kind.name):
        raise Refused("its pickle has a storage of an unknown kind")
    if not isinstance(key, str | int):
        raise Refused("its pickle has a storage without a name")
    dtype, itemsize = STORAGES[_kind(kind.name)]
    return Storage(dtype, itemsize, str(key), _whole([count])[0])


def restore(array: Array, state: Any) -> None:
    """Fill an array with what its pickle says. Raises ValueError where its size is another."""
    _, array.shape, dtype, array.fortran, data = state
    array.dtype, array.data = _code(dtype), data.encode("latin1") if _text(data) else data
    _checked(array)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Strided:
    """Raises ValueError for a tensor that reaches beyond its storage."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    (first,), sizes, steps = _whole([offset]), _whole(shape), _whole(strides)
    last = first + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
    if math.prod(sizes) and (last >= storage.count or math.prod(sizes) > storage.count):
        raise ValueError(f"a tensor of {sizes} is larger than its storage of {storage.count}")
    return Strided(storage, first, sizes, steps)


def dictionary(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    """Pairs or a dictionary as a dictionary with plain keys."""
    entries = pairs.items() if isinstance(pairs, dict) else pairs
    return {plain_key(key): value for key, value in entries}


def _list(values: Any = (), *_: Any) -> list[Any]:
    if not isinstance(values, list | tuple):
        raise TypeError
    return list(values)


def _dtype(code: Any, *_: Any) -> Dtype:
    if isinstance(code, Global):
        code = {"numpy.float32": "f4", "numpy.float64": "f8", "numpy.int64": "i8"}[code.name]
    if not isinstance(code, str) or not re.fullmatch(PLAIN, code):
        shown = repr(code[:20]) if isinstance(code, str) else f"a {type(code).__name__}"
        raise Refused(f"it holds an array of dtype {shown}, which is no plain data")
    return Dtype(code.strip("<>|="), ">" if code.startswith(">") else "<")


# numbers, texts, dates, records; all but objects
PLAIN = r"[<>|=]?([biufcSUaVmM]\d{0,9}|\?)"
ITEMS = {"f2": 2, "f4": 4, "f8": 8, "i1": 1, "i2": 2, "i4": 4, "i8": 8, "u1": 1, "b1": 1}


def _code(dtype: Any) -> str:
    if not isinstance(dtype, Dtype):
        raise TypeError
    return dtype.order + dtype.code


def _reconstruct(*_: Any) -> Array:
    return Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    _text(data)
    return _checked(Array(_code(dtype), shape, order == "F", bytes(data)))


def _scalar(dtype: Any, data: Any = b"") -> Array:
    return _checked(Array(_code(dtype), (), False, data.encode("latin1") if _text(data) else data))


def _checked(array: Array) -> Array:
    array.shape = _whole(array.shape)
    if not array.is_number:
        array.data = b""
        return array
    size = math.prod(array.shape) * ITEMS[array.dtype[1:]]
    if size != len(array.data):
        raise ValueError(f"an array of {array.shape} has {len(array.data)} bytes instead of {size}")
    return array


def _latin1(text: Any, coding: Any) -> bytes:
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise Refused("its pickle encodes a text in another way than an array's bytes")
    return text.encode("latin1")


def _first(made: Any, *_: Any) -> Any:
    return made


REBUILT: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.nn.parameter.Parameter": _first,
    "collections.OrderedDict": dictionary,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": dictionary,
    "builtins.list": _list,
    "builtins.tuple": lambda values=(): tuple(_list(values)),
    "builtins.set": _list,
    "builtins.frozenset": _list,
    "builtins.bytearray": lambda data=b"", *_: data,
    "_codecs.encode": _latin1,
    "numpy.dtype": _dtype,
    **{
        f"numpy.{core}.{name}": build
        for core in ("core", "_core")
        for name, build in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
}
