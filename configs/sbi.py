"""Posteriors of simulators: the parameters' score, told the observation; --config.data.name=slcp, or another simulator.

The data are `simulations` pairs of a simulator of experiment/data/simulators.py. benchmarks/sbi.py trains the same
network on what a linear regression leaves of the parameters, and takes the mean of several.
"""

from typing import Any

from configs import vectors


def get_config() -> Any:
    config = vectors.get_config()
    config.data.name = "gaussian_linear"
    config.data.simulations = 10_000
    config.sde.beta_max = 12.0  # log SNR from -6 to 11, where sigma is 0.004: posteriors can be narrow
    config.sde.t_min = 1.65e-4
    config.model.condition = "vector"
    config.model.parameterization = "edm"  # zero is N(0, I)
    config.model.sigma_data = 1.0
    config.model.width = 128
    config.model.depth = 3
    config.model.dropout = 0.1
    config.train.lr = 2e-3
    config.train.batch_size = 256
    config.train.steps = 4000
    config.sample.batch_size = 10_000
    return config
