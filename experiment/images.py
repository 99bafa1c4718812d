"""Image folders and zips, decoded once into one uint8 array.

Layout, in a folder or in a zip alike: images directly in it (no labels), or one sub-folder per class; above these,
optionally, `train` and `test` (else `val`, `valid`, `validation`). Folders that merely wrap everything are looked
through. A folder that holds no images but zips is read as the union of its zips: two zips, with train/ in one and
test/ in the other, are one set with its own splits.
"""

import io
import itertools
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from experiment.dataset import Dataset, Split, fixed_split
from experiment.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
HELD_OUT = ("test", "val", "valid", "validation")  # the first of these that is there is the held-out split
MAX_BYTES = 2**28  # of one image file: a zip member that unpacks to more is refused before it is unpacked
PROBES = 25  # headers looked at for the expected size
CHUNK = 256  # images decoded by one task

Size = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class ImageFile:
    """One image: its path below the root, the name shown to the user, and how to get its bytes."""

    parts: tuple[str, ...]
    shown: str
    read: Callable[[], bytes]


def load_images(path: Path) -> Dataset:
    """The images of a folder or a .zip, sorted by path; labels number the sorted class folders. Levels 256.

    Raises UserError, naming the file, for images of several sizes, greyscale among colour, unreadable or truncated
    images, an empty folder or zip, a zip that is damaged or reaches outside itself, and a layout that leaves classes
    in doubt.
    """
    with ExitStack() as stack:
        files = _find(path, stack)
        splits, classes = _layout(path, files)
        everything = [file for part in splits.values() for file in part]
        x = decode(everything)
    labels = None
    if classes:
        number = {name: i for i, name in enumerate(classes)}
        labels = np.array([number[file.parts[0]] for file in everything], np.int32)
    if "test" not in splits:
        train, test = fixed_split(x, labels, str(path))
    else:
        n = len(splits["train"])
        train, test = (Split(x[s], None if labels is None else labels[s]) for s in (slice(n), slice(n, None)))
    return Dataset(path.stem, train, test, levels=256, num_classes=len(classes))


def _find(path: Path, stack: ExitStack) -> list[ImageFile]:
    if path.is_dir():
        found = ((file.relative_to(path).parts, file) for file in _walk(path))
        files = [ImageFile(parts, str(file), file.read_bytes) for parts, file in found if _is_image(parts)]
        if not files:
            files = [file for archive in sorted(path.glob("*.zip")) for file in _in_zip(archive, stack)]
    else:
        files = list(_in_zip(path, stack))
    if not files:
        raise UserError(f"no images in {path}: it needs files such as .png or .jpg, in class folders or directly in it")
    files.sort(key=lambda file: file.parts)
    twice = next((a for a, b in itertools.pairwise(files) if a.parts == b.parts), None)
    if twice:
        raise UserError(f"{path}: {'/'.join(twice.parts)} is there twice; keep one of them")
    return files


