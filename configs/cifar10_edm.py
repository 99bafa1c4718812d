"""EDM's recipe on DDPM++ for CIFAR-10, for an accelerator: Karras et al. 2022, arXiv:2206.00364, table 1, appendix F.

Preconditioning, log-normal noise levels, augmentations that the network is told, and an average of half a million
images. Class-conditional: --config.model.condition=label.
"""

from typing import Any

from configs import base

IMAGES, RAMP, HALF_LIFE = 200e6, 10e6, 500e3  # of the training, of the rise of the learning rate, of the average


def get_config() -> Any:
    config = base.get_config()
    config.sde.name = "ve"
    config.sde.sigma_min = 0.002
    config.sde.sigma_max = 80.0
    config.data.name = "cifar10"
    config.data.augment = 0.12
    config.model.name = "ncsnpp"
    config.model.parameterization = "edm"
    config.model.sigma_data = 0.5
    config.model.noise_label = "log_snr"
    config.model.width = 128
    config.model.channel_mults = (2, 2, 2)
    config.model.blocks = 4
    config.model.attention = (16,)
    config.model.dropout = 0.13
    config.train.weighting = "edm_log_normal"
    config.train.times = "log_normal"
    config.train.batch_size = batch = 512
    config.train.steps = int(IMAGES / batch)
    config.train.lr = 1e-3
    config.train.warmup = int(RAMP / batch)
    config.train.schedule = "constant"
    config.train.ema = 0.5 ** (batch / HALF_LIFE)
    config.train.clip = 0.0
    config.train.steps_per_call = 5
    config.train.checkpoint_every = 10_000
    config.train.log_every = 100
    config.sample.steps = 18
    config.eval.samplers = ("heun", "unipc")
    return config
