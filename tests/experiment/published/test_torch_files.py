"""Readers of published weights: every number as PyTorch has it, and no file that runs, reaches or unpacks more than it
should.
"""

import io
import os
import pickle
import resource
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.published.score_sde import parts_of
from experiment.published.torch_files import read_state_dict
from experiment.published.torch_objects import Name, Other, find
from tests.experiment.published.torch_writer import (
    name,
    pickled,
    program,
    tensor,
    text,
    write_legacy_pth,
    write_pth,
    write_safetensors,
)

RNG = np.random.default_rng(0)
ARRAYS = {
    "kernel": RNG.normal(size=(3, 2, 5)).astype("f4"),
    "transposed": RNG.normal(size=(4, 3)).astype("f4").T,
    "sigmas": RNG.normal(size=7),
    "scalar": np.array(2.5, "f4"),
    "empty": np.zeros((0, 3), "f4"),
    "count": np.array([2**40, -1]),
}
OTHERS = {"small": np.array([[-3, 4]], "i1"), "bits": np.array([True, False]), "half": RNG.normal(size=5).astype("f2")}
CHECKPOINT = {
    "model": {**ARRAYS, **OTHERS},
    "ema": {"decay": 0.999, "num_updates": 2**40, "shadow_params": [ARRAYS["kernel"], ARRAYS["scalar"]]},
    "step": 7,
    "pair": (None, True, "a word"),
}


def refusal(path: Path) -> str:
    """The one line that the file gets."""
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and len(line) < 600
    return line


def check_arrays(found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
        assert found[key].shape == array.shape
        assert found[key].dtype == ("f4" if array.dtype == "f2" else array.dtype), key


@pytest.mark.parametrize(
    "write", [write_pth, write_legacy_pth, lambda path, value: write_pth(path, value, big_endian=True)]
)
def test_a_checkpoint_of_pytorch(write: Any, tmp_path: Path) -> None:
    found = read_state_dict(write(tmp_path / "c.pth", CHECKPOINT))
    check_arrays(found.pop("model"), {**ARRAYS, **OTHERS})
    shadow = found["ema"].pop("shadow_params")
    np.testing.assert_array_equal(shadow[0], ARRAYS["kernel"])
    assert found == {"ema": {"decay": 0.999, "num_updates": 2**40}, "step": 7, "pair": (None, True, "a word")}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "c.npz", **ARRAYS)
    check_arrays(read_state_dict(tmp_path / "c.npz"), ARRAYS)


