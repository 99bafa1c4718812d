"""DiT-S/2 on CIFAR-10 with class labels, VP in EDM's parameterisation.

The sizes are those of Peebles and Xie 2023, arXiv:2212.09748, table 1.
"""

from typing import Any

from configs import base


def get_config() -> Any:
    config = base.get_config()
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.name = "dit"
    config.model.parameterization = "edm"
    config.model.width = 384
    config.model.depth = 12
    config.model.heads = 6
    config.model.patch_size = 2
    config.model.condition = "label"
    config.train.weighting = "edm_log_normal"
    config.train.times = "log_normal"
    config.train.steps = 400_000
    config.train.batch_size = 256
    config.train.lr = 1e-4
    config.train.schedule = "constant"
    config.train.ema = 0.9999
    config.train.checkpoint_every = 10_000
    config.train.log_every = 100
    config.train.steps_per_call = 5
    return config
