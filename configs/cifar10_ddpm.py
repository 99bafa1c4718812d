"""DDPM's network on CIFAR-10, VP, trained in continuous time: "DDPM cont." of Song et al. 2021, arXiv:2011.13456."""

from typing import Any

from configs import cifar10_ddpmpp


def get_config() -> Any:
    config = cifar10_ddpmpp.get_config()
    config.model.blocks = 2
    config.model.resblock = "ddpm"
    config.model.skip_rescale = False
    config.model.norm_groups = 32
    return config
