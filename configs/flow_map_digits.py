"""A flow map of the digits, from the score run of `make demo` as its teacher: samples in one, two or four calls."""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.train.objective = "flow_map"
    config.train.teacher = "runs/digits"
    return config
