"""The digits by their label, with guidance: a tenth of the labels is left out in training."""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.model.condition = "label"
    config.train.cond_dropout = 0.1
    return config
