"""Your own vectors (n, d), in any units: --config.data.path=FILE.npz.

They are standardised for each coordinate by constants that the run keeps: samples and likelihoods are in your units.
"""

from typing import Any

from configs import toys


def get_config() -> Any:
    config = toys.get_config()
    config.data.name = ""
    config.sde.t_min = 1e-4  # sigma(t_min) is 0.003 of the data's standard deviation
    config.model.parameterization = "gaussian"
    config.model.sigma_data = None
    config.model.width = None
    config.train.weighting = "likelihood"
    config.train.times = "uniform_log_snr"
    config.train.clip = 20.0
    config.train.batch_size = None
    config.train.steps = None
    config.eval.n = None
    return config
