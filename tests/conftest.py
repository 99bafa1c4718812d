"""Settings of all tests: float32 as users have it, full-precision products, one compilation cache, since JAX compiles
slowly, and the order in which `make test` hands the files to its workers.
"""

import gc
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import pytest
import scipy.linalg  # noqa: F401 - brings a BLAS of its own, which is limited too
from threadpoolctl import threadpool_limits

from experiment.cli import convolutions_on_all_cores
from tests import shapes

_CACHE = Path(
    os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(tempfile.gettempdir()) / f"noise_compass_tests_{os.getuid()}"
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)  # for the commands that tests start
convolutions_on_all_cores()  # as the commands do
# One thread for NumPy's products: they are small, and the threads of two workers wait for each other on two cores.
threadpool_limits(1, "blas")
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the commands too
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # what one worker compiled, the other reads
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
shapes.check_from_now_on()
gc.set_threshold(50_000, 20, 20)  # what is traced stays: looking through it all the time takes a tenth of it

# A worker with more than this gives up its compiled functions after each module: bytes, and pieces of address space,
# of which Linux allows 65,530.
_MEMORY, _MAPS = 3 << 30, 40_000

# The files that take longest, so that they come first and the workers end together. Each is handed out whole; of the
# notebooks, each alone.
_LONGEST = (
    "test_notebooks.py",
    "samplers/test_family.py",
    "models/test_models.py",
    "devices/test_hosts.py",
    "evaluation/test_evaluate.py",
    "published/test_score_sde.py",
    "sde_lib/test_likelihood.py",
    "evaluation/test_likelihood.py",
    "samplers/test_samplers.py",
    "models/test_ncsnpp.py",
    "models/test_golden.py",
    "devices/test_sharding.py",
    "training/test_resume.py",
    "evaluation/test_latents.py",
    "report/test_report.py",
)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist would put the files with most tests first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests, longest files first."""

    def rank(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(_LONGEST) if item.path.match(name)), len(_LONGEST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out whole files, and notebooks one by one. xdist's own groups are lost on pytest 9.2."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class FilesAndNotebooks(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith("test_notebooks.py") and "[" in nodeid else file

    return FilesAndNotebooks(config, log)


def _is_full() -> bool:
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    maps = Path("/proc/self/maps")
    return held > _MEMORY or (maps.exists() and len(maps.read_bytes().splitlines()) > _MAPS)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_functions():
    """Keeps the memory of a worker bounded. Modules share much that is compiled: it stays while there is room."""
    yield
    if _is_full():
        jax.clear_caches()
