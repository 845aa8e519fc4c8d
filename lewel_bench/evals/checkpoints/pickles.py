"""A pickle as plain data: nothing that it names is imported, nothing in it is called.

Every global is a name to this reader. A few names stand for plain data (ordered dictionaries, the
tensors of PyTorch, the arrays of NumPy) and are rebuilt here; names that a caller allows become
inert objects; any other ends the reading, and is named. Sizes are checked against what is there,
so that a small file cannot ask for much memory or time.
"""

import io
import pickletools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from lewel_bench.evals.checkpoints.plain import (
    INERT,
    REBUILT,
    Array,
    Dtype,
    Global,
    Inert,
    Refused,
    Storage,
    Strided,
    dictionary,
    foreign,
    is_storage,
    plain_key,
    restore,
    storage,
)

MOST = 500_000  # instructions: a ResNet-101 with its optimizer's state has some 150,000
SPARE = 1 << 20  # bytes and items that may be copied beside twice the file
LONGEST = 1 << 16  # of a line in a pickle of protocol 0
LONG = "builtins.long"  # what protocol 2 calls an int, as Python 2 did


class Bounded:
    """A part of a file that a pickle is read from: never more than there is, never an endless
    line."""

    def __init__(self, file: io.BufferedIOBase | io.BytesIO, end: int) -> None:
        self.file, self.end = file, end

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.end - self.file.tell())))

    def readline(self) -> bytes:
        return self.file.readline(max(0, min(LONGEST, self.end - self.file.tell())))

    def tell(self) -> int:
        return self.file.tell()


def load(
    file: Bounded,
    allowed: Collection[str] = (),
    seen: set[str] | None = None,
    storages: dict[str, Storage] | None = None,
) -> Any:
    """The next pickle in `file` as plain data: dictionaries, lists, numbers, texts, and the types
    above. `seen` collects the names of inert globals, `storages` those of all tensors by key,
    also of tensors in inert objects.

    Raises Refused naming what is no plain data, ValueError for what is no pickle.
    """
    machine = _Machine(allowed, set() if seen is None else seen, 2 * file.end + SPARE, storages)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
            if count > MOST:
                raise Refused(f"it has more than {MOST:,} instructions")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, MemoryError, RecursionError) as error:
        raise ValueError(f"its pickle is broken ({type(error).__name__})") from None
    raise ValueError("its pickle has no end")


CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Machine:
    """The stack machine of a pickle, without any way out of it."""

    def __init__(
        self,
        allowed: Collection[str],
        seen: set[str],
        copies: int,
        storages: dict[str, Storage] | None = None,
    ) -> None:
        self.allowed, self.seen, self.copies = allowed, seen, copies
        self.storages: dict[str, Storage] = {} if storages is None else storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(argument)
        elif name in VALUES:
            self.stack.append(VALUES[name])
        elif name in DO:
            DO[name](self, argument)
        else:
            raise Refused(f"its pickle has the instruction {name}, which plain data does not need")

    def above(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def named(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("its pickle makes up the name of a global")
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        full = "builtins.int" if full == LONG else full
        if not full.isprintable() or len(full) > 200:
            raise Refused(f"its pickle names a global {ascii(full)[:80]}")
        if full not in REBUILT and full not in INERT and not is_storage(full):
            self.seen.add(full)
            if full not in self.allowed:
                raise Refused(foreign(full))
        self.stack.append(Global(full))

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Refused("its pickle calls something that is no name")
        self.charge(arguments)
        build = REBUILT.get(function.name)
        self.stack.append(build(*arguments) if build else Inert(function.name))

    def charge(self, values: Any) -> None:
        """What is made of `values` may be as large as they are, and they may be used again."""
        sized = (str, bytes, bytearray, list, tuple, dict)
        self.copies -= sum(len(value) for value in values if isinstance(value, sized))
        if self.copies < 0:
            raise Refused("its pickle copies the same content over and over")

    def build(self, state: Any) -> None:
        made = self.stack[-1]
        if isinstance(made, Inert):
            made.state = state
        elif isinstance(made, Array):
            self.charge(state)
            restore(made, state)
        elif isinstance(made, Dtype):
            made.order = {">": ">", "<": "<", "|": "<", "=": "<"}[state[1]]
        elif not isinstance(made, dict | Strided):  # their state is metadata
            raise Refused(f"its pickle gives a state to a {type(made).__name__}")

    def put(self, into: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
        items = into.items if isinstance(into, Inert) else into
        if not isinstance(items, dict):
            raise TypeError
        for key, value in pairs:
            items[plain_key(key)] = value

    def extend(self, into: Any, values: list[Any]) -> None:
        if isinstance(into, Inert):
            return
        if not isinstance(into, list):
            raise TypeError
        into.extend(values)

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]


def _persistent(machine: _Machine, _: Any) -> None:
    arguments = machine.pop()
    if not isinstance(arguments, tuple) or len(arguments) < 5 or arguments[0] != "storage":
        raise Refused("its pickle refers to something that is no storage of PyTorch")
    if len(arguments) > 5 and arguments[5] is not None:
        raise Refused("its pickle has views of storages, which PyTorch has not written since 0.4")
    part = storage(arguments[1], arguments[2], arguments[4])
    known = machine.storages.setdefault(part.key, part)
    if (known.count, known.dtype) != (part.count, part.dtype):
        raise Refused(f"the storage {part.key[:60]} has two sizes")
    machine.stack.append(known)


def _pairs(values: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)


def _do_put(machine: _Machine, place: Any) -> None:
    machine.remember(int(place))


def _do_get(machine: _Machine, place: Any) -> None:
    machine.stack.append(machine.memo[int(place)])


def _nothing(machine: _Machine, _: Any) -> None:
    pass


def _drop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _drop_above(machine: _Machine, _: Any) -> None:
    machine.above()


def _popped(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return make


def _collect(build: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        machine.stack.append(build(machine.above()))

    return make


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.extend(machine.stack[-1], [value])


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.above()
    machine.extend(machine.stack[-1], values)


def _setitem(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.put(machine.stack[-1], [(key, value)])


def _setitems(machine: _Machine, _: Any) -> None:
    values = machine.above()
    machine.put(machine.stack[-1], _pairs(values))


def _global(machine: _Machine, argument: Any) -> None:
    machine.named(*str(argument).split(" ", 1))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.named(module, name)


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.call(function, arguments)


def _newobj_ex(machine: _Machine, _: Any) -> None:
    machine.pop()
    _reduce(machine, None)


def _obj(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.above()
    machine.call(function, tuple(arguments))


def _inst(machine: _Machine, argument: Any) -> None:
    arguments = tuple(machine.above())
    machine.named(*str(argument).split(" ", 1))
    machine.call(machine.pop(), arguments)


def _build(machine: _Machine, _: Any) -> None:
    state = machine.pop()
    machine.build(state)


DO: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": _drop,
    "POP_MARK": _drop_above,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),
    "LIST": _collect(list),
    "TUPLE": _collect(tuple),
    "FROZENSET": _collect(list),
    "DICT": _collect(lambda values: dictionary(_pairs(values))),
    "TUPLE1": _popped(1),
    "TUPLE2": _popped(2),
    "TUPLE3": _popped(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "PUT": _do_put,
    "BINPUT": _do_put,
    "LONG_BINPUT": _do_put,
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "GET": _do_get,
    "BINGET": _do_get,
    "LONG_BINGET": _do_get,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "OBJ": _obj,
    "INST": _inst,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
