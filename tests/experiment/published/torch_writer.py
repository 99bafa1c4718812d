"""PyTorch's .pth files written without PyTorch, for tests of what reads them: the opcodes of torch.save, by hand."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "f8": "Double",
    "f4": "Float",
    "f2": "Half",
    "i8": "Long",
    "i4": "Int",
    "i2": "Short",
    "i1": "Char",
    "u1": "Byte",
    "b1": "Bool",
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor(
    key: str,
    storage: str,
    numel: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    legacy: bool = False,
) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage `key`, offset, shape, strides, False, OrderedDict())."""
    storage_id = (
        b"("
        + text("storage")
        + name("torch", storage)
        + text(key)
        + text("cpu")
        + pickled(numel)
        + (b"N" if legacy else b"")
        + b"tQ"
    )
    hooks = name("collections", "OrderedDict") + b")R"
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage_id
        + pickled(offset)
        + pickled(shape)
        + pickled(strides)
        + b"\x89"
        + hooks
        + b"tR"
    )


def pickled(value: Any, stored: list[np.ndarray] | None = None, legacy: bool = False) -> bytes:
    """The value's opcodes; its arrays are appended to `stored` and called by their numbers there. bytes are opcodes
    already.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if isinstance(value, int):
        data = value.to_bytes(12, "little", signed=True)
        return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x0c" + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, np.ndarray):
        assert stored is not None
        stored.append(value)
        strides = tuple(step // value.itemsize for step in value.strides)
        storage = STORAGES[value.dtype.str[1:]] + "Storage"
        return tensor(str(len(stored) - 1), storage, value.size, value.shape, strides, legacy=legacy)
    items = [pickled(part, stored, legacy) for part in (sum(value.items(), ()) if isinstance(value, dict) else value)]
    start, end = {dict: (b"}(", b"u"), list: (b"](", b"e"), tuple: (b"(", b"t")}[type(value)]
    return start + b"".join(items) + end


def program(opcodes: bytes) -> bytes:
    return b"\x80\x02" + opcodes + b"."


def write_pth(path: Path, value: Any, big_endian: bool = False) -> Path:
    """As torch.save since 1.6: a zip of data.pkl and a file for each storage. Transposed arrays keep their order in
    memory.
    """
    stored: list[np.ndarray] = []
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program(pickled(value, stored)))
        archive.writestr("archive/byteorder", "big" if big_endian else "little")
        for number, array in enumerate(stored):
            memory = array.ravel(order="K")
            archive.writestr(
                f"archive/data/{number}", memory.astype(memory.dtype.newbyteorder(">" if big_endian else "<")).tobytes()
            )
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy_pth(path: Path, value: Any) -> Path:
    """As torch.save before 1.6."""
    stored: list[np.ndarray] = []
    body = pickled(value, stored, legacy=True)
    heads = [
        MAGIC,
        PROTOCOL,
        {"protocol_version": PROTOCOL, "little_endian": True},
        body,
        [str(k) for k in range(len(stored))],
    ]
    storages = [struct.pack("<q", array.size) + array.ravel(order="K").tobytes() for array in stored]
    path.write_bytes(b"".join([*(program(pickled(head)) for head in heads), *storages]))
    return path


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], **changed: Any) -> Path:
    """`changed`: other entries of the header."""
    kinds = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "u2": "BF16"}  # bfloat16 as its bits
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    buffer = b""
    for key, array in arrays.items():
        offsets = [len(buffer), len(buffer) + array.nbytes]
        header[key] = {"dtype": kinds[array.dtype.str[1:]], "shape": list(array.shape), "data_offsets": offsets}
        buffer += array.tobytes()
    encoded = json.dumps({**header, **changed}).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + buffer)
    return path
