"""Your own fields: an .npz of series (n, length, c), fields (n, h, w, c) or volumes (n, d, h, w, c), in any units.

They are standardised for each channel by constants that the run keeps: samples and likelihoods are in your units.
"""

from typing import Any

from configs import images


def get_config() -> Any:
    config = images.get_config()
    config.model.parameterization = "gaussian"
    config.sde.t_min = 1e-4  # no levels limit what is fine: sigma(t_min) is 0.003 of the data's standard deviation
    return config
