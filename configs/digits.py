"""The default: scikit-learn's 8x8 digits, VP, a small U-Net, a few minutes on two CPU cores."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # sigma(t_min) is a quarter of a grey level. Below it the network would have to draw the edges of the dequantised
    # levels, which it blurs. From here the last denoising finds the level; from 0.001 the ends of the grey scale come
    # out too rarely.
    config.sde.t_min = 0.006
    config.model.name = "unet"  # benchmarks/networks.py compares it with the DiT at equal minutes
    config.model.parameterization = "edm"
    config.model.sigma_data = 0.7  # the standard deviation of the training digits in [-1, 1)
    config.model.width = 32
    config.model.blocks = 1
    config.model.attention = (4,)
    # Noise levels evenly in log SNR: uniform times would spend half of them where almost nothing of the image is left.
    config.train.weighting = "likelihood"
    config.train.times = "uniform_log_snr"
    config.train.clip = 20.0  # that weighting multiplies the loss by the range of log SNR, 19
    config.train.steps = 3000
    config.train.batch_size = 64
    config.train.lr = 2e-3
    config.sample.steps = 300
    config.sample.rtol = 1e-4
    config.sample.atol = 1e-4
    config.eval.rtol = 1e-4
    config.eval.atol = 1e-4
    return config
