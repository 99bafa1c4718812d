"""Image folders and zips: which images they hold, with which classes and splits; threads decode them, once.

Layout, in a folder or in a zip alike: images directly in it (no labels), or one sub-folder per class; above these,
optionally, `train` and `test` (else `val`, `valid`, `validation`). Folders that merely wrap everything are looked
through. A folder that holds no images but zips is read as the union of its zips: two zips, with train/ in one and
test/ in the other, are one set with its own splits. A text beside an image, a.txt beside a.png, is its caption.
"""

import itertools
import math
import os
import sys
import threading
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiment.common.errors import UserError, one_line, shown
from experiment.common.files import read_regular
from experiment.data.dataset import Dataset, fixed_order
from experiment.data.image_cache import Plan, Row, Source, decoded_once
from experiment.data.image_decoding import Recipe, Size, Unreadable, decode_image, read_header

SUFFIXES = frozenset(".png .apng .jpg .jpeg .jpe .jfif .bmp .gif .tif .tiff .webp .pbm .pgm .ppm .pnm".split())
# Pictures too, but not read: they are left out and counted, so that nobody takes the rest for all.
NOT_READ = frozenset(
    ".avif .heic .heif .jxl .jp2 .j2k .tga .psd .svg .ico .exr .hdr .dng .cr2 .cr3 .nef .arw .raw .dcm .npy".split()
)
HELD_OUT = ("test", "val", "valid", "validation")  # the first of these that is there is the held-out split
MAX_BYTES = 2**28  # of one image file: a zip member that unpacks to more is refused before it is unpacked
MAX_RATIO = 100  # a zip whose images unpack to more than MAX_BYTES and to more than this many times its size is refused
PROBES = 25  # headers looked at for the expected size
AHEAD = 2**22  # bytes decoded by one task, of which there are at most two for each thread

MAX_CAPTION = 2**16  # bytes of a caption's file

Decoded = np.ndarray | Unreadable


class ImageFile(NamedTuple):
    """An image: its path below the root, the name shown to the user, what identifies it, and how to get its bytes.

    caption: how to get those of the text beside it; None where there is none.
    """

    parts: tuple[str, ...]
    shown: str
    identity: str
    read: Callable[[], bytes]
    caption: Callable[[], bytes] | None = None


def load_images(path: Path, recipe: Recipe, cache: Path) -> Dataset:
    """Load the images of a folder or a .zip, sorted by path; labels number the sorted class folders. Levels 256.

    They are decoded at the first call only: see experiment/data/image_cache.py.

    Raises UserError, naming the file, for images of several sizes (where the recipe leaves them their sizes), greyscale
    among colour, unreadable or truncated images, those too large or smaller than the crop, an empty folder or zip, a
    zip that is damaged, reaches outside itself or unpacks to too much, and a layout that leaves classes in doubt.
    """
    with ExitStack() as stack:
        files = _with_captions(path, _find(path, stack))
        identity = (f"{'/'.join(file.parts)} {file.identity}" for file in files)
        with warnings.catch_warnings():
            # Of what is too large, ours tells as of a mistake; the others are of damage that viewers leave out too.
            warnings.filterwarnings("ignore", module="PIL")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return decoded_once(
                Source(path, shown(path.stem), identity), recipe, cache, lambda: _plan(path, files, recipe)
            )


def _plan(path: Path, files: list[ImageFile], recipe: Recipe) -> Plan:
    splits, classes = _layout(path, files)
    if "test" not in splits:
        everything = splits["train"]
        train, test = ([everything[i] for i in part] for part in fixed_order(len(everything), str(path)))
    else:
        train, test = splits["train"], splits["test"]
    files = train + test
    number = {name: i for i, name in enumerate(classes)}

    def rows() -> Iterator[Row | Unreadable]:
        for i, (file, image) in enumerate(zip(files, decode(files, recipe), strict=True)):
            label = number[file.parts[0]] if classes else -1
            told = None if file.caption is None else _caption(file)
            yield image if isinstance(image, Unreadable) else Row(image, label, i >= len(train), told)

    return Plan(rows(), len(train) + len(test), tuple(classes))


