"""NCSN++ (continuous) on CIFAR-10, VE, images in [0, 1), for an accelerator.

Song et al. 2021, arXiv:2011.13456, appendix H.
"""

from typing import Any

from configs import cifar10_ddpmpp


def get_config() -> Any:
    config = cifar10_ddpmpp.get_config()
    config.sde.name = "ve"
    config.sde.t_min = 1e-5
    config.data.centered = False
    config.model.parameterization = "raw_score"
    config.model.noise_label = "log_sigma"
    config.model.embedding = "fourier"
    config.model.fir = True
    config.model.progressive_input = "residual"
    config.train.ema = 0.999
    config.sample.snr = 0.16
    return config
