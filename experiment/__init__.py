"""One run: from a config to objects to files. `load_score(run_dir)` is the bridge from a run to the mathematics."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiment.run.load import load_flow_map, load_run, load_score

__all__ = ["load_flow_map", "load_run", "load_score"]


# Imported on demand: a misspelt flag should be told before jax has been loaded.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'experiment' has no attribute {name!r}")
    from experiment.run import load

    return getattr(load, name)
