"""DiT-B/2 on CIFAR-10 with class labels."""

from typing import Any

from configs import cifar10_dit_s


def get_config() -> Any:
    config = cifar10_dit_s.get_config()
    config.model.width = 768
    config.model.depth = 12
    config.model.heads = 12
    return config
