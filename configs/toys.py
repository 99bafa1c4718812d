"""Two-dimensional sets, which train in seconds: --config.data.name=two_moons, or another toy."""

from typing import Any

from configs import base


def get_config() -> Any:
    config = base.get_config()
    config.data.name = "two_moons"
    config.model.name = "mlp"
    config.model.depth = 3
    config.train.steps = 5000
    config.train.batch_size = 512
    config.sample.batch_size = 1024
    return config
