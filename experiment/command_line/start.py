"""What a command does before its other imports: from here on Ctrl-C is silent, and a missing package is one line.

import experiment.command_line.start  # noqa: F401
"""

import importlib.util
import sys
from pathlib import Path

from experiment.command_line import MISTAKE
from experiment.command_line.interrupts import end_in_silence

# What the extra `app` installs and every command needs, by the names that are imported. NumPy, jax and diffrax come
# with the library.
NEEDED = (
    "absl",
    "ml_collections",
    "flax",
    "optax",
    "orbax",
    "scipy",
    "sklearn",
    "matplotlib",
    "PIL",
    "threadpoolctl",
    "tqdm",
    "tensorboardX",
    "tensorflow_datasets",
    "array_record",
)


def check_installed() -> None:
    """Exit with status 2 and one line where a package of the extra `app` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        more = f" and {len(missing) - 1} more packages" if missing[1:] else ""
        install = f"pip install -e '{Path(__file__).parents[2]}[app]'"
        print(f"{missing[0]}{more} not installed: give {sys.executable} what is missing, by {install}", file=sys.stderr)
        sys.exit(MISTAKE)


end_in_silence()
check_installed()
