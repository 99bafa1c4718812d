"""The readers of what people bring, on files that a seeded hand has damaged: only UserError leaves them, and soon.

    python -m tests.fuzz --minutes=10 [--reader=npz] [--seed=0]

Each reader has whole files and a function that reads them. A case damages one of the files, by bytes, by numbers, or by
what its format is made of, so that checksums hold and the damage comes further. tests/test_fuzz.py runs some cases of
each; this command runs them until the time is over, prints what is wrong, and exits with 1 if anything is.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.data.image_decoding import Recipe, Unreadable, decode_image
from experiment.data.load import load_dataset
from experiment.data.tfds_sets import quiet
from experiment.published import diffusers_layout, score_sde_layout
from experiment.published.diffusers import weights_in
from experiment.published.score_sde import parts_of
from experiment.published.torch_files import read_state_dict
from experiment.run.checkpoint import Checkpoints
from experiment.run.directory import RunDirectory
from experiment.run.load import read_config
from experiment.run.log import read_metrics
from tests.experiment.published.test_diffusers import CONFIG
from tests.experiment.published.torch_writer import write_legacy_pth, write_pth, write_safetensors

SECONDS, MEGABYTES = 10, 512  # that a case may take
LONGEST = 2100  # characters of a message, with its escapes

SOURCE = "set.zip"  # beside stored images; changed, it gives others

Files = dict[str, bytes]


class Wrong(AssertionError):
    """What a reader did with a damaged file and should not have."""


class _TooLong(BaseException):
    pass


@dataclass(frozen=True)
class Reader:
    """Whole files, which are made once, and the reading of them in a folder."""

    make: Callable[[], Files]
    read: Callable[[Path], Any]
    whole: Callable[[Any], bool] = lambda result: True  # what is read in spite of the damage must hold


# --- whole files ------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)
STATE = {
    "all_modules.0.W": RNG.normal(size=4).astype("f4"),
    **{f"all_modules.{k}.weight": RNG.normal(size=(4, 4)).astype("f4") for k in range(1, 6)},
    **{f"all_modules.{k}.Conv_0.weight": RNG.normal(size=(4, 4, 3, 3)).astype("f4") for k in range(6, 9)},
}
CHECKPOINT = {
    "model": STATE,
    "ema": {"decay": 0.9, "shadow_params": [array for name, array in STATE.items() if not name.endswith(".W")]},
    "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
    "step": 3,
}


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _images() -> Files:
    image = Image.fromarray(np.kron(PIXELS[0], np.ones((6, 6, 1), np.uint8)))
    exif = Image.Exif()
    exif[274], exif[305] = 6, "software"
    palette, glass = image.quantize(8), image.convert("RGBA")
    return {
        "a.png": _bytes(image, "png", exif=exif),
        "b.jpg": _bytes(image, "jpeg", exif=exif),
        "c.gif": _bytes(palette, "gif", transparency=200),
        "d.bmp": _bytes(image, "bmp"),
        "e.tif": _bytes(image, "tiff", exif=exif),
        "f.tif": _bytes(image, "tiff", compression="tiff_lzw"),
        "g.webp": _bytes(image, "webp", exif=exif),
        "h.ppm": _bytes(image, "ppm"),
        "i.png": _bytes(palette, "png", transparency=bytes([255, 9])),
        "j.png": _bytes(glass, "png", save_all=True, append_images=[glass.rotate(90)]),
        "k.gif": _bytes(image, "gif", save_all=True, append_images=[image.rotate(180)]),
        "l.jpg": _bytes(image.convert("CMYK"), "jpeg"),
        "m.png": _bytes(image.convert("1"), "png"),
        "n.jpg": _bytes(image, "jpeg", progressive=True),
    }


def _decode(folder: Path) -> None:
    for path in folder.iterdir():
        data = path.read_bytes()
        for shape in ((30, 24, 3), (24, 30, 3), (30, 24, 1)):
            for recipe in (Recipe(), Recipe(size=8)):
                with contextlib.suppress(UserError):
                    found = decode_image(path.name, data, recipe, (8, 8, shape[2]) if recipe.size else shape)
                    if not isinstance(found, Unreadable) and found.dtype != np.uint8:
                        raise Wrong("no pixels")


def _zip(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _pngs() -> Files:
    return {f"{'ab'[i % 2]}/{i}.png": _bytes(Image.fromarray(x), "png") for i, x in enumerate(PIXELS)}


def _npz(save: Any, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def _data_npz() -> Files:
    labels = np.arange(6) % 2
    vectors = RNG.normal(size=(9, 3)).astype("f4")
    return {
        "a.npz": _npz(np.savez, x=PIXELS, labels=labels, levels=256),
        "b.npz": _npz(np.savez_compressed, x_train=vectors, x_test=vectors[:2]),
    }


def _written(write: Any, name: str, value: Any) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        return {name: write(Path(folder) / name, value).read_bytes()}


def _run() -> Files:
    beside = {"data_shape": {"shape": [8, 8, 1], "levels": 17, "num_classes": 10}, "provenance": {"python": "3"}}
    rows = [{"step": step, "loss": 0.5, "lr": 1e-3} for step in (10, 20, 30)]
    return {
        "config.json": json.dumps({**check_config({}).to_dict(), **beside}).encode(),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
    }


def _read_run(folder: Path) -> None:
    for row in read_metrics(folder):
        row["step"] < 3  # noqa: B015
    read_config(RunDirectory(folder))


def _state(value: float) -> Any:
    return {"ema": {"w": jnp.full(3, value)}, "step": jnp.int32(value)}


def _checkpoints() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), 9)
        for step in (1, 2):
            checkpoints.save(_state(step), {"loss": 0.5})
        return _below(Path(folder))


def _below(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _restore(folder: Path) -> Any:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0))
    return Checkpoints(folder, 9).restore(like, lambda line: None)


def _is_saved(restored: Any) -> bool:
    return restored is not None and bool((restored[0]["ema"]["w"] == restored[1]["step"]).all())


def _stored_images() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SOURCE).write_bytes(_zip(_pngs()))
        load_dataset("", f"{folder}/{SOURCE}")
        return {name: content for name, content in _below(Path(folder)).items() if not name.endswith(".lock")}


def _diffusers() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        names = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
        for name in names:
            write_safetensors(Path(folder) / name, {f"{name[-20]}.weight": np.ones((2, 2), "f4")})
        index = {"weight_map": {f"{name[-20]}.weight": name for name in names}}
        (Path(folder) / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        return _below(Path(folder))


def _read_diffusers(folder: Path) -> None:
    from experiment.published.diffusers import _json

    config = _json(folder / "config.json")
    with contextlib.suppress(UserError):
        diffusers_layout.options_of(config)
    weights_in(folder)


def _read_weights(folder: Path) -> None:
    for path in folder.iterdir():
        parts = parts_of(read_state_dict(path))
        with contextlib.suppress(UserError):  # these are not all of a network's
            score_sde_layout.options_of(parts.weights, has_sigmas=parts.sigmas is not None)


def _load_each(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        load_dataset("", str(path), str(folder / "cache"))


class FuzzedImages(tfds.core.GeneratorBasedBuilder):
    """Six images of 5 x 4 pixels with labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {"image": tfds.features.Image(shape=(5, 4, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: Any) -> Any:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for i, x in enumerate(PIXELS):
            yield i, {"image": io.BytesIO(_bytes(Image.fromarray(x), "png")), "label": i % 2}


def _prepared() -> Files:
    with tempfile.TemporaryDirectory() as folder, quiet(), contextlib.redirect_stdout(None):
        builder = FuzzedImages(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        return _below(Path(builder.data_dir))


READERS: dict[str, Reader] = {
    "tfds": Reader(_prepared, lambda folder: load_dataset("", str(folder), str(folder.parent / "cache"))),
    "images": Reader(_images, _decode),
    "zip": Reader(lambda: {"a.zip": _zip(_pngs()), "b.zip": _zip(_pngs(), zipfile.ZIP_STORED)}, _load_each),
    "npz": Reader(_data_npz, _load_each),
    "stored_images": Reader(
        _stored_images,
        lambda folder: load_dataset("", str(folder / SOURCE), str(folder / "cache")),
        lambda found: {x.tobytes() for x in (*found.train.x, *found.test.x)} <= {x.tobytes() for x in PIXELS},
    ),
    "pth": Reader(lambda: _written(write_pth, "c.pth", CHECKPOINT), _read_weights),
    "legacy_pth": Reader(lambda: _written(write_legacy_pth, "c.pth", CHECKPOINT), _read_weights),
    "safetensors": Reader(lambda: _written(write_safetensors, "c.safetensors", STATE), _read_weights),
    "weights_npz": Reader(lambda: {"c.npz": _npz(np.savez, **STATE)}, _read_weights),
    "diffusers": Reader(_diffusers, _read_diffusers),
    "run": Reader(_run, _read_run),
    "checkpoint": Reader(_checkpoints, _restore, _is_saved),
}

# --- damage -----------------------------------------------------------------------------------------------------------

EXTREMES = (0, 1, -1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (b"0", b"-1", b"1e400", b"NaN", b"9" * 20, b"9" * 5000, b"0.5", b"1" + b"0" * 400, b"true", b"null")
WILD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 10**12, 10**30, float("nan"), float("inf"), "", "x" * 10**5, "\x1b[2J\u202e\0"),
    *([], {}, [[]] * 3, {"a": {"b": []}}, "../../x", "/etc/passwd", [1] * 10**5),
)


def damaged(content: bytes, name: str, rng: random.Random) -> bytes:
    """Damage the content of a file once or a few times."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        ways: list[Callable[[bytes, random.Random], bytes]] = [_by_bytes, _by_bytes, _by_numbers, _by_integers]
        if content[:2] == b"PK":
            ways += [_in_zip] * 4
        if content[:4] == b"\x89PNG":
            ways += [_in_png] * 4
        if name.endswith(".json"):
            ways += [_in_json] * 4
        if content[8:9] == b"{" and name.endswith("tensors"):
            ways += [_in_safetensors] * 4
        with contextlib.suppress(Exception):  # what is damaged already may not be taken apart again
            content = rng.choice(ways)(content, rng)
    return content


def _by_bytes(content: bytes, rng: random.Random) -> bytes:
    n = len(content)
    a, b = sorted((rng.randrange(n + 1), rng.randrange(n + 1))) if n else (0, 0)
    b = min(b, a + rng.choice((1, 4, 64, n + 1)))
    bit = bytes([content[a] ^ 1 << rng.randrange(8)]) if a < n else b""
    return rng.choice(
        (
            content[:a],
            content[:a] + content[b:],
            content[:a] + bytes(b - a) + content[b:],
            content[:a] + content[a:b] * rng.choice((2, 3, 50)) + content[b:],
            content[:a] + rng.randbytes(min(b - a, 64)) + content[b:],
            content[:a] + rng.randbytes(8) + content[a:],
            content[:a] + bit + content[a + 1 :],
            content[:a] + bytes([rng.randrange(256)]) + content[a + 1 :],
        )
    )


def _by_numbers(content: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[: 2**16]))
    if not found:
        return content
    one = rng.choice(found)
    return content[: one.start()] + rng.choice(NUMBERS) + content[one.end() :]


def _by_integers(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(content) - size))
    number = rng.choice(EXTREMES) % 2 ** (8 * size)
    return content[:at] + number.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


def _in_zip(content: bytes, rng: random.Random) -> bytes:
    """Damage a member, and pack it again with a checksum that holds."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, inside = members[at]
    if rng.random() < 0.2:
        name = rng.choice(("", "../x.png", "/x.png", "a" * 60_000 + ".png", "\x1b[2J.npy", members[0][0], name.upper()))
    members[at] = (name, damaged(inside, name, rng))
    if rng.random() < 0.1:
        rng.shuffle(members)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", rng.choice((0, 8, 12, 14))) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, inside in members:
            archive.writestr(name, inside)
    return buffer.getvalue()


def _in_png(content: bytes, rng: random.Random) -> bytes:
    """Damage a chunk, and give it a checksum that holds."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    at = rng.randrange(len(chunks))
    kind, inside = chunks[at]
    if kind == b"IDAT" and rng.random() < 0.5:
        inside = zlib.compress(_by_bytes(zlib.decompress(inside), rng))
    else:
        inside = rng.choice((_by_bytes, _by_integers))(inside, rng)
    kind = rng.choice((kind, kind, kind, b"tRNS", b"iCCP", b"gAMA", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"zTXt"))
    chunks[at] = (kind, inside)
    packed = (
        struct.pack(">I", len(inside)) + kind + inside + struct.pack(">I", zlib.crc32(kind + inside))
        for kind, inside in chunks
    )
    return content[:8] + b"".join(packed)


def _in_json(content: bytes, rng: random.Random) -> bytes:
    """Put something wild in the place of a value or a key."""
    whole = {"": json.loads(content)}
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(whole)
    node, key = rng.choice(places)
    wild = rng.choice(WILD)
    if isinstance(node, dict) and key and rng.random() < 0.2:
        node[str(wild)[:1000]] = node.pop(key)
    elif key and rng.random() < 0.1:
        del node[key]
    else:
        node[key] = wild
    nested = rng.choice((0, 0, 0, 0, 900, 10**5))
    text = json.dumps(whole[""])
    return (b"[" * nested) + text.encode() + (b"]" * nested)


def _in_safetensors(content: bytes, rng: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    header = rng.choice((_in_json, _by_numbers))(content[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


# --- cases ------------------------------------------------------------------------------------------------------------


@cache
def whole_files(reader: str) -> Files:
    return READERS[reader].make()


def files_of(reader: str, seed: int, case: int) -> Files:
    """The reader's files, one of them damaged: the same ones each time. Of images one is read."""
    rng = random.Random(f"{reader} {seed} {case}")
    files = dict(whole_files(reader))
    name = rng.choice(sorted(files.keys() - {SOURCE}))
    if reader in ("images", "zip", "npz"):
        files = {name: files[name]}
    files[name] = damaged(files[name], name, rng)
    return files


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_case(reader: str, seed: int, case: int, folder: Path) -> bool:
    """Read damaged files in `folder`, which is made and removed again, with what is beside it.

    Returns whether they were read.

    Raises Wrong for another exception than UserError, a message of many lines or characters, and what takes too long or
    too much memory.
    """
    for name, content in files_of(reader, seed, case).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _limited(SECONDS), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = READERS[reader].read(folder)
        if not READERS[reader].whole(result):
            raise Wrong("reads something else than what was written")
        return True
    except UserError as error:
        line = str(error)
        if not line.isprintable() or len(line) > 12 * LONGEST:
            raise Wrong(f"a message of {len(line)} characters: {line[:200]!r}") from None
        return False
    except Wrong:
        raise
    except _TooLong:
        raise Wrong(f"still reads after {SECONDS} s") from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Wrong("".join(traceback.format_exception(error)[-8:])) from None
    finally:
        for path in folder.parent.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if taken > MEGABYTES:
            raise Wrong(f"takes {taken} MB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--reader", choices=READERS, help="this one alone")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    counts, wrong, seen = dict.fromkeys(READERS, 0), 0, set[str]()
    readers = [given.reader] if given.reader else list(READERS)
    with tempfile.TemporaryDirectory() as folder:
        case = 0
        while time.monotonic() < end:
            for reader in readers:
                faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # for what no signal interrupts
                try:
                    counts[reader] += 1
                    run_case(reader, given.seed, case, Path(folder) / "case")
                except Wrong as error:
                    wrong += 1
                    if str(error)[-300:] not in seen:
                        seen.add(str(error)[-300:])
                        print(f"--- {reader}, seed {given.seed}, case {case}: {error}", flush=True)
            case += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{sum(counts.values())} cases, {wrong} wrong: {counts}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
