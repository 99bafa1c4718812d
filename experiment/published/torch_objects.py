"""The objects that the names in PyTorch's pickles stand for: a table, and nothing outside it is imported or called.

It has the names that PyTorch's own safe loader allows (torch/_weights_only_unpickler.py), and those of numpy's numbers
and arrays. What no network is built from, such as a device or a sparse tensor, is kept as its name alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from experiment.common.errors import shown

# PyTorch's storage classes -> numpy's dtypes, and "bfloat16", which numpy lacks. An untyped one is of bytes.
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
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
    "QInt8Storage": "i1",
    "QUInt8Storage": "u1",
    "QInt32Storage": "i4",
    "QUInt4x2Storage": "u1",
    "QUInt2x4Storage": "u1",
    "UntypedStorage": "u1",
}
# The dtypes of tensors in untyped storages; the others have storages of their own.
UNTYPED: dict[str, Any] = {
    "torch.uint16": np.uint16,
    "torch.uint32": np.uint32,
    "torch.uint64": np.uint64,
    "torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "torch.float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "torch.float8_e5m2": ml_dtypes.float8_e5m2,
    "torch.float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "torch.float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}
_DTYPES = (
    "float32 float64 float16 bfloat16 complex32 complex64 complex128 bool quint8 qint8 qint32 quint4x2 quint2x4"
    " float4_e2m1fn_x2 bits1x8 bits2x4 bits4x2 bits8 bits16"
    " per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric per_channel_affine_float_qparams"
).split() + [f"{sign}int{bits}" for sign in ("", "u") for bits in (*range(1, 9), 16, 32, 64)]
NAMED = {f"torch {name}": f"torch.{name}" for name in (*_DTYPES, *(name.removeprefix("torch.") for name in UNTYPED))}


@dataclass(frozen=True)
class Name:
    """A name that a pickle mentions, its module and itself with a space between. Nothing is imported for it."""

    name: str


@dataclass(frozen=True)
class Other:
    """Something that no network is built from; only its name is kept."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers that tensors are views of, 1-D."""

    values: np.ndarray


@dataclass(eq=False)
class Unbuilt:
    """A numpy object whose content follows: `build` makes it. `places`: where the pickle's memo has it."""

    build: Callable[[Any], Any]
    value: Any = None
    places: list[int] = field(default_factory=list)


def is_plain(key: Any) -> bool:
    """Tell whether a dict's key or a set's item is quickly hashed: the hash of nested tuples may take forever."""
    if isinstance(key, tuple):
        return len(key) <= 16 and not any(isinstance(part, tuple) for part in key) and all(map(is_plain, key))
    return key is None or isinstance(key, str | bytes | int | float | complex | Name | Other)


def check_whole_numbers(*numbers: Any) -> None:
    if any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError("a size that is not a whole number")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray:
    """Make a read-only view of the storage; the last of `rest` may tell that the numbers are to be negated.

    Raises ValueError for a view that reaches outside the storage, or has more entries than it.
    """
    tuples = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not isinstance(storage, Storage) or not tuples or len(shape) != len(strides):
        raise ValueError("a tensor without storage or shape")
    check_whole_numbers(offset, *shape, *strides)
    values = storage.values
    if math.prod(shape) == 0:
        return np.zeros(shape, values.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= values.size or math.prod(shape) > values.size:
        raise ValueError(f"a tensor that ends at entry {shown(last)} of a storage of {values.size}")
    steps = [stride * values.itemsize for stride in strides]
    return _marked(np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False), rest)


def _marked(array: np.ndarray, rest: tuple[Any, ...]) -> np.ndarray:
    """Do what the tensor's marks leave to be done: its numbers may be stored negated or conjugated."""
    marks = rest[-1] if rest and isinstance(rest[-1], dict) else {}
    array = np.conj(array) if marks.get("conj") is True else array
    return -array if marks.get("neg") is True else array


def _untyped_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> Any:
    if not isinstance(storage, Storage) or storage.values.dtype != np.uint8 or not isinstance(dtype, str):
        raise ValueError("a tensor without storage or dtype")
    if dtype not in UNTYPED:
        return Other(f"a tensor of {dtype}")
    kind = np.dtype(UNTYPED[dtype])
    if kind.itemsize == 1:  # of numpy's own dtypes, which float8 is none of, views can be made
        found = np.ascontiguousarray(_tensor(storage, offset, shape, strides))
        return _marked(found.view(kind).astype(np.float32), rest)
    return _tensor(Storage(storage.values.view(kind.newbyteorder("<"))), offset, shape, strides, *rest)


def _first(value: Any, *_: Any) -> Any:
    return value


def _of_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """Make a tensor that has attributes, or is of a subclass: the tensor alone."""
    make = constructor(function)
    if make is None or make is _of_type:
        raise ValueError("a tensor made by what makes none")
    return make(*arguments)