def test_safetensors(tmp_path: Path) -> None:
    arrays = {key: np.ascontiguousarray(array) for key, array in {**ARRAYS, "half": OTHERS["half"]}.items()}
    check_arrays(read_state_dict(write_safetensors(tmp_path / "c.safetensors", arrays)), arrays)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC040, 0x7F80, 0x0001], "u2")
    values = np.array([1.0, -3.0, np.inf, 2.0**-133], "f4")
    found = read_state_dict(write_safetensors(tmp_path / "c.safetensors", {"w": bits}))
    np.testing.assert_array_equal(found["w"], values)
    assert found["w"].dtype == np.float32
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("c/data.pkl", program(tensor("0", "BFloat16Storage", 4, (2, 2), (1, 2))))
        archive.writestr("c/data/0", bits.tobytes())
    np.testing.assert_array_equal(read_state_dict(tmp_path / "c.pth"), values.reshape(2, 2).T)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_pytorch_itself_writes(zipped: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    weights = network.state_dict()
    extra = {
        "view": torch.arange(24.0).reshape(4, 6)[1:3, ::2],
        "half": torch.tensor([1.5]).half(),
        "bf": torch.ones(2).bfloat16(),
    }
    whole = {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "parameter": network[0].weight,
        "step": 5,
        "extra": extra,
    }
    torch.save(whole, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    found = read_state_dict(tmp_path / "c.pth")
    check_arrays(found["model"], {key: value.numpy() for key, value in weights.items()})
    check_arrays(found["extra"], {key: value.float().numpy() for key, value in extra.items()})
    np.testing.assert_array_equal(found["parameter"], weights["0.weight"].numpy())
    assert found["step"] == 5 and found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


def as_file(path: Path, opcodes: bytes, legacy: bool) -> Path:
    if legacy:
        return write_legacy_pth(path, opcodes)
    return write_pth(path, opcodes)


# --- what stands beside weights -------------------------------------------------------------------

PLAIN: dict[str, tuple[Any, Any]] = {
    "set": ({1, "a"}, {1, "a"}),
    "empty set": (set(), set()),
    "counter": (Counter("aab"), {"a": 2, "b": 1}),
    "ordered dict": (OrderedDict(a=1, b=[2]), {"a": 1, "b": [2]}),
    "bytes": (b"\0\xff", b"\0\xff"),
    "bytearray": (bytearray(b"\0\xff"), b"\0\xff"),
    "complex": (1 - 2j, 1 - 2j),
    "numpy float64": (np.float64(2.5), 2.5),
    "numpy float32": (np.float32(2.5), 2.5),
    "numpy int64": (np.int64(-7), -7),
    "numpy bool": (np.bool_(True), True),
    "numpy big-endian": (np.array([258, 2], ">i4"), np.array([258, 2], "i4")),
    "numpy array": (np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3)),
    "numpy array in Fortran's order": (np.arange(6.0).reshape(3, 2).T, np.arange(6.0).reshape(3, 2).T),
    "numpy half": (np.array([1.5], "f2"), np.array([1.5], "f4")),
    "keys of many kinds": (
        {None: 1, (0, "a"): 2, 1.5: 3, b"k": 4, True: 5},
        {None: 1, (0, "a"): 2, 1.5: 3, b"k": 4, True: 5},
    ),
    "one array twice": ([VALUE := np.arange(3), VALUE], [np.arange(3)] * 2),
    "one dtype for many": ([np.array([1], ">i2"), np.array([2], ">i2")], [np.array([1]), np.array([2])]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("case", PLAIN)
def test_plain_objects_beside_the_weights(case: str, protocol: int, tmp_path: Path) -> None:
    value, expected = PLAIN[case]
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("c/data.pkl", pickle.dumps({"value": value, "after": 1}, protocol))
    found = read_state_dict(tmp_path / "c.pth")
    assert found["after"] == 1
    np.testing.assert_equal(found["value"], expected)
    if isinstance(expected, np.ndarray):
        assert found["value"].dtype == expected.dtype


# opcodes -> what is read
OBJECTS: dict[str, tuple[bytes, Any]] = {
    "dtype": (name("torch", "float32"), "torch.float32"),
    "device": (name("torch", "device") + b"(" + text("cuda") + b"K\x01tR", "cuda:1"),
    "device without a number": (name("torch", "device") + b"(" + text("cpu") + b"tR", "cpu"),
    "sizes": (name("torch", "Size") + b"(" + pickled((2, 3)) + b"tR", (2, 3)),
    "layout": (name("torch.serialization", "_get_layout") + b"(" + text("torch.strided") + b"tR", Other("a layout")),
    "scheme": (name("torch", "per_tensor_affine"), "torch.per_tensor_affine"),
    "tensor class": (name("torch", "FloatTensor"), Name("torch FloatTensor")),
    "cuda storage": (name("torch.cuda", "HalfStorage"), Name("torch.cuda HalfStorage")),
    "meta tensor": (
        name("torch._utils", "_rebuild_meta_tensor_no_storage") + b"(" + name("torch", "float32") + b"))\x89tR",
        Other("a meta_tensor_no_storage"),
    ),
    "Parameter by NEWOBJ": (name("torch.nn.parameter", "Parameter") + b"(K\x05\x89t\x81", 5),
    "OrderedDict by NEWOBJ": (name("collections", "OrderedDict") + b")\x81" + text("a") + b"K\x01s", {"a": 1}),
    "a short string of Python 2": (b"U\x03abc", "abc"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", OBJECTS)
def test_torch_s_objects_beside_the_weights(case: str, legacy: bool, tmp_path: Path) -> None:
    opcodes, expected = OBJECTS[case]
    assert read_state_dict(as_file(tmp_path / "c.pth", opcodes, legacy)) == expected


def test_tensors_of_untyped_storages_and_marks(tmp_path: Path) -> None:
    def read(opcodes: bytes, content: bytes) -> np.ndarray:
        with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
            archive.writestr("c/data.pkl", program(opcodes))
            archive.writestr("c/data/0", content)
        return read_state_dict(tmp_path / "c.pth")

    def tensor_of(dtype: str, numel: int) -> bytes:
        storage = b"(" + text("storage") + name("torch.storage", "UntypedStorage") + text("0") + text("cpu")
        storage += pickled(numel) + b"tQ"
        hooks = name("collections", "OrderedDict") + b")R"
        head = name("torch._utils", "_rebuild_tensor_v3") + b"(" + storage + b"K\x00" + pickled((2,)) + pickled((1,))
        return head + b"\x89" + hooks + name("torch", dtype) + b"}tR"

    np.testing.assert_array_equal(read(tensor_of("uint16", 4), b"\1\2\3\0"), [513, 3])
    np.testing.assert_array_equal(read(tensor_of("float8_e5m2", 2), bytes([0x3C, 0xC2])), [1.0, -3.0])
    assert read(tensor_of("bits8", 2), bytes(2)) == Other("a tensor of torch.bits8")
    plain = tensor("0", "FloatStorage", 2, (2,), (1,))
    negated = plain.removesuffix(b"tR") + b"}" + text("neg") + b"\x88stR"
    np.testing.assert_array_equal(read(negated, np.array([1, -2], "f4").tobytes()), [-1, 2])


def test_what_pytorch_s_safe_loader_reads_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0).reshape(2, 3)
    with_attribute = weight.clone()
    with_attribute.note = "mine"
    content = {
        "weight": weight,
        "parameter": torch.nn.Parameter(weight),
        "attribute": with_attribute,
        "buffer": torch.nn.parameter.Buffer(weight),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "size": weight.shape,
        "layout": torch.sparse_coo,
        "sparse": weight.to_sparse(),
        "csr": weight.to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "meta": weight.to("meta"),
        "set": {1, 2},
        "counter": Counter("aab"),
        "complex": 1j,
        "bytes": b"ab",
        "bytearray": bytearray(b"ab"),
        "complex tensor": torch.tensor([1 + 2j]).conj(),
        "unsigned": torch.arange(3).to(torch.uint16),
        "eight": torch.tensor([0.5, -3.0]).to(torch.float8_e4m3fn),
        "negative": torch.tensor([1 + 2j]).conj().imag,
    }
    content = {key: value for key, value in content.items() if _torch_reads(torch, value, tmp_path / "one.pth")}
    assert len(content) > 15
    torch.save(content, tmp_path / "c.pth")
    found = read_state_dict(tmp_path / "c.pth")
    for key in ("weight", "parameter", "attribute"):
        np.testing.assert_array_equal(found[key], weight.numpy())
    assert found["dtype"] == "torch.bfloat16" and found["size"] == (2, 3) and found["device"] == "cuda:1"
    np.testing.assert_array_equal(found["unsigned"], [0, 1, 2])
    np.testing.assert_array_equal(found["eight"], [0.5, -3.0])
    np.testing.assert_array_equal(found["negative"], [-2.0])
    np.testing.assert_array_equal(found["complex tensor"], [1 - 2j])


def _torch_reads(torch: Any, value: Any, path: Path) -> bool:
    try:
        torch.save(value, path)
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def test_every_name_that_pytorch_s_safe_loader_allows_is_in_the_table() -> None:
    pytest.importorskip("torch")
    from torch._weights_only_unpickler import _get_allowed_globals

    missing = [full for full in _get_allowed_globals() if find(" ".join(full.rsplit(".", 1))) is None]
    assert missing == []


GROWING = {
    # Each opcode that doubles a tuple is two bytes; 2^60 entries if they were written out.
    "a tuple that doubles": b")" + b"q\x00h\x00\x86" * 60,
    "a list that doubles": b"](" + b"]q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"e",
    "a doubled tuple in a set": name("builtins", "set") + b"(](" + b")" + b"q\x00h\x00\x86" * 60 + b"etR",
    "a doubled tuple as a size": name("torch", "Size") + b"(" + b")" + b"q\x00h\x00\x86" * 60 + b"tR",
    "copies of bytes": text("x" * 2**20) + b"q\x000](" + (name("_codecs", "encode") + b"(h\x00tR") * 2000 + b"e",
    "a frame of 2^62 bytes": b"\x95" + (2**62).to_bytes(8, "little"),
    "bytes of 2^62": b"\x8e" + (2**62).to_bytes(8, "little"),
}


@pytest.mark.parametrize("case", GROWING)
def test_a_pickle_that_grows_ends_at_once(case: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for value in (GROWING[case], {"model": GROWING[case]}, {"ema": {"shadow_params": GROWING[case]}, "model": ARRAYS}):
        start = time.perf_counter()
        try:
            parts_of(read_state_dict(write_pth(tmp_path / "c.pth", value)))
        except UserError as error:
            assert len(str(error)) < 700 and str(error).isprintable()
        assert time.perf_counter() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # kB


# --- programs -------------------------------------------------------------------------------------


class Calls:
    """Unpickled by Python itself, calls `function` with the arguments."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class WithState:
    def __init__(self, state: Any):
        self.state = state

    def __reduce__(self) -> Any:
        return WithState, (None,), self.state


ALLOWED = name("collections", "OrderedDict")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
# opcodes -> what the line names
PROGRAMS = {
    "REDUCE": (name("os", "system") + b"(" + text("touch ran") + b"tR", "os.system"),
    "INST": (b"(" + text("touch ran") + b"ios\nsystem\n", "os system"),
    "OBJ": (b"(" + name("os", "system") + text("touch ran") + b"o", "os.system"),
    "NEWOBJ": (name("os", "system") + b")\x81", "os.system"),
    "NEWOBJ of what is no class": (name("torch", "FloatStorage") + b")\x81", "calls what is no constructor"),
    "a name with dots": (
        text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93",
        "_rebuild_tensor_v2.__globals__",
    ),
    "a module beside": (text("torch._utils.os") + text("system") + b"\x93", "torch._utils.os.system"),
    "a space in it": (name("torch", "FloatStorage __class__"), "FloatStorage.__class__"),
    "all of torch": (name("torch", "load"), "torch.load"),
    "hidden in a dict": (
        b"}" + text("model") + b"]" + name("builtins", "eval") + b"(" + text("open('ran', 'w')") + b"tRas",
        "builtins.eval",
    ),
    "an extension": (b"\x82\x01", "EXT1"),
    "an allowed name called twice": (ALLOWED + b")R)R", "calls what is no constructor"),
    "a storage class called": (name("torch", "FloatStorage") + b")R", "calls what is no constructor"),
    "text called": (text("os.system") + b")R", "calls what is no constructor"),
    "a persistent id in text": (b"P0\n", "PERSID"),
    "control characters": (name("os\x1b[2J", "system"), r"os\x1b[2J.system"),
    "a long name": (name("x" * 5000, "system"), "xxx"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", PROGRAMS)
def test_a_pickle_that_would_run_is_refused(
    case: str, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opcodes, said = PROGRAMS[case]
    assert said in refusal(as_file(tmp_path / "c.pth", opcodes, legacy))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_program_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for evil in (
        Calls(os.mkdir, str(ran)),
        {"model": [Calls(eval, f"__import__('os').mkdir({str(ran)!r})")]},
        WithState(Calls(os.mkdir, str(ran))),
    ):
        data = pickle.dumps(evil, protocol)
        with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
            archive.writestr("c/data.pkl", data)
        line = refusal(tmp_path / "c.pth")
        assert any(
            said in line for said in ("mkdir", "eval", "WithState", "opcode PUT", "opcode LIST", "opcode DICT")
        ), line
        assert not ran.exists()
        pickle.loads(data)  # it is a program: Python's own reader runs it
        assert ran.exists()
        ran.rmdir()


def test_attributes_change_nothing(tmp_path: Path) -> None:
    """BUILD on what the file may name leaves the readers as they are."""
    state = b"}(" + text("__call__") + text("x") + text("numel") + pickled(5) + b"u"
    slots = b"N" + state + b"\x86"
    for target in (ALLOWED, REBUILD, name("torch", "FloatStorage")):
        for change in (state, slots):
            read_state_dict(write_pth(tmp_path / "c.pth", target + change + b"b"))
    check_arrays(read_state_dict(write_pth(tmp_path / "d.pth", ARRAYS)), ARRAYS)


# --- sizes ----------------------------------------------------------------------------------------

TENSORS = {
    "past the end": (4, (2, 2), (2, 1), 1),
    "a stride past the end": (4, (2, 2), (3, 1), 0),
    "before the start": (4, (2, 2), (2, 1), -1),
    "backwards": (4, (2, 2), (2, -1), 3),
    "more entries than the storage": (4, (2**40, 2**40), (0, 0), 0),
    "five of four": (4, (5,), (0,), 0),
    "other lengths": (4, (4,), (1, 1), 0),
    "a negative size": (4, (-2, -2), (1, 1), 0),
    "another size than stored": (2**40, (2,), (1,), 0),
    "fractions": (4, (2.0,), (1,), 0),
    "an endless stride": (4, (1, 4), (2**80, 1), 0),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_outside_its_storage(case: str, legacy: bool, tmp_path: Path) -> None:
    numel, shape, strides, offset = TENSORS[case]
    opcodes = tensor("0", "FloatStorage", numel, shape, strides, offset, legacy)
    path = tmp_path / "c.pth"
    if legacy:
        write_legacy_pth(path, [np.ones(4, "f4")])
        heads = path.read_bytes().split(program(pickled(["0"])))
        body = heads[0][: heads[0].rindex(b"\x80\x02")]
        path.write_bytes(body + program(opcodes) + program(pickled(["0"])) + heads[1])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("c/data.pkl", program(opcodes))
            archive.writestr("c/data/0", np.ones(4, "f4").tobytes())
    assert "damaged" in refusal(path)


PICKLES = {
    "nothing": b"",
    "no end": b"\x80\x02}",
    "an empty stack": program(b"\x85"),
    "a tuple of nothing": program(b"\x86"),
    "items into text": program(text("a") + text("b") + text("c") + b"s"),
    "an odd number of items": program(b"}(" + text("a") + b"u"),
    "a memo that is not there": program(b"h\x07"),
    "a mark that is not there": program(b"t"),
    "two objects": program(b"}}"),
    "a storage of an unknown kind": program(b"(" + text("disk") + text("x") + text("0") + text("cpu") + b"K\x04tQ"),
    "a storage that is missing": program(tensor("7", "FloatStorage", 4, (4,), (1,))),
    "text that is cut": b"\x80\x02X\xff\xff\xff\x7fabc",
    "a class as storage": program(b"(" + text("storage") + ALLOWED + text("0") + text("cpu") + b"K\x04tQ"),
    "nested tuples as a key": program(b"})" + b"q\x00h\x00\x86" * 60 + b"Ns"),
    "a tensor as a name": program(b"]]\x93"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_damaged_pickle(case: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("c/data.pkl", PICKLES[case])
        archive.writestr("c/data/0", np.ones(4, "f4").tobytes())
    refusal(tmp_path / "c.pth")


def test_every_cut_of_a_file(tmp_path: Path) -> None:
    """A download that broke off is told, wherever it broke off."""
    whole = {
        "c.pth": write_pth(tmp_path / "a", CHECKPOINT).read_bytes(),
        "l.pth": write_legacy_pth(tmp_path / "b", CHECKPOINT).read_bytes(),
        "c.safetensors": write_safetensors(tmp_path / "c", {"kernel": ARRAYS["kernel"]}).read_bytes(),
    }
    for file, data in whole.items():
        for end in sorted({0, 1, 5, *range(9, len(data), max(1, len(data) // 60)), len(data) - 1}):
            (tmp_path / file).write_bytes(data[:end])
            refusal(tmp_path / file)


def test_a_storage_that_changed_on_disk(tmp_path: Path) -> None:
    data = bytearray(write_pth(tmp_path / "c.pth", ARRAYS).read_bytes())
    at = data.index(ARRAYS["kernel"].tobytes())
    data[at + 5] ^= 1
    (tmp_path / "c.pth").write_bytes(data)
    assert "damaged" in refusal(tmp_path / "c.pth")


def test_zip_bombs(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", program(tensor("0", "FloatStorage", 2**18, (2**18,), (1,))))
        archive.writestr("c/data/0", bytes(2**20))
    assert "holds more than its size" in refusal(tmp_path / "c.pth")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(4, "f4"))
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", buffer.getvalue())
    data = (tmp_path / "c.npz").read_bytes()
    size = struct.pack("<I", len(buffer.getvalue()))
    (tmp_path / "c.npz").write_bytes(data.replace(size, struct.pack("<I", 2**31)))
    assert "unpacks" in refusal(tmp_path / "c.npz")


def test_an_npz_of_objects_or_of_a_size_it_has_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", w=np.array([{}, Calls(os.mkdir, str(tmp_path / "ran"))], object))
    refusal(tmp_path / "c.npz")
    assert not (tmp_path / "ran").exists()
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": (2**36,), "fortran_order": False, "descr": "<f4"})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("w.npy", buffer.getvalue())
    refusal(tmp_path / "d.npz")


SAFETENSORS: dict[str, dict[str, Any]] = {
    "past the end": {"w": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}},
    "another size": {"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}},
    "backwards": {"w": {"dtype": "F32", "shape": [0], "data_offsets": [8, 4]}},
    "negative": {"w": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
    "before the start": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
    "overlap": {"v": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "an unknown dtype": {"w": {"dtype": "F8", "shape": [16], "data_offsets": [0, 16]}},
    "no offsets": {"w": {"dtype": "F32", "shape": [4]}},
    "no tensor": {"w": 3},
    "fractions": {"w": {"dtype": "F32", "shape": [4.0], "data_offsets": [0.0, 16]}},
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_damaged_safetensors(case: str, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "c.safetensors", {"w": np.ones(4, "f4")}, **SAFETENSORS[case])
    assert "damaged" in refusal(path)


def test_headers_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for data in (
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 200000) + b'{"a":' + b"[" * 200000,
    ):
        path.write_bytes(data)
        refusal(path)


def test_files_that_are_none_of_these(tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_bytes(b"<html>not found</html>")
    assert "is none of PyTorch's .pth, .safetensors and .npz" in refusal(tmp_path / "c.pth")
    assert "No such file" in refusal(tmp_path / "absent.pth")
    assert "directory" in refusal(tmp_path)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("photo.png", b"\x89PNG")
    refusal(tmp_path / "c.zip")


def test_a_file_larger_than_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiment.published.torch_files.available", lambda: 2**40)
    with open(tmp_path / "c.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 2) + b"{}")
        file.truncate(2**41)  # of holes: nothing is on the disk
    assert "does not fit into this machine's memory" in refusal(tmp_path / "c.safetensors")
