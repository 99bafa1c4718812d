"""A reader for the pickles in PyTorch's files that runs nothing.

A pickle is a program. Python's own machine for it calls whatever the file names; this one has the opcodes of plain
containers, two constructors of tensors, and nothing else: what a name means is looked up in a table, never imported,
and no object has methods to call.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from experiment.errors import one_line

# PyTorch's storage classes -> numpy's dtypes, and "bfloat16", which numpy lacks.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class Refused(ValueError):
    """The reason why a file is not read: half a sentence that follows its name."""


def short(error: object) -> str:
    """The error's text on one line, at most 120 characters of it, without any that would move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in one_line(error, 120))


def check_whole_numbers(*numbers: Any) -> None:
    if any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError("a size that is not a whole number")


@dataclass(frozen=True)
class _Global:
    """A name that a pickle mentions. Nothing is imported for it."""

    name: str


@dataclass(frozen=True)
class _Storage:
    values: np.ndarray


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    """Make a read-only view of the storage.

    Raises ValueError for a view that reaches outside the storage, or has more entries than it.
    """
    tuples = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not isinstance(storage, _Storage) or not tuples or len(shape) != len(strides):
        raise ValueError("a tensor without storage or shape")
    check_whole_numbers(offset, *shape, *strides)
    values = storage.values
    if math.prod(shape) == 0:
        return np.zeros(shape, values.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= values.size or math.prod(shape) > values.size:
        raise ValueError(f"a tensor that ends at entry {last} of a storage of {values.size}")
    steps = [stride * values.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


def _ordered_dict() -> dict[Any, Any]:
    """Make an empty dict; its items follow, by opcodes of their own."""
    return {}


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered_dict,
}


class Unpickler:
    """The stack machine of pickles, with only the opcodes that PyTorch writes for tensors in containers.

    Each of them is a row of `_OPCODES`. load: (dtype, key, numel) -> the storage's numbers.
    """

    def __init__(self, load: Callable[[str, str, int], np.ndarray]):
        self.load = load
        self.storages: dict[tuple[str, str, int], _Storage] = {}

    def run(self, stream: BinaryIO) -> Any:
        """Read one object and leave the stream after it. Raises Refused at the first unknown opcode or name."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name not in _OPCODES:
                raise Refused(
                    f"holds a pickle that would run code (opcode {opcode.name}{_named(argument)}): do not load it; "
                    f"{_ELSEWHERE}"
                )
            _OPCODES[opcode.name](self, argument)
        (result,) = self.stack
        return result

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        items, self.stack[at:] = self.stack[at:], []
        return items

    def top(self, kind: type) -> Any:
        """The container that the next items go into."""
        if not isinstance(self.stack[-1], kind):
            raise ValueError("items for what is no container")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        if not all(isinstance(key, str | int) for key in items[::2]):  # the hash of nested tuples may take forever
            raise ValueError("a key that is neither text nor number")
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def append_items(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def take(self, n: int) -> list[Any]:
        """Remove the last n entries of the stack and return them."""
        if len(self.stack) < n:
            raise ValueError("an empty stack")
        at = len(self.stack) - n
        items, self.stack[at:] = self.stack[at:], []
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def find_global(self, name: str) -> None:
        """Push the global of this name, which is a module and a name with a space between."""
        storage = name.removeprefix("torch ") in STORAGES and name.startswith("torch ")
        if name not in CONSTRUCTORS and not storage:
            named = short(name).replace(" ", ".")
            raise Refused(
                f"holds a pickle that asks for {named}, which weights never need: do not load it; {_ELSEWHERE}"
            )
        self.push(_Global(name))

    def stack_global(self, _: None) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        self.find_global(f"{module} {name}")

    def reduce(self, _: None) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, _Global) or function.name not in CONSTRUCTORS or not isinstance(arguments, tuple):
            raise Refused(f"holds a pickle that calls what is no constructor of a tensor: do not load it; {_ELSEWHERE}")
        self.push(CONSTRUCTORS[function.name](*arguments))

    def build(self, _: None) -> None:
        """Leave out an object's attributes, such as the versions of a state dict's modules."""
        self.take(1)

    def persistent(self, _: None) -> None:
        """Push a storage, named by ("storage", its class, key, device, numel).

        Before PyTorch 1.6 there is a sixth entry, which is None except for storages within others.
        """
        kind, cls, key, _device, numel, *view = self.take(1)[0]
        known = isinstance(cls, _Global) and isinstance(key, str)
        if kind != "storage" or not known or any(v is not None for v in view):
            raise ValueError("a storage of an unknown kind")
        check_whole_numbers(numel)
        wanted = (STORAGES[cls.name.removeprefix("torch ")], key, numel)
        if wanted not in self.storages:
            self.storages[wanted] = _Storage(self.load(*wanted))
        self.push(self.storages[wanted])


_ELSEWHERE = "get the weights from where they were published"


def _named(argument: object) -> str:
    return f" {short(argument)}" if isinstance(argument, str) else ""


_Act = Callable[[Unpickler, Any], None]
_OPCODES: dict[str, _Act] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        Unpickler.push,
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": Unpickler.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append_items(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append_items(machine.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Unpickler.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GLOBAL": Unpickler.find_global,
    "STACK_GLOBAL": Unpickler.stack_global,
    "REDUCE": Unpickler.reduce,
    "BUILD": Unpickler.build,
    "BINPERSID": Unpickler.persistent,
}
