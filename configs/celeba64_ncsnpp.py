"""NCSN++ (continuous) on CelebA, cropped to 140 pixels and resized to 64, VE."""

from typing import Any

from configs import cifar10_ncsnpp


def get_config() -> Any:
    config = cifar10_ncsnpp.get_config()
    config.data.name = "celeb_a"
    config.data.crop = 140
    config.data.size = 64
    config.sde.sigma_max = 90.0  # about the largest distance between two images
    config.sample.snr = 0.17
    return config
