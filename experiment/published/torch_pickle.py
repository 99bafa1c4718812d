"""A reader for the pickles in PyTorch's files that runs nothing.

A pickle is a program. Python's own machine for it calls whatever the file names; this one has the opcodes of plain
containers and a table of constructors, torch_objects.py. No object has methods to call.
"""

import pickletools
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from experiment.common.errors import one_line
from experiment.published.torch_objects import (
    STORAGES,
    Name,
    Storage,
    Unbuilt,
    check_whole_numbers,
    constructor,
    find,
    is_plain,
)

# Bytes that constructors may add to what the file holds: beyond it a few of its bytes would make many copies.
MOST_MADE = 2**28


class Refused(ValueError):
    """The reason why a file is not read: half a sentence that follows its name."""


def short(error: object) -> str:
    """The error's text on one line, at most 120 characters of it, without any that would move a terminal's cursor."""
    return one_line(error, 120)


class Unpickler:
    """The stack machine of pickles, with only the opcodes of tensors and plain objects in containers.

    Each of them is a row of `_OPCODES`. load: (dtype, key, numel) -> the storage's numbers.
    """

    def __init__(self, load: Callable[[str, str, int], np.ndarray]):
        self.load = load
        self.storages: dict[tuple[str, str, int], Storage] = {}
        self.room = MOST_MADE

    def run(self, stream: BinaryIO) -> Any:
        """Read one object and leave the stream after it. Raises Refused at the first unknown opcode or name."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name not in _OPCODES:
                raise Refused(
                    f"holds a pickle that would run code (opcode {opcode.name}{_named(argument)}): do not load it; "
                    f"{ELSEWHERE}"
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
        if not all(map(is_plain, items[::2])):
            raise ValueError("a key that is neither text nor number")
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def append_items(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def add_items(self, items: list[Any]) -> None:
        if not all(map(is_plain, items)):
            raise ValueError("an item of a set that is neither text nor number")
        self.top(set).update(items)

    def take(self, n: int) -> list[Any]:
        """Remove the last n entries of the stack and return them."""
        if len(self.stack) < n:
            raise ValueError("an empty stack")
        at = len(self.stack) - n
        items, self.stack[at:] = self.stack[at:], []
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]
        if isinstance(self.stack[-1], Unbuilt):
            self.stack[-1].places.append(index)

    def find_global(self, name: str) -> None:
        """Push what stands for this name, which is a module and a name with a space between."""
        found = find(name)
        if found is None:
            named = short(name).replace(" ", ".")
            raise Refused(
                f"holds a pickle that asks for {named}, which weights never need: do not load it; {ELSEWHERE}"
            )
        self.push(found)

    def stack_global(self, _: None) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        self.find_global(f"{module} {name}")

    def reduce(self, _: None) -> None:
        function, arguments = self.take(2)
        make = constructor(function)
        if make is None or not isinstance(arguments, tuple):
            raise Refused(f"holds a pickle that calls what is no constructor of a tensor: do not load it; {ELSEWHERE}")
        self.push(self.counted(make(*arguments)))

    def counted(self, made: Any) -> Any:
        """Return what a constructor made, of which there must not be too much."""
        self.room -= sys.getsizeof(made)
        if self.room < 0:
            raise ValueError(f"more than {MOST_MADE} bytes of copies")
        return made

    def build(self, _: None) -> None:
        """Finish an array of numpy's; of other objects the attributes are left out, such as a module's version."""
        (state,) = self.take(1)
        unbuilt = self.stack[-1]
        if isinstance(unbuilt, Unbuilt):
            self.stack[-1] = self.counted(unbuilt.build(state))
            for place in unbuilt.places:
                self.memo[place] = self.stack[-1]

    def persistent(self, _: None) -> None:
        """Push a storage, named by ("storage", its class, key, device, numel).

        Before PyTorch 1.6 there is a sixth entry, which is None except for storages within others.
        """
        kind, cls, key, _device, numel, *view = self.take(1)[0]
        known = isinstance(cls, Name) and cls.name.rpartition(" ")[2] in STORAGES and isinstance(key, str)
        if kind != "storage" or not known or any(v is not None for v in view):
            raise ValueError("a storage of an unknown kind")
        check_whole_numbers(numel)
        wanted = (STORAGES[cls.name.rpartition(" ")[2]], key, numel)
        if wanted not in self.storages:
            self.storages[wanted] = Storage(self.load(*wanted))
        self.push(self.storages[wanted])


ELSEWHERE = "get the weights from where they were published"


def _named(argument: object) -> str:
    return f" {short(argument)}" if isinstance(argument, str) else ""


_Act = Callable[[Unpickler, Any], None]
_OPCODES: dict[str, _Act] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"),
        ),
        Unpickler.push,
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "MARK": Unpickler.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append_items(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append_items(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Unpickler.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GLOBAL": Unpickler.find_global,
    "STACK_GLOBAL": Unpickler.stack_global,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Unpickler.reduce),
    "BUILD": Unpickler.build,
    "BINPERSID": Unpickler.persistent,
}
