"""CIFAR-10 through tensorflow-datasets, for an accelerator."""

from typing import Any

from configs import base


def get_config() -> Any:
    config = base.get_config()
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.name = "unet"
    config.model.width = 128
    config.model.channel_mults = (1, 2, 2, 2)
    config.model.blocks = 4
    config.model.attention = (16,)
    config.model.heads = 4
    config.model.dropout = 0.1
    config.train.steps = 500_000
    config.train.lr = 2e-4
    config.train.warmup = 5000
    config.train.schedule = "constant"
    config.train.ema = 0.9999
    config.train.checkpoint_every = 10_000
    config.train.log_every = 100
    return config
