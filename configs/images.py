"""Your own images, of any size and number of channels: --config.data.path=DIR, a folder, a zip or an .npz, or
data.name.

What is None here follows the size and the amount of the images: the table is in docs/data_and_devices.md.
"""

from typing import Any

from configs import base


def get_config() -> Any:
    config = base.get_config()
    config.data.name = ""
    config.model.name = "unet"
    config.model.parameterization = "edm"
    config.model.sigma_data = None
    config.model.width = None
    config.model.channel_mults = None
    config.model.attention = None
    config.model.blocks = 1
    config.train.weighting = "likelihood"
    config.train.times = "uniform_log_snr"
    config.train.clip = 20.0  # that weighting multiplies the loss by the range of log SNR, about 20
    config.train.lr = 1e-3
    config.train.batch_size = None
    config.train.steps = None
    config.sample.steps = 200
    config.sample.rtol = 1e-4
    config.sample.atol = 1e-4
    config.eval.rtol = 1e-4
    config.eval.atol = 1e-4
    config.eval.n = None
    return config
