"""Every key with its value. Other configs are differences from this one."""

from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config() -> Any:  # Any: a type checker knows no key of a ConfigDict
    """VP score network on the digits."""
    return ConfigDict(
        {
            "seed": 0,
            "sde": {
                "name": "vp",  # vp | subvp | ve | cosine_vp | rectified_flow
                "beta_min": 0.1,
                "beta_max": 20.0,
                "sigma_min": 0.01,
                "sigma_max": 50.0,
                "t_min": config_dict.placeholder(float),  # None: the SDE's own
            },
            "model": {
                "name": "dit",  # mlp | unet | dit | ncsnpp; each takes the keys that its constructor names
                # eps | x0 | edm | v | velocity, or on the unscaled input: raw_eps | raw_score
                "parameterization": "eps",
                "scale_by_sigma": True,  # raw_score: the network's output divided by sigma
                # what the network is told of the noise: log_snr | log_sigma | time | reversed_time | chain
                "noise_label": "log_snr",
                "sigma_data": 0.5,
                "width": 128,
                "depth": 4,
                "heads": 4,
                "patch_size": 2,
                "channel_mults": (1, 2),
                "blocks": 2,
                "attention": (),
                "dropout": 0.0,
                "class_conditional": False,
                "dtype": "auto",  # bfloat16 on accelerators, float32 on CPU
                # none | blocks | products: activations computed again in the backward pass, all or all but products
                "remat": "none",
                # of ncsnpp
                "embedding": "positional",  # positional | fourier
                "fourier_scale": 16.0,
                "resblock": "biggan",  # biggan | ddpm
                "fir": False,  # resampling by StyleGAN2's filter
                "skip_rescale": True,
                "resample_with_conv": True,
                "progressive": "none",  # none | output_skip | residual
                "progressive_input": "none",  # none | input_skip | residual
                "progressive_combine": "sum",  # sum | cat
                "attention_per_block": False,  # on the way up too, as in Ho et al.'s own code
                "norm_groups": 0,  # 0: min(channels/4, 32)
                "init_scale": 0.0,
            },
            "data": {
                "name": "digits",
                "path": "",  # a folder or zip of images, or an .npz
                "dequantize": True,
                "flip": False,
                "cache": "",  # "": the user's cache folder
                "centered": True,  # images in [-1, 1); False: in [0, 1)
                "crop": 0,  # pixels per side of a central crop, before anything else; 0: none
                "size": 0,  # pixels per side that images are resized to; 0: as they are
                "skip_unreadable": False,  # leave damaged images out, counted, instead of stopping
            },
            "train": {
                "steps": 4000,
                "batch_size": 128,
                "lr": 1e-3,
                "optimizer": "adam",  # adam | adamw
                "weight_decay": 0.0,
                "warmup": 200,
                "schedule": "cosine",  # cosine | constant
                "clip": 1.0,  # of the gradient's global norm; 0: none
                "accumulate": 1,
                "ema": 0.999,
                # sigma2 | likelihood | flow_matching | v | min_snr | soft_min_snr | edm, the last two with
                # model.sigma_data; EDM's and Stable Diffusion 3's objectives with their law of times, best drawn by it:
                # edm_log_normal | flow_matching_logit_normal
                "weighting": "sigma2",
                # uniform_t | uniform_log_snr | uniform_log_sigma | log_normal | logit_normal, or learned in training:
                # loss_second_moment | learned_log_snr
                "times": "uniform_t",
                "min_snr_gamma": 5.0,
                "time_mean": config_dict.placeholder(float),  # of log_normal and logit_normal; None: -1.2 and 0
                "time_std": config_dict.placeholder(float),  # None: 1.2 and 1
                "uncertainty": False,  # each noise level's loss divided by its mean, learned: EDM2's weighting
                # relative widths of averages of the weights, such as (0.05, 0.1), from which any other is rebuilt
                "power_ema": (),
                "snapshot_every": 1000,  # steps between the snapshots of power_ema
                "checkpoint_every": 1000,
                "keep": 3,
                "log_every": 50,
                "fsdp": 1,
                "steps_per_call": 1,  # steps in one call of the device; on CPU always 1
            },
            "sample": {
                "steps": 500,
                "batch_size": 64,
                "snr": 0.16,
                "corrector_steps": 1,
                "rtol": 1e-5,
                "atol": 1e-5,
                "denoise": True,
            },
            "eval": {
                "samplers": ("em", "pc", "ode"),
                "n": 1024,
                "seeds": 3,
                "likelihood_n": 256,
                "probes": 4,
                "rtol": 1e-5,  # of the likelihood's solve
                "atol": 1e-5,
                "seed": 0,  # of the first of the seeds
                "batch_size": 128,
                "reference": "train",  # train | test
            },
        }
    )
