"""NCSN++ (continuous) on LSUN bedrooms at 256 x 256, VE: the base of the configs of that size.

Song et al. 2021, arXiv:2011.13456.
"""

from typing import Any

from configs import cifar10_ncsnpp


def get_config() -> Any:
    config = cifar10_ncsnpp.get_config()
    config.data.name = "lsun/bedroom"
    config.data.size = 256
    config.sde.sigma_max = 378.0
    config.model.channel_mults = (1, 1, 2, 2, 2, 2, 2)
    config.model.blocks = 2
    config.model.dropout = 0.0
    config.model.progressive = "output_skip"
    config.model.progressive_input = "input_skip"
    config.train.batch_size = 64
    config.train.steps = 2_400_000
    config.sample.steps = 2000
    config.sample.snr = 0.075
    return config
