"""The digits by captions such as "a thick seven, slanted left" (experiment/data/digit_captions.py), with guidance."""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.model.condition = "text"
    config.model.text_length = 32  # the longest caption has 29 bytes
    config.train.cond_dropout = 0.1
    return config