def _device(kind: str, index: int | None = None) -> str:
    return str(kind) if index is None else f"{kind}:{index}"


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    if isinstance(content, str) and encoding in ("latin1", "latin-1", "utf-8"):
        return content.encode(encoding)
    if not isinstance(content, bytes):
        raise ValueError("bytes that are none")
    return content


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple) or not all(map(is_plain, items)):
        raise ValueError("a set of what is neither text nor number")
    return set(items)


def _dict(items: Any = ()) -> dict[Any, Any]:
    """Make a dict; most often the items follow, by opcodes of their own."""
    pairs = list(items.items()) if isinstance(items, dict) else [(key, value) for key, value in items]
    if not all(is_plain(key) for key, _ in pairs):
        raise ValueError("a key that is neither text nor number")
    return dict(pairs)


def _size(items: Any = ()) -> tuple[int, ...]:
    check_whole_numbers(*items)
    return tuple(items)


def _complex(real: float = 0.0, imaginary: float = 0.0) -> complex:
    return complex(real, imaginary)


# --- numpy's numbers and arrays ---------------------------------------------------------------------------------------


def _dtype(code: Any, *_: Any) -> Unbuilt:
    """Make numpy's dtype; the byte order follows. Those that are not of numbers are kept as Other."""
    try:
        plain = np.dtype(code if isinstance(code, str) and len(code) < 9 else "O")
    except TypeError:
        raise ValueError("an array of an unknown dtype") from None
    value: Any = plain if plain.kind in "biufc" else Other(f"numpy {plain.kind}")

    def build(state: Any) -> Any:
        order: Any = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else "="
        return value.newbyteorder(order) if isinstance(value, np.dtype) else value

    return Unbuilt(build, value)


def _of_numbers(dtype: Any) -> np.dtype | None:
    found = dtype.value if isinstance(dtype, Unbuilt) else dtype
    if not isinstance(found, np.dtype | Other):
        raise ValueError("numbers without a dtype")
    return found if isinstance(found, np.dtype) else None


def _scalar(dtype: Any, content: Any = None) -> Any:
    kind = _of_numbers(dtype)
    if kind is None:
        return Other("numpy scalar")
    (value,) = np.frombuffer(_bytes(content), kind)
    return value.item()


def _array(*_: Any) -> Unbuilt:
    """Make numpy's array; its (version, shape, dtype, whether it is in Fortran's order, bytes) follow."""

    def build(state: Any) -> Any:
        _version, shape, dtype, fortran, content = state
        kind = _of_numbers(dtype)
        if kind is None:
            return Other("numpy array")
        check_whole_numbers(*shape)
        values = np.frombuffer(_bytes(content), kind).astype(kind.newbyteorder("="), copy=False)
        values = values.reshape(shape, order="F" if fortran else "C")
        return values.astype(np.float32) if values.dtype == np.float16 else values

    return Unbuilt(build)


def _name_alone(name: str) -> Callable[..., Other]:
    return lambda *_: Other(name)


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _untyped_tensor,
    "torch._utils _rebuild_parameter": _first,
    "torch._utils _rebuild_parameter_with_state": _first,
    "torch._utils _rebuild_device_tensor_from_numpy": _first,
    "torch._utils _rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor _rebuild_from_type_v2": _of_type,
    "torch.nn.parameter Parameter": _first,
    "torch Size": _size,
    "torch device": _device,
    "collections OrderedDict": _dict,
    "collections Counter": _dict,
    "_codecs encode": _bytes,
    **{
        f"torch._utils _rebuild_{kind}": _name_alone(f"a {kind}")
        for kind in ("qtensor", "sparse_tensor", "meta_tensor_no_storage", "nested_tensor", "wrapper_subclass")
    },
    "torch.serialization _get_layout": _name_alone("a layout"),
    # Protocol 2 has Python 2's names.
    **{f"{module} set": _set for module in ("builtins", "__builtin__")},
    **{f"{module} bytearray": _bytes for module in ("builtins", "__builtin__")},
    **{f"{module} complex": _complex for module in ("builtins", "__builtin__")},
    "numpy dtype": _dtype,
    **{f"numpy.{core}.multiarray scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray _reconstruct": _array for core in ("core", "_core")},
}
# Names that are arguments and are never called.
ARGUMENTS = frozenset({"torch Tensor", "torch.storage TypedStorage", "numpy ndarray"})
TENSORS = frozenset(storage.replace("Storage", "Tensor") for storage in STORAGES)


def find(name: str) -> Any:
    """Return what stands for the name in a pickle; None where the table has none."""
    if name in NAMED:
        return NAMED[name]
    module, _, last = name.partition(" ")
    storage = module in ("torch", "torch.cuda", "torch.storage") and last in STORAGES
    tensor = module in ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse") and last in TENSORS
    return Name(name) if name in CONSTRUCTORS or name in ARGUMENTS or storage or tensor else None


def constructor(function: Any) -> Callable[..., Any] | None:
    """Return the table's constructor of this name; None for what is none."""
    return CONSTRUCTORS.get(function.name) if isinstance(function, Name) else None
