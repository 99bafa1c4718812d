"""DDPM++ (continuous) on CIFAR-10, VP, for an accelerator: Song et al. 2021, arXiv:2011.13456, appendix H."""

from typing import Any

from configs import cifar10


def get_config() -> Any:
    config = cifar10.get_config()
    config.model.name = "ncsnpp"
    config.model.parameterization = "raw_eps"
    config.model.noise_label = "time"
    config.train.steps = 1_300_000
    config.train.steps_per_call = 5
    config.sample.steps = 1000
    config.sample.snr = 0.01  # the best for VP; VE's 0.16 is not (their table 5)
    return config