def _with_captions(path: Path, files: list[ImageFile]) -> list[ImageFile]:
    """The files, without their captions where some have none, which is said."""
    without = [file for file in files if file.caption is None]
    if without and len(without) < len(files):
        print(
            f"the captions in {shown(str(path))} are left out: {len(without)} of {len(files)} images have none, first "
            f"{shown(without[0].shown)}",
            file=sys.stderr,
        )
        return [file._replace(caption=None) for file in files]
    return files


def _caption(file: ImageFile) -> str:
    assert file.caption is not None
    try:
        return " ".join(file.caption().decode().split())
    except Exception as error:  # zipfile, zlib and the file system raise several kinds
        raise UserError(
            f"the caption of {file.shown} cannot be read ({one_line(error)}): write it in UTF-8, at most "
            f"{MAX_CAPTION} bytes"
        ) from None


def _beside(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The path of the caption of an image."""
    return (*parts[:-1], f"{os.path.splitext(parts[-1])[0]}.txt")


def _find(path: Path, stack: ExitStack) -> list[ImageFile]:
    if path.is_dir():
        try:
            names = list(_walk(path))
        except RecursionError:  # of os.walk, before Python 3.12
            raise UserError(f"the folders in {path} are nested too deep: move the images up") from None
        texts = {parts for parts in names if parts[-1].endswith(".txt")}
        files = [_in_folder(path, parts, texts) for parts in names if _is_image(parts)]
        if not files:
            zips = [archive for archive in sorted(path.glob("*.zip")) if archive.is_file()]
            files = [file for archive in zips for file in _in_zip(archive, stack, names)]
    else:
        names = []
        files = list(_in_zip(path, stack, names))
    if not files:
        raise UserError(f"no images in {path}: it needs files such as .png or .jpg, in class folders or directly in it")
    files.sort(key=lambda file: file.parts)
    twice = next((a for a, b in itertools.pairwise(files) if a.parts == b.parts), None)
    if twice:
        raise UserError(f"{path}: {'/'.join(twice.parts)} is there twice; keep one of them")
    _say_left_out(path, [parts for parts in names if _is_image(parts, NOT_READ)])
    return files


def _say_left_out(path: Path, pictures: list[tuple[str, ...]]) -> None:
    if pictures:
        kinds = ", ".join(sorted({os.path.splitext(parts[-1])[1].lower() for parts in pictures}))
        first, where = shown("/".join(pictures[0])), shown(str(path))
        print(f"{len(pictures)} files that are not read ({kinds}) left out of {where}, first {first}", file=sys.stderr)


def _in_folder(path: Path, parts: tuple[str, ...], texts: set[tuple[str, ...]]) -> ImageFile:
    name = os.path.join(path, *parts)
    file = ImageFile(parts, name, _identity(name), partial(read_regular, name, MAX_BYTES))
    if _beside(parts) not in texts:
        return file
    text = os.path.join(path, *_beside(parts))
    identity = f"{file.identity} {_identity(text)}"
    return file._replace(identity=identity, caption=partial(read_regular, text, MAX_CAPTION))


def _walk(root: Path) -> Iterator[tuple[str, ...]]:
    """Yield all files' paths below root, through links to folders, each real folder once (links may make loops)."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        below = Path(folder).relative_to(root).parts
        yield from ((*below, name) for name in names)


def _identity(name: str) -> str:
    try:
        found = os.stat(name)
    except OSError:  # a link to nowhere: unreadable, which is said when it is decoded
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


def _cannot_list(error: OSError) -> None:
    raise UserError(f"cannot list folder {error.filename} ({error.strerror}): make it readable") from error


def _is_image(parts: tuple[str, ...], suffixes: frozenset[str] = SUFFIXES) -> bool:
    hidden = any(part[0] == "." or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(parts[-1])[1].lower() in suffixes


def _in_zip(path: Path, stack: ExitStack, names: list[tuple[str, ...]]) -> Iterator[ImageFile]:
    """Yield the zip's images; the paths of all its files are appended to `names`."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except Exception as error:  # zipfile raises several kinds, ValueError and struct.error among them
        reason = one_line(error)
        raise UserError(f"cannot read {path}: it is damaged or no zip file ({reason}); pack it again") from error
    # One thread reads at a time: in Python 3.12.1 and 3.13.0, among others, a seek inside a member starts where another
    # thread left the file (python/cpython#127847). Threads still decode side by side, which is most of the work.
    reading = threading.Lock()

    def read(member: zipfile.ZipInfo) -> bytes:
        with reading:
            return archive.read(member)

    texts = {member.filename.replace("\\", "/"): member for member in archive.infolist()}
    limit = max(MAX_BYTES, MAX_RATIO * path.stat().st_size)
    total = 0
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts or (parts and ":" in parts[0]):
            raise UserError(
                f"{path}: member {member.filename!r} reaches outside the zip: pack it again, or give the folder"
            )
        if not parts or member.is_dir():
            continue
        names.append(parts)
        if not _is_image(parts):
            continue
        if member.file_size > MAX_BYTES:
            raise UserError(
                f"{path}: {member.filename} unpacks to {member.file_size} bytes, over {MAX_BYTES}; remove it"
            )
        total += member.file_size
        if total > limit:
            raise UserError(
                f"{path} unpacks to over {MAX_RATIO} times its size; "
                "if it is no zip bomb, unpack it and give the folder"
            )
        shown, identity = f"{path}/{'/'.join(parts)}", f"{member.file_size} {member.CRC}"
        file = ImageFile(parts, shown, identity, partial(read, member))
        text = texts.get("/".join(_beside(tuple(name.split("/")))))
        if text is not None and text.file_size <= MAX_CAPTION:
            file = file._replace(identity=f"{identity} {text.CRC}", caption=partial(read, text))
        yield file


def _layout(path: Path, files: list[ImageFile]) -> tuple[dict[str, list[ImageFile]], list[str]]:
    """Sort the files into splits and classes, by the folders that they lie in.

    Returns:
        splits: the files of each split, their `parts` cut down to (class, ..., name) or (name,).
        classes: the class names, sorted; [] for none.
    """
    folders = [file.parts[:-1] for file in files]
    first, last = min(folders), max(folders)  # what these two have in common, all between them have
    wrapping = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    files = [file._replace(parts=file.parts[wrapping:]) for file in files]
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    held_out = next((name for name in HELD_OUT if name in tops), None)
    if "train" in tops and held_out:
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
    return file._replace(parts=file.parts[1:])


def decode(files: list[ImageFile], recipe: Recipe) -> Iterator[Decoded]:
    """Decode the files, in order, by as many threads as there are processors, a few MB ahead.

    Pixels are uint8 of one shape (h, w, c), that of most of the files. Raises UserError as `decode_image` does.
    """
    expected = _expected(files, recipe)
    size = max(1, min(256, AHEAD // math.prod(expected)))

    def task(some: list[ImageFile]) -> list[Decoded]:
        return [_decode(file, recipe, expected) for file in some]

    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    running: deque[Future[list[Decoded]]] = deque()
    try:
        for start in range(0, len(files), size):
            running.append(pool.submit(task, files[start : start + size]))
            if len(running) > 2 * workers:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _expected(files: list[ImageFile], recipe: Recipe) -> Size:
    """The commonest shape that the recipe gives some of the files; if none can be read, that of the first that can."""
    probes = [files[i] for i in sorted({len(files) * i // PROBES for i in range(PROBES)})]
    found = Counter(recipe.shape(size) for file in probes if (size := _size(file)))
    if found:
        return found.most_common(1)[0][0]
    sizes = (recipe.shape(size) for file in files if (size := _size(file)))
    return next(sizes, (1, 1, 1))  # any will do where nothing can be read


def _size(file: ImageFile) -> Size | None:
    try:
        return read_header(file.shown, file.read())[1]
    except UserError:
        raise
    except Exception:  # said, and counted, when it is decoded
        return None


def _decode(file: ImageFile, recipe: Recipe, expected: Size) -> Decoded:
    try:
        data = file.read()
    except Exception as error:  # zipfile and zlib raise several kinds, RuntimeError for encryption among them
        return Unreadable.because(file.shown, error)
    return decode_image(file.shown, data, recipe, expected)
