"""Work in parts, each a file that is whole or absent: what is killed goes on, and several processes share it out.

The processes meet in a folder that all of them see. Each begins with parts of its own, and takes those of others when
it has none left: where one of them is killed, the others do its work.
"""

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiment.common.errors import UserError, one_line, shown
from experiment.common.files import write_npz
from experiment.data.npz import read_npz
from experiment.devices.hosts import Place

Array = np.ndarray
Part = dict[str, Array]

POLL = 0.2  # seconds between two looks at what the others do


@dataclass(frozen=True)
class Shards:
    """The parts of n rows, `size` of them in each but the last, in a folder.

    compute: (first, rows) -> the arrays of the part that begins with row `first`; by whichever process, the same ones.
    rows_of: the number of rows that a part's arrays hold.
    """

    folder: Path
    n: int
    size: int
    compute: Callable[[int, int], Part]
    rows_of: Callable[[Part], int]

    @property
    def firsts(self) -> range:
        """The first row of each part."""
        return range(0, self.n, self.size)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:08d}.npz"

    def _rows(self, first: int) -> int:
        return min(self.size, self.n - first)

    def fill(self, place: Place = Place()) -> None:  # noqa: B008 - it is frozen
        """Compute what is missing, until all parts are there or, for others than the first process, it has put them
        together.
        """
        own = self.firsts[place.number :: place.count]
        missing = [*own, *(first for first in self.firsts if first not in own)]
        self.folder.mkdir(parents=True, exist_ok=True)
        while missing:
            before = len(missing)
            for first in list(missing):
                if not self.folder.is_dir():  # the first process has all that it needs
                    return
                if self._path(first).exists():
                    missing.remove(first)
                    continue
                with self._claimed(first) as mine:
                    if mine and not self._path(first).exists():
                        part = self.compute(first, self._rows(first))
                        if self.folder.is_dir():
                            write_npz(self._path(first), **part)
                    if mine:
                        missing.remove(first)
            if len(missing) == before:
                time.sleep(POLL)

    @contextlib.contextmanager
    def _claimed(self, first: int) -> Iterator[bool]:
        """Tell whether this part is this process's to compute: nobody else is at it. A claim dies with its process.

        Where files cannot be locked two processes may compute the same part, to the same end.
        """
        lock = self.folder / f".{first:08d}.lock"
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if not self.folder.is_dir():
                yield False
                return
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror}): choose another folder, or make room"
            ) from None
        try:
            yield _locked(file)
        finally:
            if self._path(first).exists():
                lock.unlink(missing_ok=True)
            os.close(file)

    def read(self) -> Iterator[Part]:
        """Read all parts in order. One that is damaged is set aside, said, and computed again."""
        for first in self.firsts:
            part = self._read(first)
            if part is None:
                part = self.compute(first, self._rows(first))
                write_npz(self._path(first), **part)
            yield part

    def _read(self, first: int) -> Part | None:
        path = self._path(first)
        if not path.exists():
            return None
        try:
            part = read_npz(path)
            if self.rows_of(part) != self._rows(first):
                raise UserError(f"{path} is of another batch: leave it out")
            return part
        except (UserError, LookupError) as error:
            aside = path.rename(path.with_name(f"{path.name}.damaged"))
            print(f"computed again, for it is damaged: {shown(str(aside))} ({one_line(error)})", file=sys.stderr)
            return None

    def remove(self) -> None:
        """Remove the parts, and their folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # others' parts keep it


def _locked(file: int) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True
