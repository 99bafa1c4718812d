"""Readers for the weights in other projects' files, as numpy arrays: PyTorch's .pth, .safetensors, .npz.

They need no PyTorch, and nothing in a file is run.

The formats: torch/serialization.py of PyTorch 1.6 to 2.x, and of before 1.6;
https://github.com/huggingface/safetensors; numpy.lib.format.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from experiment.common.errors import UserError
from experiment.common.files import arrays_in, open_regular
from experiment.devices.memory import available
from experiment.published.torch_objects import check_whole_numbers
from experiment.published.torch_pickle import ELSEWHERE, Refused, Unpickler, short

# safetensors' names -> numpy's, and "bfloat16", which numpy lacks: read as bits and widened.
SAFETENSORS = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "bfloat16",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U64": "u8",
    "U32": "u4",
    "U16": "u2",
    "U8": "u1",
    "BOOL": "?",
}
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# A compressed .npz may unpack to this many times its size, or to this many bytes; a zip bomb unpacks to more.
MOST_RATIO, MOST_BYTES = 100, 2**30
# Of the containers and names alone: read, they take some forty times as much.
MOST_PICKLE = 2**26


def read_state_dict(path: str | Path) -> Any:
    """Read the file's content: dicts, lists, tuples, numbers, strings, and read-only numpy arrays.

    For .npz and .safetensors that is {name: array}. float16 and bfloat16 become float32. Arrays may be views of a
    file's buffer: copy those that are to outlive the rest.

    Raises UserError for a file that cannot be read, is damaged, or asks for anything but tensors and containers.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            there = available()
            if there is not None and os.fstat(file.fileno()).st_size > there:
                raise MemoryError
            start = file.read(9)
            file.seek(0)
            return _reader(start)(file)
    except Refused as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): give the file of published weights") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into this machine's memory: use a larger one") from None
    except Exception as error:  # a damaged file causes a dozen kinds in the standard library's readers and numpy's
        raise UserError(f"{path} is damaged ({short(error)}): get it again from where it was published") from None


def _reader(start: bytes) -> Callable[[BinaryIO], Any]:
    """Choose the reader by the file's content, whatever its name."""
    if start.startswith(b"PK"):
        return _read_zip
    if start[8:9] == b"{":
        return _read_safetensors
    if start.startswith(b"\x80"):
        return _read_legacy
    raise Refused("is none of PyTorch's .pth, .safetensors and .npz: give published weights in one of these formats")


def _values(data: bytes | memoryview, dtype: str, big_endian: bool = False) -> np.ndarray:
    """Read the buffer's numbers, 1-D, read-only, in this machine's byte order; float16 and bfloat16 are widened."""
    order = ">" if big_endian else "<"
    if dtype == "bfloat16":
        values = (np.frombuffer(data, order + "u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, order + dtype)
        values = values.astype(np.float32 if dtype == "f2" else values.dtype.newbyteorder("="), copy=False)
    values.flags.writeable = False
    return values


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


# --- .safetensors -----------------------------------------------------------------------------------------------------


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read a .safetensors file.

    It has 8 bytes of length, a JSON header {name: {dtype, shape, data_offsets}}, and the tensors' bytes one after
    another.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MOST_PICKLE):
        raise Refused(
            f"is damaged (a header of {length} bytes in a file of {size}): get it again from where it was published"
        )
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    buffer = memoryview(file.read())
    if sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values()) > len(buffer):
        raise ValueError("tensors overlap, or reach past the end")
    return {name: _safetensor(entry, buffer) for name, entry in header.items()}


def _safetensor(entry: dict[str, Any], buffer: memoryview) -> np.ndarray:
    (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], SAFETENSORS[entry["dtype"]]
    check_whole_numbers(begin, end, *shape)
    if not begin <= end <= len(buffer) or end - begin != math.prod(shape) * _itemsize(dtype):
        raise ValueError(f"a tensor of shape {shape} at bytes {begin} to {end} of {len(buffer)}")
    return _values(buffer[begin:end], dtype).reshape(shape)


