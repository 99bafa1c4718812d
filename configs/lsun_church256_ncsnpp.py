"""NCSN++ (continuous) on LSUN churches at 256 x 256, VE."""

from typing import Any

from configs import lsun_bedroom256_ncsnpp


def get_config() -> Any:
    config = lsun_bedroom256_ncsnpp.get_config()
    config.data.name = "lsun/church"
    config.sde.sigma_max = 380.0
    return config
