"""NCSN++ (continuous, deep) on CIFAR-10, VE: twice the blocks."""

from typing import Any

from configs import cifar10_ncsnpp


def get_config() -> Any:
    config = cifar10_ncsnpp.get_config()
    config.model.blocks = 8
    config.train.steps = 950_000
    return config
