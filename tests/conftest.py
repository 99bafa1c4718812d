"""Settings of all tests: float32 as users have it, full-precision products, and one compilation cache, since JAX
compiles slowly.
"""

import os
import tempfile
from pathlib import Path

import jax
import pytest

from experiment.cli import convolutions_on_all_cores

_CACHE = Path(
    os.environ.get("JAX_COMPILATION_CACHE_DIR", Path(tempfile.gettempdir()) / f"noise_compass_tests_{os.getuid()}")
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)  # for the commands that tests start
convolutions_on_all_cores()  # as the commands do
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_functions():
    """Keeps the memory of a worker bounded: each module's compiled functions go with it."""
    yield
    jax.clear_caches()
