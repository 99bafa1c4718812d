"""NCSN++ (continuous) on CelebA-HQ at 256 x 256, VE."""

from typing import Any

from configs import lsun_bedroom256_ncsnpp


def get_config() -> Any:
    config = lsun_bedroom256_ncsnpp.get_config()
    config.data.name = "celeb_a_hq/256"
    config.sde.sigma_max = 348.0
    return config
