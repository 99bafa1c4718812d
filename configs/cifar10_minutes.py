"""Classes of CIFAR-10 in minutes on one GPU: EDM's loss and preconditioning on a small U-Net (Karras et al. 2022)."""

from typing import Any

from configs import base


def get_config() -> Any:
    config = base.get_config()
    config.sde.name = "ve"
    config.sde.sigma_min = 0.002
    config.sde.sigma_max = 80.0
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.name = "unet"
    config.model.parameterization = "edm"
    config.model.sigma_data = 0.5
    config.model.width = 96
    config.model.channel_mults = (1, 2, 2)
    config.model.blocks = 2
    config.model.attention = (16,)
    config.model.heads = 4
    config.model.condition = "label"
    config.train.weighting = "edm_log_normal"
    config.train.times = "log_normal"
    config.train.steps = 200_000  # more than minutes allow: it trains until it is stopped, and is averaged over a tenth
    config.train.batch_size = 256
    config.train.lr = 1e-3
    config.train.warmup = 500
    config.train.schedule = "constant"
    config.train.ema = 0.9995
    config.train.steps_per_call = 10
    config.train.checkpoint_every = 5000
    config.train.log_every = 250
    config.sample.batch_size = 256
    config.eval.samplers = ("unipc", "ode")
    return config
