"""DDPM++ (continuous, deep) on CIFAR-10, VP: twice the blocks."""

from typing import Any

from configs import cifar10_ddpmpp


def get_config() -> Any:
    config = cifar10_ddpmpp.get_config()
    config.model.blocks = 8
    config.train.steps = 950_000
    return config
