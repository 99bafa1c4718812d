"""The memory that this machine has left, and the refusal of work that cannot fit in it."""

import os
from pathlib import Path

from experiment.common.errors import UserError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def available() -> int | None:
    """The bytes that a process could still take; None where the system does not say."""
    known = [limit for path in _LIMITS if (limit := _number(path)) is not None]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass
    if not known and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):  # Windows has none
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def check_fits(needed: float, what: str, remedy: str) -> None:
    """Raises UserError where `what` needs more bytes than this machine has left."""
    there = available()
    if there is not None and needed > there:
        raise UserError(f"{what} would take {_size(needed)} of memory, and this machine has {_size(there)}: {remedy}")


def _size(number: float) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = min(int(number).bit_length() // 10, len(units) - 1)
    return f"{number / 1024**power:,.3g} {units[power]}"
