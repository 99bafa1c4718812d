"""The provenance of a number: package versions, git commit, Python, device."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "flax",
    "optax",
    "diffrax",
    "orbax-checkpoint",
    "ml_collections",
    "tensorflow-datasets",
    "scikit-learn",
)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str:
    """The commit of this code's checkout, "+changes" when files differ from it; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        here, command = Path(__file__).parent, ["git", *arguments]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        # Installed as a package, this file may lie inside somebody else's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def provenance() -> dict[str, Any]:
    """Collect {versions, git_commit, python, platform, device, devices}. Imports jax."""
    import jax

    device = jax.devices()[0]
    return {
        "versions": {package: _version(package) for package in PACKAGES},
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
    }
