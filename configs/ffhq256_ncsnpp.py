"""NCSN++ (continuous) on FFHQ at 256 x 256, VE. Give its folder with --config.data.path."""

from typing import Any

from configs import lsun_bedroom256_ncsnpp


def get_config() -> Any:
    config = lsun_bedroom256_ncsnpp.get_config()
    config.data.name = "ffhq"
    config.sde.sigma_max = 348.0
    return config