def _walk(root: Path) -> Iterator[Path]:
    """All files below root, through links to folders, each real folder once (links may make loops)."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        yield from (Path(folder, name) for name in names)


def _cannot_list(error: OSError) -> None:
    raise UserError(f"cannot list folder {error.filename} ({error.strerror}): make it readable") from error


def _is_image(parts: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES


def _in_zip(path: Path, stack: ExitStack) -> Iterator[ImageFile]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: it is damaged or no zip file ({error}); pack it again") from error
    for member in archive.infolist():
        pure = PurePosixPath(member.filename.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or ":" in (pure.parts or ("",))[0]:
            raise UserError(f"{path}: member {member.filename!r} reaches outside the zip; such an archive is not read")
        if member.is_dir() or not _is_image(pure.parts):
            continue
        if member.file_size > MAX_BYTES:
            raise UserError(f"{path}: {member.filename} unpacks to {member.file_size} bytes, over {MAX_BYTES}; remove it")
        yield ImageFile(pure.parts, f"{path}/{pure}", partial(archive.read, member))


def _layout(path: Path, files: list[ImageFile]) -> tuple[dict[str, list[ImageFile]], list[str]]:
    """Files by split, their `parts` cut down to (class, ..., name) or (name,); and the class names, [] for none."""
    while len({file.parts[0] for file in files}) == 1 and all(len(file.parts) > 1 for file in files):
        files = [_below(file) for file in files]
    folders = {file.parts[0] for file in files if len(file.parts) > 1}
    held_out = next((name for name in HELD_OUT if name in folders), None)
    if "train" in folders and held_out:
        outside = next((f for f in files if len(f.parts) == 1 or f.parts[0] not in ("train", *HELD_OUT)), None)
        if outside:
            raise UserError(f"{outside.shown} lies outside train and {held_out} of {path}; move it into one of them")
        names = {"train": "train", "test": held_out}
        splits = {split: [_below(f) for f in files if f.parts[0] == name] for split, name in names.items()}
    else:
        splits = {"train": files}
    everything = [file for part in splits.values() for file in part]
    flat = [file for file in everything if len(file.parts) == 1]
    if flat and len(flat) < len(everything):
        raise UserError(f"{flat[0].shown} lies beside class folders; move it into one, or all into one folder")
    return splits, sorted({file.parts[0] for file in everything} if not flat else ())


def _below(file: ImageFile) -> ImageFile:
    return ImageFile(file.parts[1:], file.shown, file.read)


def decode(files: list[ImageFile]) -> np.ndarray:
    """All files as one uint8 array (n, h, w, c), decoded by as many threads as there are processors."""
    probes = [files[i] for i in sorted({len(files) * i // PROBES for i in range(PROBES)})]
    expected = Counter(_open(file)[1] for file in probes).most_common(1)[0][0]
    x = np.empty((len(files), *expected), np.uint8)

    def fill(start: int) -> None:
        for i, file in enumerate(files[start : start + CHUNK], start):
            x[i] = _decode(file, expected)

    starts = range(0, len(files), CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(fill, starts)  # in order, so that the first bad file is the one named
        for _ in tqdm(done, "decoding images", len(starts), unit_scale=CHUNK, unit=" images", delay=1, disable=None):
            pass
    return x


def _open(file: ImageFile) -> tuple[Image.Image, Size]:
    """The image with only its header read, and its size."""
    try:
        image = Image.open(io.BytesIO(file.read()))
    except Exception as error:  # Pillow, zlib and zipfile raise a dozen kinds, RuntimeError for encryption among them
        raise _unreadable(file, error) from error
    channels = _CHANNELS.get(image.mode)
    if channels is None:
        raise UserError(f"{file.shown} has pixels of mode {image.mode}; convert it to 8-bit greyscale or colour")
    return image, (image.height, image.width, channels)


def _decode(file: ImageFile, expected: Size) -> np.ndarray:
    image, size = _open(file)
    if size[:2] != expected[:2]:
        found, wanted = (f"{height}x{width}" for height, width, _ in (size, expected))
        raise UserError(f"{file.shown} is {found} (height x width), expected {wanted} like the others; resize it")
    if size[2] != expected[2]:
        kind = {1: "greyscale", 3: "colour"}
        raise UserError(f"{file.shown} is {kind[size[2]]} among {kind[expected[2]]} images; convert it or remove it")
    try:
        if image.mode in ("RGBA", "LA", "PA") and np.asarray(image.getchannel("A")).min() < 255:
            raise UserError(f"{file.shown} has transparent pixels; flatten it on a background")
        pixels = np.asarray(image.convert("L" if expected[2] == 1 else "RGB"))
    except UserError:
        raise
    except Exception as error:  # truncated or damaged pixel data
        raise _unreadable(file, error) from error
    return pixels.reshape(expected)


# Channels after conversion by Pillow's mode; modes of 16 or 32 bits are absent, for they do not have 256 levels.
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "RGBX": 3, "CMYK": 3, "YCbCr": 3}


def _unreadable(file: ImageFile, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:100] or type(error).__name__
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else said
    return UserError(f"cannot read image {file.shown} ({reason}); replace it or remove it")
