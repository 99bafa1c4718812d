"""The configuration: its schema, the check of each value, and whole configs as files hold them."""

from experiment.config.schema import FOLLOWING, FREE_ON_RESUME, KEYS, MOST, OWN_KEYS, SECTIONS
from experiment.config.values import check_flag, check_key, check_seed, check_value, describe, nearest, read_text
from experiment.config.whole import (
    adopt,
    adopt_of_run,
    check_config,
    differences,
    filled,
    flatten,
    load_config,
    nested,
    save_config,
    set_keys,
    whole_config,
)

__all__ = [
    "FOLLOWING",
    "FREE_ON_RESUME",
    "KEYS",
    "MOST",
    "OWN_KEYS",
    "SECTIONS",
    "adopt",
    "adopt_of_run",
    "check_config",
    "check_flag",
    "check_key",
    "check_seed",
    "check_value",
    "describe",
    "differences",
    "filled",
    "flatten",
    "load_config",
    "nearest",
    "nested",
    "read_text",
    "save_config",
    "set_keys",
    "whole_config",
]