# --- zip files: .npz, and .pth since PyTorch 1.6 ----------------------------------------------------------------------


def _read_zip(file: BinaryIO) -> Any:
    size = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > max(MOST_RATIO * size, MOST_BYTES):
                raise Refused(
                    f"unpacks from {size} bytes to {unpacked}, which weights do not: get it from where it was published"
                )
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            return _read_torch(archive, pickles[0], size) if pickles else _read_npz(archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        # NotImplementedError stands for an unknown compression, RuntimeError for a password.
        raise Refused(f"is damaged ({short(error)}): get it again from where it was published") from None


def _read_npz(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    arrays = arrays_in(archive, available())
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in arrays.items()}


def _read_torch(archive: zipfile.ZipFile, pickle: str, size: int) -> Any:
    """Read a .pth file as PyTorch 1.6 and later write it: <prefix>data.pkl, and <prefix>data/<key> for each storage.

    PyTorch compresses nothing, so the file's size bounds its content.
    """
    if sum(info.file_size for info in archive.infolist()) > size:
        raise Refused("holds more than its size, which PyTorch never writes: get it from where it was published")
    prefix = pickle.removesuffix("data.pkl")
    big_endian = f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") == b"big"

    def load(dtype: str, key: str, numel: int) -> np.ndarray:
        data = archive.read(f"{prefix}data/{key}")
        if len(data) != numel * _itemsize(dtype):
            raise ValueError(f"storage {short(key)} holds {len(data)} bytes for {numel} numbers")
        return _values(data, dtype, big_endian)

    if archive.getinfo(pickle).file_size > MOST_PICKLE:
        raise Refused(f"holds a pickle of over {MOST_PICKLE} bytes, which weights never need: {ELSEWHERE}")
    return Unpickler(load).run(io.BytesIO(archive.read(pickle)))


# --- .pth before PyTorch 1.6 ------------------------------------------------------------------------------------------


def _read_legacy(file: BinaryIO) -> Any:
    """Read a .pth file as PyTorch before 1.6 wrote it.

    It has five pickles (magic number, protocol, system, the object, the storages' keys), then each storage: int64 numel
    and its numbers.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    none = Unpickler(_no_storages)
    if none.run(file) != LEGACY_MAGIC or none.run(file) != LEGACY_PROTOCOL:
        raise Refused("is a pickle, but not of PyTorch's: give published weights as .pth, .safetensors or .npz")
    big_endian = not none.run(file)["little_endian"]
    start, dtypes = file.tell(), dict[str, str]()

    def note(dtype: str, key: str, numel: int) -> np.ndarray:
        """Note, in a first pass, the dtype of each storage: the object's pickle has it, and stands before them."""
        if numel * _itemsize(dtype) > size:
            raise ValueError(f"a storage of {numel} numbers in a file of {size} bytes")
        dtypes[key] = dtype
        return np.zeros(numel, "u1") if dtype == "u1" else np.broadcast_to(np.zeros((), "i1"), numel)

    Unpickler(note).run(file)
    stored: dict[str, np.ndarray] = {}
    for key in none.run(file):
        numel = int.from_bytes(file.read(8), "big" if big_endian else "little", signed=True)
        check_whole_numbers(numel)
        if numel > size:
            raise ValueError(f"a storage of {numel} numbers in a file of {size} bytes")
        stored[key] = _values(file.read(numel * _itemsize(dtypes[key])), dtypes[key], big_endian)
        if len(stored[key]) != numel:
            raise ValueError("it ends within a storage")
    file.seek(start)
    return Unpickler(lambda dtype, key, numel: stored[key]).run(file)


def _no_storages(dtype: str, key: str, numel: int) -> np.ndarray:
    raise ValueError("a tensor before its place")
