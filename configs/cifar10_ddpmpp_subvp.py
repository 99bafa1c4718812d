"""DDPM++ (continuous) on CIFAR-10, sub-VP: the best likelihoods of Song et al. 2021, arXiv:2011.13456."""

from typing import Any

from configs import cifar10_ddpmpp


def get_config() -> Any:
    config = cifar10_ddpmpp.get_config()
    config.sde.name = "subvp"
    return config
