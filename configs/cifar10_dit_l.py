"""DiT-L/2 on CIFAR-10 with class labels."""

from typing import Any

from configs import cifar10_dit_s


def get_config() -> Any:
    config = cifar10_dit_s.get_config()
    config.model.width = 1024
    config.model.depth = 24
    config.model.heads = 16
    return config
