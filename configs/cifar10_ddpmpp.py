"""DDPM++ (continuous) on CIFAR-10, VP: Song et al. 2021, arXiv:2011.13456, appendix H. For an accelerator."""

from typing import Any

from configs import base


def get_config() -> Any:
    config = base.get_config()
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.name = "ncsnpp"
    config.model.parameterization = "raw_eps"
    config.model.noise_label = "time"
    config.model.width = 128
    config.model.channel_mults = (1, 2, 2, 2)
    config.model.blocks = 4
    config.model.attention = (16,)
    config.model.dropout = 0.1
    config.train.steps = 1_300_000
    config.train.lr = 2e-4
    config.train.warmup = 5000
    config.train.schedule = "constant"
    config.train.ema = 0.9999
    config.train.checkpoint_every = 10_000
    config.train.log_every = 100
    config.train.steps_per_call = 5
    config.sample.steps = 1000
    config.sample.snr = 0.01  # the best for VP; VE's 0.16 is not (their table 5)
    return config
