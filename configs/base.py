"""No value of its own: every key has its default, with its range and its meaning, in experiment/config/schema.py.

Each config in this folder, and each of yours, sets what differs from the defaults, or from another config.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config() -> Any:  # Any: a type checker knows no key of a ConfigDict
    """The sections of a config, with nothing set in them: a VP score network on the digits."""
    return ConfigDict({section: {} for section in ("sde", "model", "data", "train", "sample", "eval")})
